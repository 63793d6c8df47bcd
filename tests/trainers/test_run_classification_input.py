"""Runs of classification on what cannot work: one sentence and the right exit status."""

from __future__ import annotations

import logging

import pytest

from balora.cli import main
from support.classification import make_classifier, save_body
from support.classification_runs import error_of, rows_of, write
from support.models import make_model, make_tokenizer

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
    "generation only": (
        ["--temperature", "2.0"],
        "`--temperature` is a field of text generation only",
    ),
    "full with consistency": (
        ["--method", "full", "--lora_r", "-", "--lora_alpha", "-", "--consistency_coef", "0.1"],
        "`consistency_coef` is 0.1, but full fine-tuning would need",
    ),
    "out of domain": (
        ["--out_of_domain", "[{name: x, dataset_name: ./nowhere.csv}]"],
        "out_of_domain, `x`: `dataset_name` is ./nowhere.csv, which does not exist",
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
    said = [record for record in caplog.records if "a batch has one example" in record.message]
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
    for field in ("label_noise", "class_names", "label_map", "prompt_column", "space"):
        assert f"\n{field}: " in printed


def test_a_head_for_other_classes_is_replaced_where_the_message_says_so(
    train, models, tmp_path, capsys
):
    base = make_classifier("bert", num_labels=5).model
    base.save_pretrained(tmp_path / "headed")
    make_tokenizer().save_pretrained(tmp_path / "headed")
    words = ("--model_name_or_path", str(tmp_path / "headed"), "--num_train_epochs", "1")
    assert train(*words) == 2
    told = error_of(capsys)
    assert "has a head for 5 classes already, but the data need 2" in told
    assert "set `ignore_mismatched_sizes: true`" in told
    assert train(*words, "--ignore_mismatched_sizes", "true") == 0
    # what was trained is measured, on the base whose own head makes room
    assert main(["eval", str(tmp_path / "out"), "--base", str(tmp_path / "headed")]) == 0


def test_rows_beyond_the_positions_are_refused_before_training(train, tmp_path, capsys):
    base = make_model("roberta", max_position_embeddings=34)
    base.save_pretrained(tmp_path / "short")
    make_tokenizer().save_pretrained(tmp_path / "short")
    words = ("--model_name_or_path", str(tmp_path / "short"), "--ignore_mismatched_sizes", "true")
    rows = [*rows_of("single"), {"text": "red " * 20, "label": "warm"}]
    assert train(*words, rows=rows) == 2
    assert "train.jsonl, line 13: it has 80 tokens, but the model has 32 pos" in error_of(capsys)
    assert train(*words, "--max_length", "32", "--num_train_epochs", "1", rows=rows) == 0
    test = write(tmp_path / "long.jsonl", rows)
    assert train(*words, "--eval_dataset_name", test, "--output_dir", str(tmp_path / "two")) == 2
    assert "long.jsonl, line 13: it has 80 tokens" in error_of(capsys)
