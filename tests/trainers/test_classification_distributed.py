"""Classification: two processes of half a batch are one process of a whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from support.classification import logits_of, make_classifier
from support.training import REGULARIZERS, recomposed
from support.two_processes import run_one_and_two

SCRIPT = Path(__file__).with_name("process_classification.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the results of one process, and of two."""
    return run_one_and_two(SCRIPT, tmp_path_factory.mktemp("runs"))


NAMES = [
    "logits",
    "features",
    "binary",
    "regression",
    "accumulated",
    "lora",
    "full",
    "uneven",
    "uneven regression",
    "one row each",
    "own counts",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_the_same(runs, name):
    one, two = runs["one"][name]["rows"], runs["two"][name]["rows"]
    assert len(one) == len(two) == 4
    for row, other in zip(two, one, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            assert row[key] == pytest.approx(other[key], abs=1e-6, rel=1e-5), key
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6, rel=1e-6)
    if name != "full":
        assert all(f"{term}_loss" in two[-1] for term in REGULARIZERS)
        assert two[-1]["consistency_loss"] > 1e-5
        assert abs(two[-1]["svd_loss"]) > 0.3


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same(runs, name):
    one, two, second = (runs[key][name]["gradients"] for key in ("one", "two", "second"))
    for step, other, of_rank_1 in zip(two, one, second, strict=True):
        for parameter, gradient in step.items():
            torch.testing.assert_close(gradient, other[parameter], rtol=1e-4, atol=5e-6)
            assert torch.equal(gradient, of_rank_1[parameter])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])
def test_the_reference_is_that_of_the_first_head_in_both(runs, name):
    one, two, second = (runs[key][name]["reference"] for key in ("one", "two", "second"))
    assert torch.equal(two, second)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


def test_two_processes_save_one_adapter_with_its_head(runs):
    logits = [
        logits_of(
            PeftModel.from_pretrained(
                make_classifier(head_seed=9).model, runs["folder"] / number / "logits"
            )
        )
        for number in ("one", "two")
    ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
