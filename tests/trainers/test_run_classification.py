"""Runs of classification and regression from the command line to what they leave."""

from __future__ import annotations

import json

import pytest
import torch

from balora.cli import main
from balora.models.run_folder import load_run
from balora.models.source import base_of_runs
from support.classification_runs import METHODS, error_of, results_of, rows_of, write

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
    assert f"PeftModel.from_pretrained(base, '{tmp_path / 'out'}')" in printed


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
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
torch.manual_seed(12345)
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
with torch.no_grad():
    logits = model(**tokenizer("red 5", return_tensors="pt")).logits
"""


def test_plain_peft_gives_the_same_logits_with_another_seed(train, models, tmp_path, monkeypatch):
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
    user = {"base": models("bert"), "adapter": str(tmp_path / "out")}
    exec(PLAIN_PEFT, user)
    torch.testing.assert_close(user["logits"], expected, rtol=0, atol=1e-5)
    # the head is trained: a new one would not give these logits
    again = load_run(tmp_path / "out", base_of_runs([tmp_path / "out"], models("bert"))).model
    with torch.no_grad(), again.disable_adapter():
        other = again(**tokenizer("red 5", return_tensors="pt")).logits
    assert not torch.allclose(other, expected, atol=1e-3)


def test_a_run_stops_early_where_nothing_improves(train, tmp_path):
    words = ["--early_stopping_patience", "1", "--load_best_model_at_end", "true"]
    words += ["--save_strategy", "epoch", "--learning_rate", "0", "--num_train_epochs", "4"]
    assert train(*words) == 0
    rows = results_of(tmp_path / "out")["per_evaluation"]["validation"]
    assert [row["epoch"] for row in rows] == [1.0, 2.0]
    assert "early_stopping_patience: 1" in (tmp_path / "out" / "recipe.yaml").read_text()


@pytest.mark.parametrize("method", ["olora", "mica"])
def test_a_start_of_pefts(method, train, tmp_path, models):
    assert train("--method", method, "--consistency_coef", "0.1", "--lora_dropout", "-") == 0
    assert results_of(tmp_path / "out")["method"] == method
    base = base_of_runs([tmp_path / "out"], models("bert"))
    assert load_run(tmp_path / "out", base).model.peft_config["default"].r == (
        4 if method == "olora" else 2
    )


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
    words = ["train", "--config", str(tmp_path / "out" / "recipe.yaml"), "--dry_run"]
    assert main([*words, "--output_dir", str(tmp_path / "other")]) == 0
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
    seconds = (results.pop("wall_seconds"), again.pop("wall_seconds"))
    assert json.dumps(again) == json.dumps(results)  # in the same order as well
    # those of the leg before the kill are counted
    record = json.loads((tmp_path / "out" / "checkpoint-3" / "run.json").read_text())
    assert min(seconds) >= round(record["progress"]["seconds"], 1) > 0


def test_a_run_killed_in_its_last_save_is_evaluated_too(train, tmp_path):
    saving = ("--save_strategy", "steps", "--save_steps", "3", "--num_train_epochs=-")
    saving = (*saving, "--max_steps", "5", "--space", "features")  # ends within an epoch
    assert train(*saving) == 0
    out = tmp_path / "out"
    whole = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    results = results_of(out)
    for name in whole:
        (out / name).unlink()
    assert train(*saving, "--resume_from_checkpoint", "true") == 0
    again = results_of(out)
    for figures in (results, again):
        del figures["wall_seconds"]
    assert json.dumps(again) == json.dumps(results)
    for name in ("adapter_model.safetensors", "anchor.safetensors", "recipe.yaml"):
        assert (out / name).read_bytes() == whole[name]
    # over and saved: there is nothing to do, and that is said
    assert train(*saving, "--resume_from_checkpoint", "true") == 2


def test_the_results_are_the_last_file(train, tmp_path, monkeypatch):
    from balora.trainers import run_classification

    card, cards = tmp_path / "out" / "README.md", []
    write = run_classification.write_results

    def noted(*arguments):
        cards.append(card.read_text())
        write(*arguments)

    monkeypatch.setattr(run_classification, "write_results", noted)
    assert train("--num_train_epochs", "1") == 0
    assert cards == [card.read_text()]
    assert "majority class" in cards[0]


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
