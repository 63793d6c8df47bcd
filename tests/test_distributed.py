"""One process alone; two are in `trainers/test_distributed.py`."""

from __future__ import annotations

import torch

from balora.distributed import add_up, gather_rows, rank_and_world, take_from
from balora.environment import launched


def test_what_one_process_holds_stays_as_it_is(rng):
    rows = torch.randn(3, 2, generator=rng)
    before = rows.clone()
    assert gather_rows(rows) is rows
    add_up(rows)
    take_from(rows)
    assert torch.equal(rows, before)
    assert rank_and_world() == (0, 1)


def test_what_a_launcher_has_set_is_read_without_a_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched() == (2, 4)
