"""Runs of classification and regression from the command line to their results, on tiny models."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from balora.cli import main, overrides
from balora.evaluation.classification_run import load_classification_run
from balora.evaluation.results import read_results
from tiny_classification import save_body
from tiny_models import make_tokenizer

WORDS = ("red", "green", "blue")


def rows_of(kind: str, number: int = 12) -> list[dict[str, Any]]:
    """Return rows of a text or two, and a label that their words decide."""
    rows = []
    for i in range(number):
        one, other = WORDS[i % 3], WORDS[(i * 2) % 3]
        row = {"text": f"{one} {i}", "label": "warm" if one == "red" else "cold"}
        if kind == "pair":
            label = "same" if one == other else "other"
            row = {"first": f"{one} {i}", "second": other, "verdict": label}
        elif kind == "regression":
            row = {"text": f"{one} {i}", "label": str(i % 3 / 2)}
        elif kind == "mnli":
            names = ("entailment", "neutral", "contradiction")
            row = {"premise": f"{one} {i}", "hypothesis": other, "label": names[i % 3]}
        rows.append(row)
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as the ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)
    with path.open("w", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the folder of a tiny pre-trained body with its tokenizer, by architecture."""
    root = tmp_path_factory.mktemp("models")

    def folder(architecture: str) -> str:
        path = root / architecture
        if not path.exists():
            save_body(path, architecture)
            make_tokenizer().save_pretrained(path)
        return str(path)

    return folder


@pytest.fixture
def train(models, tmp_path) -> Callable[..., int]:
    """Run `balora train` on a tiny BERT with some fields changed; return its exit status."""

    def run(*options: str, rows: Sequence[dict[str, Any]] | None = None) -> int:
        fields = {
            "task": "classification",
            "model_name_or_path": models("bert"),
            "dataset_name": write(tmp_path / "train.jsonl", rows or rows_of("single")),
            "eval_dataset_name": write(tmp_path / "test.jsonl", rows_of("single", 7)),
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": "2",
            "per_device_train_batch_size": "4",
            "learning_rate": "1e-2",
            "lora_r": "2",
            "lora_alpha": "4",
            "disable_tqdm": "true",
            "save_strategy": "no",
            "logging_steps": "1",
        }
        given = overrides(options)
        words = [f"--{name}={value}" for name, value in (fields | given).items() if value != "-"]
        return main(["train", *words])

    return run


def results_of(folder: Path) -> dict[str, Any]:
    return read_results(folder)


def error_of(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("balora: ")]
    assert len(lines) == 1
    return lines[0]


# every task type and every method


def test_a_run_leaves_an_adapter_a_recipe_and_results(train, tmp_path, capsys):
    assert train() == 0
    saved = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "adapter_model.safetensors",
        "anchor.safetensors",
        "recipe.yaml",
        "environment.json",
        "results.json",
        "tokenizer.json",
    } <= saved
    results = results_of(tmp_path / "out")
    assert (results["task"], results["method"], results["seed"]) == ("classification", "balora", 42)
    assert results["class_names"] == ["cold", "warm"]
    assert results["primary_metric"] == "accuracy"
    assert results["num_training_rows"] == 12
    assert results["transforms"] == {}
    assert results["wall_seconds"] > 0
    assert "torch" in results["environment"]
    rows = results["per_evaluation"]["validation"]
    assert [row["epoch"] for row in rows] == [1.0, 2.0]
    assert {"loss", "accuracy", "macro_f1", "ece", "step"} <= set(rows[0])
    best = max(rows, key=lambda row: (row["accuracy"], -row["epoch"]))
    assert results["best"]["validation"] == best
    assert results["last"]["validation"] == rows[-1]
    final = results["final"]["validation"]
    assert final["num_rows"] == 7
    for name in ("accuracy", "macro_f1", "ece"):
        assert final[name] == pytest.approx(rows[-1][name], abs=1e-5)
    printed = capsys.readouterr().out
    assert "validation, best  validation, last" in printed
    assert "chosen on the data it is reported on" in printed
    assert f'PeftModel.from_pretrained(base, "{tmp_path / "out"}")' in printed


