r"""From a trained run to what others load: a plain LoRA, a smaller one, or a merged model.

A run folder holds the plain LoRA of rank 2r already. Truncation to rank R keeps, layer by layer,
the best approximation of the update :math:`s B A` (Eckart and Young), found without building it:
with :math:`B = Q_B R_B` and :math:`A^\top = Q_A R_A` its singular values are those of the small
:math:`s R_B R_A^\top`. Merging is done in float32 and cast last.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from balora.anchored.save import ADAPTER_FILE
from balora.errors import ConfigError
from balora.folders import Read, new_folder
from balora.models.names import check_model_name

_TOKENIZER_FILES = re.compile(r"tokenizer.*|special_tokens_map\.json|chat_template\.jinja|vocab.*")


class Truncation(NamedTuple):
    """How much of the update a truncation lost."""

    rank: int
    relative_error: float
    """Frobenius norm of what was cut off over that of the whole update, all layers together."""
    worst_layer: str
    worst_error: float
    """The same for the layer that lost most."""


def export_adapter(
    source: Path, base: str, destination: Path, *, rank: int | None = None, overwrite: bool = False
) -> Truncation | None:
    """Write the adapter of a run as a plain LoRA, truncated to ``rank`` where one is given.

    Args:
        source: A folder that ``save_model`` or a checkpoint left.
        base: The model it was trained on, id or folder; the adapter must fit it.
        destination: The new folder; it appears whole, by rename.
        rank: At most this rank in every layer; None keeps it as it is.
        overwrite: Whether a ``destination`` that exists is replaced.

    Returns:
        What the truncation lost, None without one.

    Raises:
        ConfigError: If ``source`` is no adapter, does not fit ``base``, ``rank`` is below 1 or not
            below the adapter's own, or ``destination`` exists or holds the ``source`` or ``base``.
    """
    config, tensors = _load_plain_adapter(source)
    _check_fits(tensors, base, source)
    truncation = None
    if rank is not None:
        tensors, truncation = truncate(config, tensors, rank)
    config.base_model_name_or_path, config.inference_mode = base, True
    reads = _reads(source, base)
    with new_folder(destination, "`--to`", overwrite=overwrite, reads=reads) as stage:
        save_file(tensors, stage / ADAPTER_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(stage))
        _copy_tokenizer(source, stage)
    return truncation


def export_merged(source: Path, base: str, destination: Path, *, overwrite: bool = False) -> None:
    """Write ``base`` with the adapter merged into its weights: in float32, cast last.

    Args:
        source: A folder that ``save_model`` or a checkpoint left.
        base: The model it was trained on, id or folder.
        destination: The new folder; it appears whole, by rename.
        overwrite: Whether a ``destination`` that exists is replaced.

    Raises:
        ConfigError: As for :func:`export_adapter`.
    """
    _, tensors = _load_plain_adapter(source)
    _check_fits(tensors, base, source)
    reads = _reads(source, base)
    with new_folder(destination, "`--to`", overwrite=overwrite, reads=reads) as stage:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        dtype = model.dtype
        merged = PeftModel.from_pretrained(model.float(), str(source)).merge_and_unload()
        merged.to(dtype).save_pretrained(str(stage))
        _save_tokenizer(source, base, stage)


def truncate(
    config: LoraConfig, tensors: dict[str, Tensor], rank: int
) -> tuple[dict[str, Tensor], Truncation]:
    """Return the best approximation of rank ``rank``; ``config`` is changed to describe it.

    The scaling moves into the factors, so that every layer has alpha equal to its rank.
    """
    own_rank = max(len(t) for key, t in tensors.items() if key.endswith("lora_A.weight"))
    if not 1 <= rank < own_rank:
        raise ConfigError(
            f"`--rank` is {rank}, but the adapter has rank {own_rank}. Give a rank from 1 to "
            f"{own_rank - 1}, or leave `--rank` out to keep it whole."
        )
    truncated, lost, whole = dict(tensors), {}, {}
    ranks = {}
    for key in [k for k in tensors if k.endswith("lora_A.weight")]:
        layer = key.removesuffix(".lora_A.weight")
        down, up = tensors[key], tensors[f"{layer}.lora_B.weight"]
        name = layer.removeprefix("base_model.model.")
        u, s, vh = _svd_of_product(up, down * _scaling(config, name))
        ranks[name] = min(rank, len(s))
        root = s[: ranks[name]].sqrt()
        truncated[key] = (root[:, None] * vh[: ranks[name]]).to(down.dtype).contiguous()
        truncated[f"{layer}.lora_B.weight"] = (u[:, : ranks[name]] * root).to(up.dtype).contiguous()
        lost[name], whole[name] = float(s[rank:].square().sum()), float(s.square().sum())
    config.r = config.lora_alpha = rank
    config.use_rslora = False
    config.rank_pattern = {name: r for name, r in ranks.items() if r != rank}
    config.alpha_pattern = dict(config.rank_pattern)
    errors = {name: (lost[name] / whole[name]) ** 0.5 if whole[name] else 0.0 for name in lost}
    worst = max(errors, key=lambda name: errors[name])
    total = sum(whole.values())
    overall = (sum(lost.values()) / total) ** 0.5 if total else 0.0
    return truncated, Truncation(rank, overall, worst, errors[worst])


def _svd_of_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().mT)
    u, s, vh = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    return q_up @ u, s, vh @ q_down.mT


def _scaling(config: LoraConfig, layer: str) -> float:
    """Return alpha / r of one layer, by PEFT's own rule for the patterns."""
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, layer), config.r)
    alpha_key = get_pattern_key(config.alpha_pattern, layer)
    alpha = config.alpha_pattern.get(alpha_key, config.lora_alpha)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


