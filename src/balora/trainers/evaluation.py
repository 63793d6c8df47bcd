"""Evaluation that does not depend on the number of processes: every row once, every token alike.

accelerate fills the last batch up with rows from the beginning, so that every process has one, and
transformers averages the means of the batches. Here the rows that fill up are masked, and the
metrics are sums over tokens, divided once.

Shapes: ``B`` rows of a batch of this process, ``S`` positions, ``M`` scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from balora.distributed import add_up
from balora.objective import TokenCounts

LENGTHS = "balora_lengths"
"""What evaluation batches carry beside the tokens where they lie in one row: the rows' lengths."""


@dataclass(frozen=True)
class CollateLengths:
    """A data collator whose batches also have the lengths of their rows, shape ``(B,)``."""

    collate: Callable[[list[Any]], Any]
    """The collator of everything else."""

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        """Return the batch."""
        batch = self.collate(examples)
        batch[LENGTHS] = torch.tensor([len(example["input_ids"]) for example in examples])
        return batch


def num_counted(accelerator: Any, num_rows: int) -> int:
    """Return how many of a batch's first rows count; the others fill the last batch up.

    Args:
        accelerator: Whose data loader is being read; outside of one every row counts.
        num_rows: Of this process, ``B``.
    """
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return num_rows
    first = accelerator.process_index * num_rows
    left: int = state.remainder - first
    return min(max(left, 0), num_rows)


def masked(labels: Tensor, lengths: Tensor | None, accelerator: Any) -> Tensor:
    """Return labels that are -100 in the rows that fill the last batch up.

    Args:
        labels: Shape ``(B, S)``, or ``(1, S)`` where the rows lie one after the other.
        lengths: In the second case, shape ``(B,)``.
        accelerator: As for :func:`num_counted`.
    """
    labels = labels.clone()
    if lengths is None:
        labels[num_counted(accelerator, len(labels)) :] = -100
    else:
        labels[:, int(lengths[: num_counted(accelerator, len(lengths))].sum()) :] = -100
    return labels


class TokenSums:
    """Sums over the scored tokens of an evaluation, of all processes."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, loss: Tensor, counts: TokenCounts) -> None:
        """Add a batch, by the sum of its cross-entropy and its counts."""
        parts = (loss, counts.entropy, counts.num_correct, counts.num_tokens)
        sums = torch.stack([part.detach().double() for part in parts])
        self._sums = sums if self._sums is None else self._sums + sums

    def means(self) -> dict[str, float]:
        """Return the means; nothing where no batch was added. Every process calls."""
        if self._sums is None:
            return {}
        add_up(self._sums)
        *sums, num_tokens = self._sums.tolist()
        names = ("loss", "entropy", "mean_token_accuracy")
        return {name: value / max(num_tokens, 1) for name, value in zip(names, sums, strict=True)}
