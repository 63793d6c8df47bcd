"""What a recipe leaves open is enough to learn what can be learnt: a small set of two kinds."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import product

import pytest

from balora.cli import main
from support.classification import save_body
from support.models import make_tokenizer

WORDS = {"yes": ("good", "fine", "great"), "no": ("bad", "poor", "awful")}
THINGS = ("film", "book", "play")


def rows(number):
    """Return so many pairs of a text and its kind; one word of the text decides."""
    every = [
        (f"{word} {thing}", kind)
        for n, thing in product(range(3), THINGS)
        for kind, words in WORDS.items()
        for word in (words[n],)
    ]
    return [every[i % len(every)] for i in range(number)]


def train(folder, model, content, **fields):
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in content))
    given = {"model_name_or_path": model, "dataset_name": data, "eval_dataset_name": data}
    given |= {"output_dir": folder / "out", "disable_tqdm": "true", **fields}
    assert main(["train", *(f"--{name}={value}" for name, value in given.items())]) == 0
    return folder / "out"


def test_a_classifier_learns_two_kinds_with_what_is_set_by_default(tmp_path):
    base = save_body(tmp_path / "base", "bert")
    make_tokenizer().save_pretrained(base)
    content = [{"text": text, "label": kind} for text, kind in rows(160)]
    out = train(tmp_path, base, content, task="classification")
    recipe = (out / "recipe.yaml").read_text()
    assert "learning_rate: 0.0005\n" in recipe
    epochs = json.loads((out / "results.json").read_text())["per_evaluation"]["validation"]
    assert epochs[-1]["accuracy"] == 1.0


@pytest.mark.slow
def test_a_language_model_learns_two_kinds_with_what_is_set_by_default(tmp_path):
    base = files("balora") / "assets" / "tiny_lm"
    known = {
        "yes": ("Adam has 9 balls.", " 9 + 1 = 10."),
        "no": ("Jacob loses 2 hats.", " The answer is: 7"),
    }
    content = [
        dict(zip(("prompt", "completion"), known[kind], strict=True)) for _, kind in rows(320)
    ]
    # the model is too small for the rank of the default
    out = train(tmp_path, base, content, lora_r=16, lora_alpha=16, eval_strategy="epoch")
    assert "learning_rate: 0.0002\n" in (out / "recipe.yaml").read_text()
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [row["eval_mean_token_accuracy"] for row in log if "eval_loss" in row][-1] > 0.99