def _load_plain_adapter(source: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    if not (source / "adapter_config.json").is_file() or not (source / ADAPTER_FILE).is_file():
        raise ConfigError(
            f"`{source}` holds no adapter (adapter_config.json and {ADAPTER_FILE}). Name the "
            "folder that `balora train` wrote."
        )
    return LoraConfig.from_pretrained(str(source)), load_file(source / ADAPTER_FILE)


def _check_fits(tensors: dict[str, Tensor], base: str, source: Path) -> None:
    check_model_name(base, "`--base`")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"`--base` {base!r} cannot be loaded: {reason}") from error
    weights = dict(model.named_parameters(remove_duplicate=False))  # a tied head too
    for key in [k for k in tensors if k.endswith("lora_A.weight")]:
        name = key.removesuffix(".lora_A.weight")
        layer = name.removeprefix("base_model.model.")
        shape = (len(tensors[f"{name}.lora_B.weight"]), tensors[key].shape[1])
        weight = weights.get(f"{layer}.weight")
        # GPT-2's Conv1D holds the transpose
        if weight is None or tuple(weight.shape) not in (shape, shape[::-1]):
            found = "no such layer" if weight is None else f"shape {tuple(weight.shape)}"
            raise ConfigError(
                f"the adapter in `{source}` does not fit `--base` {base!r}: it adapts `{layer}` "
                f"of shape {shape}, and the model has {found}. Name the model it was trained on."
            )


def _reads(source: Path, base: str) -> tuple[Read, ...]:
    return (Read("the run", str(source), may_hold_output=True), Read("`--base`", base))


def _copy_tokenizer(source: Path, destination: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and _TOKENIZER_FILES.fullmatch(path.name):
            shutil.copy2(path, destination / path.name)


def _save_tokenizer(source: Path, base: str, destination: Path) -> None:
    _copy_tokenizer(source, destination)
    if not any(destination.glob("tokenizer*")):
        AutoTokenizer.from_pretrained(base).save_pretrained(str(destination))
