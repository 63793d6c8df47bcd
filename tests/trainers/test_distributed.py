"""Two processes of half a batch are one process of a whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from support.models import make_model
from support.training import REGULARIZERS, recomposed
from support.two_processes import run_one_and_two

SCRIPT = Path(__file__).with_name("process.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the results of one process, and of two."""
    return run_one_and_two(SCRIPT, tmp_path_factory.mktemp("runs"))


NAMES = ["plain", "accumulated", "replay", "checkpointed", "schedule", "one rank without tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_the_same(runs, name):
    one, two = runs["one"][name]["rows"], runs["two"][name]["rows"]
    assert len(one) == len(two) == 5
    for row, other in zip(two, one, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            assert row[key] == pytest.approx(other[key], abs=1e-6, rel=1e-6), key
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
    assert all(f"{term}_loss" in two[-1] for term in REGULARIZERS)
    assert two[-1]["consistency_loss"] > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same(runs, name):
    one, two, second = (runs[key][name]["gradients"] for key in ("one", "two", "second"))
    for step, other, of_rank_1 in zip(two, one, second, strict=True):
        for parameter, gradient in step.items():
            torch.testing.assert_close(gradient, other[parameter], rtol=1e-4, atol=1e-6)
            assert torch.equal(gradient, of_rank_1[parameter])


def test_rows_add_up_when_each_process_counts_its_own_tokens(runs):
    rows = runs["two"]["own counts"]["rows"]
    for row in rows:
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
    # then the row is the mean of the two processes' means, not the mean over all tokens
    first, second = (row["task_loss"] for row in runs["one"]["halves"]["rows"])
    assert rows[0]["task_loss"] == pytest.approx((first + second) / 2, abs=1e-6)
    over_all = runs["one"]["plain"]["rows"][0]["task_loss"]
    assert rows[0]["task_loss"] != pytest.approx(over_all, abs=1e-4)


def test_rows_are_gathered_in_the_order_of_the_ranks_and_gradients_summed(runs):
    rows = torch.arange(6.0).reshape(3, 2) + 1
    assert torch.equal(runs["two"]["gather"]["gathered"], rows)
    assert torch.equal(runs["second"]["gather"]["gathered"], rows)
    # d/dx of (1 + 2) x^2: what both ranks did with the rows
    assert torch.equal(runs["two"]["gather"]["grad"], 6 * rows)
    assert runs["second"]["gather"]["grad"].shape == (0, 2)


def test_two_processes_save_one_adapter(runs):
    ids = torch.arange(5, 17)[None]
    logits = [
        PeftModel.from_pretrained(make_model("llama"), runs["folder"] / number / "plain")
        .eval()(input_ids=ids)
        .logits
        for number in ("one", "two")
    ]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
    assert not list((runs["folder"] / "two" / "plain").glob(".balora-*"))
