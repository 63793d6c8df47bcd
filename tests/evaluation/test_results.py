"""Best and last epoch from a trainer's log, the results file, and the table."""

from __future__ import annotations

import json
import math

import pytest

from balora.errors import ConfigError
from balora.evaluation.results import (
    RESULTS_FILE,
    best_row,
    doubts,
    format_metrics,
    format_results,
    per_evaluation,
    read_results,
    selection_rule,
    write_results,
)

LOG = [
    {"loss": 1.0, "epoch": 0.5, "step": 5},
    {"eval_a_loss": 0.9, "eval_a_accuracy": 0.6, "eval_a_runtime": 3.0, "epoch": 1.0, "step": 10},
    {"eval_b_loss": 0.8, "eval_b_accuracy": 0.7, "epoch": 1.0, "step": 10},
    {"eval_a_loss": 0.7, "eval_a_accuracy": 0.5, "epoch": 2.0, "step": 20},
    {"eval_b_loss": 0.6, "eval_b_accuracy": 0.9, "epoch": 2.0, "step": 20},
    {"train_runtime": 9.0, "train_loss": 0.9, "epoch": 2.0, "step": 20},
]


def test_each_set_gets_its_own_rows_and_no_timings():
    found = per_evaluation(LOG, ["a", "b"])
    assert found["a"] == [
        {"epoch": 1.0, "step": 10, "loss": 0.9, "accuracy": 0.6},
        {"epoch": 2.0, "step": 20, "loss": 0.7, "accuracy": 0.5},
    ]
    assert [row["accuracy"] for row in found["b"]] == [0.7, 0.9]


def test_a_single_set_has_no_name_in_the_log():
    log = [{"eval_loss": 0.9, "eval_accuracy": 0.6, "epoch": 1.0, "step": 10}]
    expected = [{"epoch": 1.0, "step": 10, "loss": 0.9, "accuracy": 0.6}]
    assert per_evaluation(log, ["validation"]) == {"validation": expected}
    assert per_evaluation(log, []) == {}


@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ([0.1, 0.3, 0.2], 2),
        ([0.3, 0.1, 0.3], 1),  # the earliest of equals
        ([math.nan, -0.2, math.nan], 2),
        ([None, 0.0], 2),
        ([math.nan, None], None),
        ([], None),
    ],
)
def test_the_best_row(values, epoch):
    rows = [{"epoch": i, "pearson": value} for i, value in enumerate(values, start=1)]
    best = best_row(rows, "pearson")
    assert (best["epoch"] if best else None) == epoch


def test_the_rule_is_said_in_words():
    rule = selection_rule("accuracy")
    assert "the epoch with the highest accuracy" in rule
    assert "chosen on the data it is reported on" in rule
    assert "the evaluation with" in selection_rule("accuracy", by_epoch=False)


RESULTS = {
    "task": "mnli",
    "method": "balora",
    "seed": 3,
    "selection": selection_rule("accuracy"),
    "per_evaluation": {"a": [], "b": []},
    "best": {"a": {"epoch": 1.0, "accuracy": 0.61234, "ece": 0.1}, "b": None},
    "last": {"a": {"epoch": 2.0, "accuracy": 0.5, "ece": 0.2}, "b": None},
    "final_model": "the saved model, after the last step",
    "final": {"a": {"num_rows": 7, "accuracy": 0.5, "ece": 0.2}},
    "out_of_domain": {
        "hans": {
            "num_rows": 9,
            "accuracy": 0.4,
            "ece": 0.3,
            "worst_group": {"name": "lexical", "value": 0.25, "num_rows": 4},
        }
    },
}


def test_the_table_has_best_and_last_and_both_domains_side_by_side():
    lines = format_results(RESULTS).splitlines()
    assert lines[0] == "task mnli, method balora, seed 3"
    assert lines[2].endswith("  a, best  a, last")
    assert [line.split()[-2:] for line in lines if line.startswith("accuracy")] == [
        ["61.2%", "50.0%"],
        ["50.0%", "40.0%"],
    ]
    assert any(line.split() == ["a", "hans", "(OOD)"] for line in lines)
    assert any(line.split() == ["worst", "group", "-", "25.0%", "(lexical)"] for line in lines)
    assert "The saved model, after the last step:" in lines
    assert any("chosen on the data it is reported on." in line for line in lines)


def test_what_is_undefined_or_missing_is_a_dash():
    table = format_metrics({"x": {"pearson": math.nan}, "y": {"pearson": None, "mse": 1.0}})
    rows = {line.split("  ")[0]: line.split()[-2:] for line in table.splitlines()[2:]}
    assert rows == {"Pearson correlation": ["-", "-"], "mean squared error": ["-", "1.0000"]}
    with pytest.raises(ValueError, match="`columns` is empty"):
        format_metrics({})


