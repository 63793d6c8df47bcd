"""The pre-trained model's hidden states at the scored tokens, computed once: ``D`` numbers a token.

Their logits are those of the shared head, so nothing is lost, and full fine-tuning has a reference
without a second model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from balora.errors import ConfigError

_FREE_SHARE = 0.9
"""Of the free disk, how much the hidden states may take."""


class Place(NamedTuple):
    """Where the hidden states lie."""

    name: str
    """memory, disk, or live."""
    num_bytes: int
    """What they take there; 0 for live."""


def place_for(num_bytes: int, wish: str, *, gib: float, folder: Path, can_be_live: bool) -> Place:
    """Return where hidden states of ``num_bytes`` are kept.

    ``auto`` takes the memory up to ``gib``, then the disk while it has room, then the live pass.

    Args:
        num_bytes: Of all scored tokens of this process.
        wish: `replay_reference`.
        gib: `replay_reference_gib`.
        folder: On the disk.
        can_be_live: Whether there are adapters to switch off.

    Raises:
        ConfigError: If no place is left, or ``live`` cannot work.
    """
    if wish == "live" and not can_be_live:
        raise ConfigError(
            "`replay_reference` is live, but full fine-tuning has no adapter to switch off. Set it "
            "to auto, memory or disk."
        )
    if wish == "memory" or (wish == "auto" and num_bytes <= gib * 2**30):
        return Place("memory", num_bytes)
    if wish == "live":
        return Place("live", 0)
    folder.mkdir(parents=True, exist_ok=True)
    has_room = num_bytes <= _FREE_SHARE * shutil.disk_usage(folder).free
    if has_room:
        return Place("disk", num_bytes)
    if wish == "auto" and can_be_live:
        return Place("live", 0)
    raise ConfigError(
        f"`replay_reference` is {wish}, but the {num_bytes / 2**30:.1f} GiB of hidden states do "
        f"not fit on the disk of {str(folder)!r}. Lower `replay_num_texts` or `replay_length`, or "
        "raise `replay_reference_gib`."
    )


class HiddenStates:
    """The rows of each text, one below the other, in memory or in a file that is mapped.

    Args:
        num_rows: Scored tokens by text, in the order in which they are kept.
        width: ``D``.
        dtype: Of the model's hidden states.
        folder: Where the file lies; ``None`` for the memory. It is gone when the process ends.
    """

    def __init__(
        self, num_rows: Mapping[int, int], width: int, dtype: torch.dtype, folder: Path | None
    ) -> None:
        self._starts: dict[int, tuple[int, int]] = {}
        total = 0
        for text, number in num_rows.items():
            self._starts[text] = (total, number)
            total += number
        if folder is None:
            self._rows = torch.empty(total, width, dtype=dtype)
        else:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".reference-") as file:
                size = max(total * width, 1)
                mapped = torch.from_file(file.name, shared=True, size=size, dtype=dtype)
            self._rows = mapped[: total * width].view(total, width)

    @property
    def num_bytes(self) -> int:
        """What the rows take up."""
        return self._rows.numel() * self._rows.element_size()

    def put(self, texts: Sequence[int], hidden: Tensor) -> None:
        """Keep the rows of some texts, ``(sum of their tokens, D)``."""
        first = 0
        for text in texts:
            start, number = self._starts[text]
            self._rows[start : start + number] = hidden[first : first + number].to("cpu")
            first += number

    def rows(self, texts: Sequence[int]) -> Tensor:
        """Return the rows of some texts, in their order, shape ``(sum of their tokens, D)``."""
        spans = (self._starts[text] for text in texts)
        parts = [self._rows[start : start + number] for start, number in spans]
        return torch.cat([self._rows[:0], *parts])
