"""`--dry_run`: every refusal that needs no weights is made, none is read, and nothing stays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from balora.cli import main, overrides
from balora.models.blank import blank_model
from support.bad_values import listing
from support.classification import save_body
from support.models import make_model, make_tokenizer

ROWS = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(8)]
LABELLED = [{"text": f"text {i}", "label": "pos" if i % 2 else "neg"} for i in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with data and with models whose weights would be refused when they are read."""
    root = tmp_path_factory.mktemp("place")
    make_model("llama").save_pretrained(root / "llama")
    save_body(root / "bert", "bert")
    for name in ("llama", "bert"):
        make_tokenizer().save_pretrained(root / name)
        file = root / name / "model.safetensors"
        weights = {key: weight * math.nan for key, weight in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
    for name, rows in (("rows", ROWS), ("labelled", LABELLED)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "empty.jsonl").write_text("")
    (root / "long.jsonl").write_text(json.dumps({"prompt": "1" * 40, "completion": "2"}) + "\n")
    return root


@pytest.fixture
def dry(place, monkeypatch) -> Callable[..., int]:
    monkeypatch.chdir(place)

    def run(kind: str, *options: str) -> int:
        fields = {"output_dir": "out", "lora_r": "2", "lora_alpha": "2", "max_steps": "2"}
        if kind == "generation":
            fields |= {"model_name_or_path": "llama", "dataset_name": "rows.jsonl"}
        else:
            fields |= {"model_name_or_path": "bert", "dataset_name": "labelled.jsonl"}
            fields |= {"task": "classification"}
        words = [f"--{name}={value}" for name, value in (fields | overrides(options)).items()]
        return main(["train", "--dry_run", *words])

    return run


@pytest.mark.parametrize("kind", ["generation", "classification"])
@pytest.mark.parametrize("method", ["full", "lora", "pissa", "balora"])
def test_a_run_that_can_start_passes_without_its_weights(kind, method, dry, place, capsys):
    before = listing(place)
    rank = ("--lora_r=null", "--lora_alpha=null") if method == "full" else ()
    assert dry(kind, "--method", method, *rank) == 0
    assert f"method: {method}" in capsys.readouterr().out
    assert listing(place) == before


REFUSED = {
    "model": (["--model_name_or_path", "./gone"], "`model_name_or_path` './gone'"),
    "data": (["--dataset_name", "gone.jsonl"], "gone.jsonl"),
    "no rows": (["--dataset_name", "empty.jsonl"], "empty.jsonl"),
    "rank": (["--lora_r", "33"], "`lora_r` is 33, but `"),
    "targets": (["--lora_target_modules", "nothing"], "`lora_target_modules` 'nothing' match no"),
    "output": (["--output_dir", "rows.jsonl/x"], "`output_dir` 'rows.jsonl/x'"),
    "resume": (["--resume_from_checkpoint", "true"], "`resume_from_checkpoint` is true"),
    "optimizer": (["--optim", "adamw_bnb_8bit"], "`optim` is the text `adamw_bnb_8bit`"),
    "its arguments": (["--optim_args", "nope"], "`optim_args` is the text `nope`"),
    "schedule": (["--lr_scheduler_kwargs", "{a: 1}"], "`lr_scheduler_kwargs` is {'a': 1}"),
    "tracker": (["--report_to", "comet_ml"], "`report_to` is comet_ml, which is not installed"),
    "evaluation": (["--eval_strategy", "steps"], "nothing to evaluate on"),
}
OF_GENERATION = {
    "column": (
        ["--prompt_column", "question", "--response_column", "completion"],
        "`question`",
    ),
    "cut off": (["--dataset_name", "long.jsonl", "--max_length", "20"], "long.jsonl, line 1: "),
    "template": (["--chat_template_path", "gone.jinja"], "`chat_template_path` 'gone.jinja'"),
}
OF_CLASSIFICATION = {
    "column": (["--label_column", "stars"], "`label_column` is stars"),
    "classes": (["--class_names", "[pos, meg]"], "neg"),
}
CASES = [
    *(("generation", *case) for case in (REFUSED | OF_GENERATION).items()),
    *(("classification", *case) for case in (REFUSED | OF_CLASSIFICATION).items()),
]


@pytest.mark.parametrize(("kind", "name", "case"), CASES, ids=[f"{k}-{n}" for k, n, _ in CASES])
def test_what_needs_no_weights_is_refused(kind, name, case, dry, place, capsys):
    options, sentence = case
    before = listing(place)
    assert dry(kind, *options) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("balora: ")]
    assert sentence in line
    assert listing(place) == before


def test_quickstart_and_lab_are_checked_without_a_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = listing(place)
    assert main(["quickstart", "--dry_run", "--output_dir", "out"]) == 0
    assert "method: balora" in capsys.readouterr().out
    assert main(["quickstart", "--dry_run", "--output_dir", "out", "--lora_r", "9999"]) == 2
    assert "balora: `lora_r` is 9999" in capsys.readouterr().err
    assert main(["lab", "--dry_run", "--noise_rate", "0.4"]) == 0
    assert "noise_rate: 0.4" in capsys.readouterr().out
    assert listing(place) == before


def test_compare_checks_the_run_of_every_method(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ["compare", "--dry_run", "--model_name_or_path", "llama", "--dataset_name"]
    words += ["rows.jsonl", "--eval_dataset_name", "rows.jsonl", "--output_dir", "out"]
    words += ["--methods", "lora,pissa", "--seeds", "0,1", "--lora_alpha", "2"]
    before = listing(place)
    assert main([*words, "--lora_r", "2"]) == 0
    assert main([*words, "--lora_r", "33"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("balora: ")]
    assert "lora" in line
    assert "`lora_r` is 33" in line
    assert listing(place) == before


def test_a_wrong_field_of_the_quickstart_is_named_without_a_packaged_file(place, capsys):
    assert main(["quickstart", "--lora_r", "0"]) == 2
    error = capsys.readouterr().err
    assert "`lora_r` must be 1 or greater, got 0" in error
    assert "recipe.yaml" not in error


def test_a_blank_model_takes_no_memory_and_keeps_its_ties():
    config = make_model("llama").config
    config.tie_word_embeddings = True
    model, info = blank_model(AutoModelForCausalLM, config, {"dtype": "bfloat16"})
    assert all(p.untyped_storage().nbytes() == 2 for p in model.parameters())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert all(not p.any() for p in model.parameters())
    ids = torch.tensor([[1, 2, 3]])
    assert model(input_ids=ids).logits.shape == (1, 3, config.vocab_size)
    classifier, info = blank_model(AutoModelForSequenceClassification, config, {})
    assert info["missing_keys"] == {"score.weight"}
    assert classifier.dtype == torch.float32
