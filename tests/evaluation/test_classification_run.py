"""Evaluation during a run of classification, and of finished ones by `balora eval`."""

from __future__ import annotations

import json

import pytest

from balora.cli import main
from support.classification_runs import METHODS, error_of, results_of, rows_of, write


def test_without_evaluation_data_there_is_none(train, tmp_path, capsys):
    assert train("--eval_dataset_name", "-", "--num_train_epochs", "1") == 0
    results = results_of(tmp_path / "out")
    assert results["per_evaluation"] == results["final"] == results["best"] == {}
    assert "task classification, method balora, seed 42" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("--eval_strategy", "epoch"),
        ("--load_best_model_at_end", "true", "--save_strategy", "epoch"),
        ("--eval_on_start", "true"),
    ],
    ids=lambda words: words[0],
)
def test_evaluation_that_is_asked_for_needs_data(words, train, capsys):
    assert train("--eval_dataset_name", "-", *words) == 2
    assert f"`{words[0][2:]}` is {words[1]}, but there is nothing" in error_of(capsys)


def test_the_best_checkpoint_can_be_the_final_model(train, tmp_path, capsys):
    words = ("--load_best_model_at_end", "true", "--metric_for_best_model", "accuracy")
    assert train(*words, "--save_strategy", "epoch", "--num_train_epochs", "3") == 0
    results = results_of(tmp_path / "out")
    assert "checkpoint with the best accuracy" in results["final_model"]
    best = results["best"]["validation"]["accuracy"]
    assert results["final"]["validation"]["accuracy"] == pytest.approx(best)
    assert "The saved model, of the checkpoint with the best accuracy" in capsys.readouterr().out


def test_evaluation_by_steps_is_named_so(train, tmp_path):
    assert train("--eval_strategy", "steps", "--eval_steps", "2") == 0
    results = results_of(tmp_path / "out")
    assert [row["step"] for row in results["per_evaluation"]["validation"]] == [2, 4, 6]
    assert results["selection"].startswith("best: the evaluation with the highest accuracy")


def test_constant_predictions_of_a_regression_are_null(train, tmp_path):
    data = write(tmp_path / "scores.csv", rows_of("regression"))
    other = write(tmp_path / "equal.csv", [{"text": "red", "label": "1"}] * 3)
    words = ("--task", "regression", "--dataset_name", data, "--eval_dataset_name", other)
    assert train(*words) == 0
    results = results_of(tmp_path / "out")
    assert results["final"]["validation"]["pearson"] is None
    assert results["best"]["validation"] is None
    assert results["last"]["validation"]["mse"] is not None


def test_eval_of_the_finished_run_gives_its_own_figures(mnli, models, tmp_path, capsys):
    assert mnli() == 0
    results = results_of(tmp_path / "out")
    figures = tmp_path / "figures.json"
    capsys.readouterr()
    words = ["eval", str(tmp_path / "out"), "--base", models("bert"), "--json", str(figures)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(
        name in printed
        for name in ("out, computed in float32:", "matched", "hans (OOD)", "worst group")
    )
    found = json.loads(figures.read_text())["out"]
    for part, expected in (("evaluation", "final"), ("out_of_domain", "out_of_domain")):
        assert found[part].keys() == results[expected].keys()
        for name, row in results[expected].items():
            assert found[part][name] == {
                key: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
                for key, value in row.items()
            }


@pytest.mark.parametrize("method", ["full", "lora"])
def test_eval_on_other_rows_and_of_several_runs(method, finished, train, models, tmp_path, capsys):
    assert train(*METHODS[method], "--output_dir", str(tmp_path / "one")) == 0
    capsys.readouterr()
    other = write(tmp_path / "other.csv", rows_of("single", 9))
    figures = tmp_path / "figures.json"
    runs = [str(tmp_path / "one"), str(finished)]
    words = ["eval", *runs, "--base", models("bert"), "--json", str(figures)]
    assert main([*words, "--eval_dataset_name", other, "--num_rows", "8"]) == 0
    found = json.loads(figures.read_text())
    assert {name: run["evaluation"]["validation"]["num_rows"] for name, run in found.items()} == {
        "one": 8,
        "out": 8,
    }
    printed = capsys.readouterr().out
    assert printed.index("one, computed") < printed.index("out, computed")
    assert main([*words, "--dataset_name", other]) == 0
    found = json.loads(figures.read_text())
    assert found["one"]["evaluation"]["validation"]["num_rows"] == 9


def test_a_runs_own_split_is_not_looked_for_in_other_rows(train, models, tmp_path):
    split = ("--eval_dataset_name", "-", "--dataset_test_split", "train[:3]")
    assert train("--num_train_epochs", "1", *split) == 0
    figures, other = tmp_path / "figures.json", write(tmp_path / "o.csv", rows_of("single", 9))
    words = ["eval", str(tmp_path / "out"), "--base", models("bert"), "--json", str(figures)]
    for given, number in ((["--eval_dataset_name", other], 9), ([], 3)):
        assert main([*words, *given]) == 0
        found = json.loads(figures.read_text())["out"]["evaluation"]["validation"]
        assert found["num_rows"] == number


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--eval_dataset_nam", "x"], "did you mean `eval_dataset_name`"),
        (["--eval_dataset_name", "./nowhere.csv"], "nowhere.csv, which does not exist"),
        (["--max_length", "0"], "`--max_length` must be 1 or greater"),
        (["--retention_file", __file__], "`--retention_file` acts on runs of text generation only"),
        (["--max_new_tokens", "3"], "`--max_new_tokens` acts on runs of text generation only"),
        (["--base", "./nowhere"], "`--base` './nowhere' cannot be loaded: there is no such folder"),
    ],
)
def test_eval_refuses(words, sentence, finished, models, capsys):
    capsys.readouterr()
    base = [] if "--base" in words else ["--base", models("bert")]
    assert main(["eval", str(finished), *base, *words]) == 2
    assert sentence in error_of(capsys)


def test_eval_refuses_runs_of_two_kinds_and_a_run_without_rows(train, models, tmp_path, capsys):
    assert train("--num_train_epochs", "1", "--eval_dataset_name", "-") == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text("dataset_name: x.jsonl\n")
    capsys.readouterr()
    words = ["eval", str(tmp_path / "out"), "--base", models("bert")]
    assert main(["eval", str(other), *words[1:]]) == 2
    assert "evaluate them apart" in error_of(capsys)
    assert main(words) == 2
    assert "names no rows to evaluate on. Pass `--eval_dataset_name`" in error_of(capsys)