def test_nan_is_written_as_null_and_the_file_comes_by_rename(tmp_path, monkeypatch):
    write_results(tmp_path, {"a": [{"pearson": math.nan}], "b": (1, 2.5)})
    text = (tmp_path / RESULTS_FILE).read_text()
    assert json.loads(text) == {"a": [{"pearson": None}], "b": [1, 2.5]}
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS_FILE]

    def crash(*_):
        raise OSError("no room")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="no room"):
        write_results(tmp_path, {"a": 2})
    assert (tmp_path / RESULTS_FILE).read_text() == text


def test_a_folder_without_results(tmp_path):
    with pytest.raises(ConfigError, match=r"has no results\.json; name a finished"):
        read_results(tmp_path)


def test_the_majority_class_stands_in_the_table():
    columns = {
        "dev": {"accuracy": 0.542, "ece": 0.1, "majority_class": {"accuracy": 0.542}},
        "other": {"accuracy": 0.7},
    }
    lines = format_metrics(columns).splitlines()
    assert [line.split() for line in lines if "majority" in line] == [
        ["accuracy,", "majority", "class", "54.2%", "-"]
    ]
    assert "majority" not in format_metrics({"dev": {"accuracy": 0.7}})


def figures(accuracy: float, num_rows: int, **predicted: int) -> dict:
    return {"accuracy": accuracy, "num_rows": num_rows, "predicted": predicted}


def test_a_constant_answer_and_one_below_chance_are_said():
    (line,) = doubts({"dev": figures(0.5, 100, neg=0, pos=100)})
    assert line.startswith("dev: every row is given the class `pos`, so nothing was learned")
    (line,) = doubts({"far": figures(0.312, 200, neg=120, pos=80)})
    assert "far: an accuracy of 31.2% is below chance (50.0%): are the labels swapped?" in line


def test_what_guessing_gets_is_said():
    # 80 of 100 rows are of one class, and 90 are given it: guesses are right for 74% of the rows
    counts = {"predicted": {"neg": 90, "pos": 10}, "present": {"neg": 80, "pos": 20}}
    (line,) = doubts({"dev": {"accuracy": 0.78, "num_rows": 100, **counts}})
    assert line.startswith(
        "dev: an accuracy of 78.0% is what guessing each class as often gets (74.0%"
    )
    assert "`method: lora`" in line
    assert doubts({"dev": {"accuracy": 0.9, "num_rows": 100, **counts}}) == []
    (line,) = doubts({"far (OOD)": {"accuracy": 0.78, "num_rows": 100, **counts}})
    assert line.endswith("so nothing shows that they are told apart.")
    # of 20 rows in 100 that are right, where guesses get 50: below chance, not merely at it
    swapped = {"predicted": {"neg": 50, "pos": 50}, "present": {"neg": 50, "pos": 50}}
    (line,) = doubts({"far (OOD)": {"accuracy": 0.2, "num_rows": 100, **swapped}})
    assert line.endswith("are the labels swapped? `label_map` puts them right.")
    (line,) = doubts({"dev": {"accuracy": 0.2, "num_rows": 100, **swapped}})
    assert "are the labels swapped? Try more epochs" in line  # there is no map for these


def test_a_correlation_of_chance_is_said():
    (line,) = doubts({"dev": {"num_rows": 100, "pearson": -0.12}})
    assert line.startswith("dev: a correlation of -0.120 is what guessing gets (0 +- 0.200)")
    assert doubts({"dev": {"num_rows": 100, "pearson": 0.3}}) == []


@pytest.mark.parametrize(
    "column",
    [
        figures(0.466, 148, neg=70, pos=78),  # within what chance explains
        figures(0.3, 200, a=70, b=70, c=60),  # three classes
        figures(0.9, 10, neg=5, pos=5),
        {"pearson": 0.8, "num_rows": 10},
        {"accuracy": 0.1, "num_rows": 100},  # an epoch's row, of the trainer's log
    ],
)
def test_nothing_is_said_of_what_may_be_chance(column):
    assert doubts({"dev": column}) == []


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_regression_that_predicts_one_number_is_said(value):
    (line,) = doubts({"validation": {"num_rows": 9, "pearson": value, "mse": 2.0}})
    assert line.startswith("validation: every row is given the same number")
    assert "`method: full`" in line
    assert not doubts({"validation": {"num_rows": 9, "pearson": 0.9, "mse": 2.0}})
    assert not doubts({"validation": {"num_rows": 1, "pearson": value, "mse": 2.0}})