def test_pairs_from_csv(train, tmp_path):
    data = write(tmp_path / "pairs.csv", rows_of("pair"))
    columns = ("--text_column", "first", "--text_pair_column", "second", "--label_column")
    words = ("--dataset_name", data, "--eval_dataset_name", data, *columns, "verdict")
    assert train(*words) == 0
    assert results_of(tmp_path / "out")["class_names"] == ["other", "same"]


def test_regression_from_tsv(train, tmp_path, capsys):
    data = write(tmp_path / "scores.tsv", rows_of("regression"))
    words = ("--task", "regression", "--dataset_name", data, "--eval_dataset_name", data)
    assert train(*words) == 0
    results = results_of(tmp_path / "out")
    assert results["class_names"] is None
    assert results["primary_metric"] == "pearson"
    assert set(results["final"]["validation"]) == {"num_rows", "pearson", "spearman", "mse"}
    assert "Pearson correlation" in capsys.readouterr().out


HANS = [
    {"premise": f"{WORDS[i % 3]} {i}", "hypothesis": "red", "label": label, "kind": kind}
    for i, (label, kind) in enumerate(
        [("entailment", "a"), ("non-entailment", "a"), ("non-entailment", "b"), ("?", "b")] * 2
    )
]


@pytest.fixture
def mnli(train, tmp_path) -> Callable[..., int]:
    """Run MNLI from a folder with its two validation splits and a 2-way set out of domain."""
    folder = tmp_path / "mnli"
    for name, number in (("train", 12), ("validation_matched", 5), ("validation_mismatched", 6)):
        write(folder / f"{name}.jsonl", rows_of("mnli", number))
    hans = write(tmp_path / "hans.jsonl", HANS)
    label_map = "{entailment: entailment, non-entailment: [neutral, contradiction], '?': null}"
    sets = (
        f"[{{name: hans, dataset_name: {hans}, label_map: {label_map}, group_column: kind}},"
        f" {{name: plain, dataset_name: {folder / 'validation_matched.jsonl'}}}]"
    )

    def run(*options: str) -> int:
        data = ("--task", "mnli", "--dataset_name", str(folder), "--eval_dataset_name", "-")
        return train(*data, "--out_of_domain", sets, *options)

    return run


def test_three_classes_two_validation_sets_and_two_classes_out_of_domain(mnli, tmp_path, capsys):
    assert mnli() == 0
    results = results_of(tmp_path / "out")
    assert list(results["final"]) == list(results["per_evaluation"]) == ["matched", "mismatched"]
    assert [len(rows) for rows in results["per_evaluation"].values()] == [2, 2]
    assert [results["final"][name]["num_rows"] for name in results["final"]] == [5, 6]
    outside = results["out_of_domain"]
    assert list(outside) == ["hans", "plain"]
    assert outside["hans"]["num_rows"] == 6  # the rows of `?` are left out
    assert outside["hans"]["worst_group"]["name"] in ("a", "b")
    assert outside["hans"]["worst_group"]["value"] <= outside["hans"]["accuracy"]
    assert "worst_group" not in outside["plain"]
    # the same rows under another name
    assert outside["plain"] == results["final"]["matched"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("matched, best", "mismatched, last", "hans (OOD)"))
    assert "worst group" in printed


