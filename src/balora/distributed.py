"""The processes of a run: how many there are, which one this is, and the rows of all of them.

What a launcher has set before torch is loaded is read in :mod:`balora.environment`.

Shapes: ``M`` rows of this process, ``D`` columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process and of all; 0 and 1 where no group has been started."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def add_up(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes, in place; alone it stays as it is."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor)


def take_from(tensor: Tensor, rank: int = 0) -> None:
    """Replace a tensor by that of process ``rank``, in place; alone it stays as it is."""
    if rank_and_world()[1] > 1:
        dist.broadcast(tensor, rank)


@contextmanager
def one_first() -> Iterator[None]:
    """Let one process run the body before the others, which find what it has stored.

    The first process of all goes first, then the first of each machine, which may have a cache of
    its own, then the rest. Where the body raises the others are not left waiting: they go on and
    meet the same.
    """
    from accelerate import PartialState  # not for the objective, which reads the functions above

    state = PartialState()
    with (
        _before_others(state.is_main_process, state.wait_for_everyone),
        _before_others(state.is_local_main_process, state.wait_for_everyone),
    ):
        yield


@contextmanager
def _before_others(is_first: bool, wait: Callable[[], None]) -> Iterator[None]:
    if not is_first:
        wait()
    try:
        yield
    finally:
        if is_first:
            wait()


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes in the order of the ranks; the gradient flows back.

    Every process joins, also one that has no row. Shapes ``(M, D)`` to ``(sum of M, D)``; the
    input itself where there is one process.
    """
    if rank_and_world()[1] == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _GatherRows(torch.autograd.Function):
    """All-gather of different row counts; backward sums what every process did with the rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        own = torch.tensor([len(rows)], device=rows.device)
        sizes = [torch.zeros_like(own) for _ in range(rank_and_world()[1])]
        dist.all_gather(sizes, own)
        counts = [int(size) for size in sizes]
        padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows)))
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded.contiguous())
        ctx.counts = counts  # type: ignore[attr-defined]
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        parts: tuple[Tensor, ...] = torch.split(grad, ctx.counts)  # type: ignore[attr-defined]
        return parts[rank_and_world()[0]]
