"""`balora train` with a task: two processes give the figures of one, of uneven rows too."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.classification import save_body
from support.classification_runs import rows_of, write
from support.models import make_tokenizer
from support.two_processes import run_one_and_two

SCRIPT = Path(__file__).with_name("process_run_classification.py")
NUM_TEST_ROWS = 13  # odd: the processes do not have the same number


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    save_body(folder / "model", "bert")
    make_tokenizer().save_pretrained(folder / "model")
    write(folder / "train.jsonl", rows_of("single", 24))
    write(folder / "test.jsonl", rows_of("single", NUM_TEST_ROWS))
    return run_one_and_two(SCRIPT, folder)


def test_every_process_ends_well(runs):
    assert [runs[name]["status"] for name in ("one", "two", "second")] == [0, 0, 0]


def test_every_evaluation_is_that_of_one_process(runs):
    one, two = (runs[name]["results"]["per_evaluation"]["validation"] for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for row, other in zip(one, two, strict=True):
        # the Trainer's mean loss counts the rows twice that fill up the last batch
        assert row.pop("loss") == pytest.approx(other.pop("loss"), rel=0.02)
        assert row == pytest.approx(other, abs=1e-5)


def test_the_final_model_is_measured_on_every_row_once(runs):
    one, two = (runs[name]["results"]["final"]["validation"] for name in ("one", "two"))
    assert one["num_rows"] == two["num_rows"] == NUM_TEST_ROWS
    for name in ("majority_class", "predicted"):  # approx takes no mapping within a mapping
        assert one.pop(name) == two.pop(name)
    assert one == pytest.approx(two, abs=1e-5)
