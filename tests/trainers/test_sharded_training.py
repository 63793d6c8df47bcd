"""Two processes that split weights, gradients or optimizer train what one process trains."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from support.sharded import ENGINES, NUM_STEPS, SAVED_AT, kinds_of, saved_weights
from support.two_processes import ENVIRONMENT

pytestmark = pytest.mark.scale

CASES = [(engine, kind) for engine in ENGINES if engine != "one" for kind in kinds_of(engine)]
FULL = ("full", "full read once")
IN_4_BITS = ("4 bits", "residual")
NUM_LAYERS = 14  # that have an adapter
OF_ROWS, OF_WEIGHTS = 2e-6, 4e-6
OTHERWISE = {"in 16 bits": 1e-2, "classifier": 1e-5}
"""Products of mixed precision differ with the shape of a batch, those of a classifier's few rows
by more of their last digits."""

each_case = pytest.mark.parametrize(("engine", "kind"), CASES, ids=map(" ".join, CASES))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of all engines, and by engine and method what its first process left."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "support.sharded", str(folder), *ENGINES]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, {engine: torch.load(folder / engine / "rank-0.pt") for engine in ENGINES}


@each_case
def test_what_needs_a_whole_weight_is_computed_once(runs, engine, kind):
    folder, found = runs
    calls = found[engine][kind]["calls"]
    others = torch.load(folder / engine / "rank-1.pt")[kind]["calls"]
    assert calls["factors"] == (kind not in ("lora", "pissa", *FULL, "classifier"))
    both, one = calls["starts"] + others["starts"], found["one"][kind]["calls"]["starts"]
    assert both == one
    assert abs(calls["starts"] - others["starts"]) <= 1
    if kind not in ("classifier", "lora", *FULL, "residual"):  # that has a start of its own
        assert one == NUM_LAYERS


def tolerance_of(kind, otherwise):
    return OTHERWISE.get(kind, otherwise)


def assert_equal_rows(rows, others, tolerance=OF_ROWS):
    assert len(rows) == len(others) > 0
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if not name.endswith(("_runtime", "_per_second")):
                assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


@each_case
def test_weights_are_split(runs, engine, kind):
    found = dict(runs[1][engine][kind]["kinds"])
    whole = {name for name in found if "base_layer" in name and kind in IN_4_BITS}
    if engine == "fsdp":
        assert {found.pop(name) for name in whole} <= {"Tensor"}
    expected = {"fsdp": {"DTensor"}, "zero-3": {"ZeRO"}}
    assert set(found.values()) == expected.get(engine, {"Tensor"})


@each_case
def test_weights_are_read_by_the_first_process_alone_where_that_is_asked(runs, engine, kind):
    folder, found = runs
    other = torch.load(folder / engine / "rank-1.pt")[kind]
    assert found[engine][kind]["devices"] == {"cpu"}
    assert other["devices"] == {"meta" if "read once" in kind and engine == "fsdp" else "cpu"}


@each_case
def test_every_column_is_that_of_one_process(runs, engine, kind):
    found, one = (runs[1][name][kind] for name in (engine, "one"))
    assert len(found["rows"]) == NUM_STEPS
    assert_equal_rows(found["rows"], one["rows"], tolerance_of(kind, OF_ROWS))
    if kind == "best":
        assert_equal_rows(found["evaluations"], one["evaluations"])
    if kind not in ("lora", "pissa", *FULL):  # or the equality would say little
        assert found["rows"][0]["consistency_loss"] < 1e-6
        assert found["rows"][-1]["consistency_loss"] > (1e-5 if kind == "classifier" else 1e-3)


@each_case
def test_a_resumed_run_is_the_uninterrupted_one(runs, engine, kind):
    found = runs[1][engine][kind]
    assert len(found["resumed"]) == NUM_STEPS
    assert found["resumed"][:SAVED_AT] == found["rows"][:SAVED_AT]
    assert_equal_rows(found["resumed"][SAVED_AT:], found["rows"][SAVED_AT:])


@pytest.mark.parametrize("leg", ["", "-resumed"])
@each_case
def test_what_is_saved_loads_in_plain_peft_and_is_that_of_one_process(runs, engine, kind, leg):
    folder = runs[0]
    tolerance = tolerance_of(kind, OF_WEIGHTS)
    one = saved_weights(folder / "one" / kind, kind)
    two = saved_weights(folder / engine / f"{kind}{leg}", kind)
    base = saved_weights(None, kind)
    assert one.keys() == two.keys()
    moved = 0.0
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=tolerance, atol=tolerance)
        if name in base:  # all but a head beside which PEFT keeps the one that it began from
            moved = max(moved, float((weight - base[name]).abs().max()))
    assert moved > (1e-4 if kind == "classifier" else 1e-2)
