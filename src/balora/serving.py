"""What a server has to be told to take an adapter: one sentence, for the terminal and the card.

vLLM has room for adapters of a few ranks and refuses more than it was started for; it takes no
trained head. llama.cpp and others read one rank and one scale for all layers.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from balora.state import read_json
from balora.usage import absolute_name

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's ``--max-lora-rank``; it takes 16 where none is given."""

_FIX = "Train or export again."


def room_for(rank: int) -> int | None:
    """Return the smallest ``--max-lora-rank`` for adapters of a rank; None above the largest."""
    return next((room for room in VLLM_RANKS if room >= rank), None)


def how_to_serve(
    folder: Path, *, base: str | None = None, shown: Path | None = None, lost: float | None = None
) -> str:
    """Return the sentence on the adapter in a folder; "" for a whole model or an unknown base.

    Args:
        folder: As `balora train` or `balora export` left it.
        base: The pre-trained model; ``None`` takes the one that the adapter names.
        shown: What is named in place of ``folder``.
        lost: What a truncation to the largest rank loses of the update, from 0 to 1, where known.
    """
    path = folder / "adapter_config.json"
    config: dict[str, Any] = read_json(path, _FIX) if path.is_file() else {}
    named = base or config.get("base_model_name_or_path")
    if not named:
        return ""
    place = (shown or folder).resolve()
    model, out = shlex.quote(absolute_name(named)), shlex.quote(str(place))
    export = f"balora export {out} --base {model}"
    if config.get("modules_to_save"):
        return (
            "vLLM and llama.cpp take no adapter with a trained head; "
            f"`{export} --merge` makes one model of both."
        )
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_rslora"):
        return (
            "Servers read one rank and one scale for all layers, and this adapter has several or "
            f"another rule: serve what `{export}` writes."
        )
    room = room_for(config["r"])
    if room is None:
        largest = VLLM_RANKS[-1]
        cost = "" if lost is None else f", which loses {lost:.2%} of the update (Frobenius norm)"
        return (
            f"Its rank is {config['r']}, and no server has room for more than {largest}: serve "
            f"what `{export} --rank {largest}` writes{cost}, or a merged model (`--merge`)."
        )
    name = shlex.quote(place.name)
    return (
        f"vLLM serves it with `vllm serve {model} --enable-lora --max-lora-rank {room} "
        f"--lora-modules {name}={out}`."
    )
