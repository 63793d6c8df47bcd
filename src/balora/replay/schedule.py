"""Which texts belong to which optimizer step, process and micro-step; nothing of it is a state.

The texts are put into groups once, by a seeded permutation, and every pass over the groups has an
order of its own. A group is always computed in the same batches, so that its reference, computed
once, agrees with the student's at the start bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np


@dataclass(frozen=True)
class ReplaySchedule:
    """Texts by step. A resumed run takes up the same sequence: it depends on the step alone."""

    num_texts: int
    batch_size: int
    """Texts of an optimizer step, at most."""
    every: int
    """Optimizer steps from one with replay to the next, beginning with the first."""
    seed: int

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The texts of each step of a pass: every text once, sizes that differ by 1 at most."""
        order = np.random.default_rng(self.seed).permutation(self.num_texts)
        num_groups = -(-self.num_texts // self.batch_size)
        return tuple(tuple(group.tolist()) for group in np.array_split(order, num_groups))

    def is_on(self, step: int) -> bool:
        """Return whether the optimizer step ``step``, counted from 0, replays."""
        return step % self.every == 0

    def group_at(self, step: int) -> int:
        """Return the number of the group of a step that replays."""
        turn, place = divmod(step // self.every, len(self.groups))
        return _order(self.seed, turn, len(self.groups))[place]


def share(texts: Sequence[int], index: int, number: int) -> tuple[int, ...]:
    """Return the ``index``-th of ``number`` consecutive parts, as even as can be; may be empty."""
    return tuple(np.array_split(np.asarray(texts, dtype=int), number)[index].tolist())


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, num_groups: int) -> tuple[int, ...]:
    # spawned, so that no two passes of any two seeds share an order
    generator = np.random.default_rng([seed, 1, turn])
    return tuple(generator.permutation(num_groups).tolist())
