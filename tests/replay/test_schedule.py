"""Which texts belong to which step, process and micro-step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.replay.schedule import ReplaySchedule, share

schedules = st.builds(
    ReplaySchedule,
    num_texts=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    every=st.integers(1, 5),
    seed=st.integers(0, 9),
)


@given(schedules, st.integers(0, 3))
def test_a_pass_sees_every_text_once(schedule, turn):
    num_groups = len(schedule.groups)
    steps = range(turn * num_groups * schedule.every, (turn + 1) * num_groups * schedule.every)
    on = [step for step in steps if schedule.is_on(step)]
    seen = [text for step in on for text in schedule.groups[schedule.group_at(step)]]
    assert len(on) == num_groups
    assert sorted(seen) == list(range(schedule.num_texts))


@given(schedules)
def test_groups_are_even_and_no_larger_than_asked(schedule):
    sizes = [len(group) for group in schedule.groups]
    assert max(sizes) <= schedule.batch_size
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 10**9), max_size=20), st.integers(1, 4), st.integers(1, 5))
def test_processes_and_micro_steps_share_a_group_without_overlap(group, processes, micro_steps):
    parts = [
        share(share(group, rank, processes), micro_step, micro_steps)
        for rank in range(processes)
        for micro_step in range(micro_steps)
    ]
    assert [text for part in parts for text in part] == group


def test_the_order_is_that_of_the_seed_and_another_in_each_pass():
    def orders(seed):
        schedule = ReplaySchedule(num_texts=64, batch_size=4, every=1, seed=seed)
        steps = [[schedule.group_at(turn * 16 + i) for i in range(16)] for turn in range(3)]
        return schedule.groups, steps

    assert orders(3) == orders(3)
    groups, (first, second, third) = orders(3)
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
    assert orders(4) != (groups, [first, second, third])


@pytest.mark.parametrize(("every", "on"), [(1, [0, 1, 2, 3]), (3, [0, 3, 6])])
def test_steps_that_replay(every, on):
    schedule = ReplaySchedule(num_texts=4, batch_size=2, every=every, seed=0)
    assert [step for step in range(on[-1] + 1) if schedule.is_on(step)] == on