METHODS = {
    "full": ("--method", "full", "--lora_r", "-", "--lora_alpha", "-"),
    "lora": ("--method", "lora"),
    "pissa": ("--method", "pissa"),
    "balora": ("--method", "balora"),
    "only diversity": ("--method", "pissa", "--diversity_coef", "4e-4"),
    "in features": ("--method", "balora", "--space", "features"),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, train, tmp_path):
    assert train(*METHODS[method]) == 0
    out = tmp_path / "out"
    results = results_of(out)
    assert results["method"] == METHODS[method][1]
    counts = results["trained_parameters"]
    assert (counts["head"], counts["total"]) == (32 * 2 + 2, sum(counts.values()) // 2)
    if method == "full":
        assert counts["adapter"] == 0 < counts["encoder"]
        assert (out / "model.safetensors").is_file()
    else:
        # in 2 layers query, key, value, the output of attention, and the MLP; then the pooler
        of_layer = 4 * (32 + 32) + 2 * (32 + 48)
        assert (counts["adapter"], counts["encoder"]) == (2 * (2 * of_layer + 32 + 32), 0)
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    terms = {key for row in log for key in row if key.endswith("_loss")}
    terms -= {"eval_loss", "train_loss"}
    expected = {"task_loss"}
    if results["method"] == "balora":
        expected |= {"consistency_loss", "diversity_loss", "svd_loss"}
    if method == "only diversity":
        expected |= {"diversity_loss"}
    assert terms == expected


def test_a_decoder_pools_and_pads(train, models, tmp_path):
    words = ("--model_name_or_path", models("gpt2"), "--lora_target_modules", "query_key_value")
    assert train(*words) == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["c_attn"]
    assert config["fan_in_fan_out"] is True
    assert main(["eval", str(tmp_path / "out"), "--base", models("gpt2")]) == 0


def test_a_decoder_that_takes_no_token_types(train, models):
    assert train("--model_name_or_path", models("llama"), "--num_train_epochs", "1") == 0


@pytest.mark.parametrize(
    ("word", "layers"),
    [
        ("query_value", {"query", "value"}),
        ("query_key_value", {"query", "key", "value"}),
        ("all", {"query", "key", "value", "intermediate.dense", "output.dense"}),
    ],
)
def test_words_for_the_papers_layers(word, layers, train, tmp_path):
    words = ("--lora_target_modules", word, "--num_train_epochs", "1", "--method", "lora")
    assert train(*words) == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == layers
    assert f"lora_target_modules: {word}" in (tmp_path / "out" / "recipe.yaml").read_text()


# what is saved


PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, adapter = sys.argv[1:]
torch.manual_seed(12345)
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
with torch.no_grad():
    print(json.dumps(model(**tokenizer("red 5", return_tensors="pt")).logits.tolist()))
assert "balora" not in sys.modules
"""


def test_plain_peft_gives_the_same_logits_in_a_fresh_process_with_another_seed(
    train, models, tmp_path, monkeypatch
):
    from balora.trainers import run_classification

    kept = []
    make = run_classification.BALoraTrainer
    monkeypatch.setattr(
        run_classification, "BALoraTrainer", lambda *a, **k: kept.append(make(*a, **k)) or kept[0]
    )
    assert train() == 0
    model, tokenizer = kept[0].model.eval(), kept[0].processing_class
    with torch.no_grad():
        expected = model(**tokenizer("red 5", return_tensors="pt")).logits
    command = [sys.executable, "-c", PLAIN_PEFT, models("bert"), str(tmp_path / "out")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = torch.tensor(json.loads(printed.strip().splitlines()[-1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # the head is trained: a new one would not give these logits
    again, _ = load_classification_run(tmp_path / "out", models("bert"), ("cold", "warm"))
    with torch.no_grad(), again.disable_adapter():
        other = again(**tokenizer("red 5", return_tensors="pt")).logits
    assert not torch.allclose(other, expected, atol=1e-3)


def test_the_seed_draws_the_head_and_a_run_can_be_repeated(train, tmp_path):
    def weights(name: str, seed: str) -> bytes:
        assert train("--output_dir", str(tmp_path / name), "--seed", seed) == 0
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    first = weights("a", "1")
    assert weights("b", "1") == first
    assert weights("c", "2") != first


def test_the_saved_recipe_is_flat_names_the_classes_and_loads(train, tmp_path, capsys):
    saving = ("--save_strategy", "epoch")
    assert train(*saving) == 0
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-6"):
        text = (folder / "recipe.yaml").read_text()
        assert "class_names:\n- cold\n- warm\n" in text
        assert "task: classification" in text
    assert main(["train", "--config", str(tmp_path / "out" / "recipe.yaml"), "--dry_run"]) == 0
    assert "label_noise: 0.0" in capsys.readouterr().out


def test_a_resumed_run_is_the_run_that_never_stopped(train, tmp_path):
    saving = ("--save_strategy", "epoch")
    assert train(*saving) == 0
    whole = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    results = results_of(tmp_path / "out")
    # the second checkpoint was cut off while it was written
    (tmp_path / "out" / "checkpoint-6" / "trainer_state.json").unlink()
    assert train(*saving, "--resume_from_checkpoint", "true") == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == whole
    again = results_of(tmp_path / "out")
    for name in ("final", "best", "last", "class_names", "trained_parameters"):
        assert again[name] == results[name]
    assert [row["epoch"] for row in again["per_evaluation"]["validation"]] == [1.0, 2.0]


def test_output_that_is_not_empty_is_refused(train, tmp_path, capsys):
    assert train("--num_train_epochs", "1") == 0
    capsys.readouterr()
    assert train() == 2
    assert "is not empty. Name another folder" in error_of(capsys)


def test_dry_run_writes_nothing(train, tmp_path, capsys):
    assert train("--dry_run") == 0
    assert "task: classification" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_transforms_are_recorded(train, tmp_path):
    words = ("--label_noise", "0.5", "--class_fractions", "{cold: 0.5}", "--transform_seed", "3")
    assert train(*words) == 0
    results = results_of(tmp_path / "out")
    assert results["num_training_rows"] == 8  # all 4 warm rows, half of the 8 cold ones
    record = json.dumps(results["transforms"])
    assert "0.5" in record
    assert "3" in record


# evaluation


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
    assert all(name in printed for name in ("out:", "matched", "hans (OOD)", "worst group"))
    found = json.loads(figures.read_text())["out"]
    for part, expected in (("evaluation", "final"), ("out_of_domain", "out_of_domain")):
        assert found[part].keys() == results[expected].keys()
        for name, row in results[expected].items():
            assert found[part][name] == {
                key: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
                for key, value in row.items()
            }


@pytest.mark.parametrize("method", ["full", "lora"])
def test_eval_on_other_rows_and_of_several_runs(method, train, models, tmp_path, capsys):
    assert train(*METHODS[method], "--output_dir", str(tmp_path / "one")) == 0
    assert train("--output_dir", str(tmp_path / "two")) == 0
    other = write(tmp_path / "other.csv", rows_of("single", 9))
    figures = tmp_path / "figures.json"
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    words = ["eval", *runs, "--base", models("bert"), "--json", str(figures)]
    assert main([*words, "--eval_dataset_name", other, "--num_rows", "8"]) == 0
    found = json.loads(figures.read_text())
    assert {name: run["evaluation"]["validation"]["num_rows"] for name, run in found.items()} == {
        "one": 8,
        "two": 8,
    }
    printed = capsys.readouterr().out
    assert printed.index("one:") < printed.index("two:")
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
        (["--eval_dataset_name", "./nowhere.csv"], "nowhere.csv does not exist"),
        (["--max_length", "0"], "`--max_length` must be 1 or greater"),
        (["--retention_file", "x.txt"], "`--retention_file` acts on runs of text generation only"),
        (["--max_new_tokens", "3"], "`--max_new_tokens` acts on runs of text generation only"),
        (["--base", "./nowhere"], "`--base` './nowhere' cannot be loaded: there is no such folder"),
    ],
)
def test_eval_refuses(words, sentence, train, models, tmp_path, capsys):
    assert train("--num_train_epochs", "1") == 0
    capsys.readouterr()
    base = [] if "--base" in words else ["--base", models("bert")]
    assert main(["eval", str(tmp_path / "out"), *base, *words]) == 2
    assert sentence in error_of(capsys)


def test_eval_refuses_runs_of_two_kinds_and_a_run_without_rows(train, models, tmp_path, capsys):
    assert train("--num_train_epochs", "1", "--eval_dataset_name", "-") == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text("dataset_name: x.jsonl\n")
    capsys.readouterr()
    words = ["eval", str(tmp_path / "out"), "--base", models("bert")]
    assert main(["eval", str(other), *words[1:]]) == 2
    assert "holds no run of classification" in error_of(capsys)
    assert main(words) == 2
    assert "names no rows to evaluate on. Pass `--eval_dataset_name`" in error_of(capsys)


# bad input


ROWS = rows_of("single")
BAD_ROWS = {
    "label outside the classes": (
        ["--class_names", "cold,hot"],
        ROWS,
        "train.jsonl, line 1: `label` is `warm`, which is none of the classes cold, hot",
    ),
    "missing column": (
        ["--label_column", "star"],
        ROWS,
        "`label_column` is star, but ",
    ),
    "null text": ([], [*ROWS, {"text": None, "label": "warm"}], "train.jsonl, line 13: "),
    "null label": ([], [*ROWS, {"text": "red", "label": None}], "train.jsonl, line 13: "),
    "text for a number": (
        ["--task", "regression"],
        ROWS,
        "train.jsonl, line 1: `label` is the text `warm`, which is no number",
    ),
    "one class": ([], [{"text": "red", "label": "warm"}] * 4, "one class leaves nothing to learn"),
    "label of the evaluation": (
        [],
        [{"text": row["text"], "label": "x" + str(row["label"])} for row in ROWS],
        "test.jsonl, line 1: `label` is `warm`, which is none of the classes xcold, xwarm",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_one_sentence_and_status_2(case, train, tmp_path, capsys):
    options, rows, sentence = BAD_ROWS[case]
    assert train(*options, rows=rows) == 2
    assert sentence in error_of(capsys)
    assert not (tmp_path / "out").exists()


BAD_SETTINGS = {
    "missing model": (["--model_name_or_path", "./no-model"], "`model_name_or_path` './no-model'"),
    "no targets": (["--lora_target_modules", "nothing"], "match no linear layer"),
    "rank": (["--lora_r", "33"], "`lora_r` is 33"),
    "unknown task": (["--task", "cloa"], "did you mean `cola`"),
    "generation only": (["--temperature", "2.0"], "acts in text generation only"),
    "full with consistency": (
        ["--method", "full", "--lora_r", "-", "--lora_alpha", "-", "--consistency_coef", "0.1"],
        "`consistency_coef` is 0.1, but full fine-tuning would need",
    ),
    "out of domain": (
        ["--out_of_domain", "[{name: x, dataset_name: ./nowhere.csv}]"],
        "out_of_domain, `x`: ./nowhere.csv does not exist",
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_one_sentence_and_status_2(case, train, tmp_path, capsys):
    options, sentence = BAD_SETTINGS[case]
    assert train(*options) == 2
    assert sentence in error_of(capsys)
    out = tmp_path / "out"
    assert not out.exists() or not any(out.iterdir())


def test_words_for_layers_need_an_architecture_that_has_them(train, models, capsys):
    words = ("--model_name_or_path", models("gpt2"), "--lora_target_modules", "query_value")
    assert train(*words) == 2
    assert "`query_value` is no choice of layers for `gpt2`" in error_of(capsys)


def test_a_length_that_the_tokenizer_does_not_have(train, tmp_path, capsys):
    folder = tmp_path / "short"
    save_body(folder, "bert")
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    assert train("--model_name_or_path", str(folder)) == 2
    assert "`max_length` is 128, but " in (error := error_of(capsys))
    assert "takes 64 tokens at most" in error


def test_a_batch_of_one_row_is_said_once(train, caplog):
    with caplog.at_level(logging.WARNING, logger="balora"):
        assert train("--per_device_train_batch_size", "1") == 0
    said = [record for record in caplog.records if "a batch of one example" in record.message]
    assert len(said) == 1


def test_a_loss_that_is_nan_names_step_term_and_rows(train, capsys):
    assert train("--learning_rate", "1e30", "--lr_scheduler_type", "constant") == 1
    error = error_of(capsys)
    assert "step 2, rows " in error
    assert "Traceback" not in error


def test_a_run_that_fails_leaves_no_figures_of_the_one_it_replaces(train, tmp_path):
    assert train("--num_train_epochs", "1") == 0
    assert train("--overwrite", "--learning_rate", "1e30", "--lr_scheduler_type", "constant") == 1
    assert not (tmp_path / "out" / "results.json").exists()


def test_help_lists_the_fields_of_both_kinds(capsys):
    assert main(["train", "--help_fields"]) == 0
    printed = capsys.readouterr().out
    for field in ("--label_noise", "--class_names", "  label_map (", "--prompt_column", "--space"):
        assert field in printed
