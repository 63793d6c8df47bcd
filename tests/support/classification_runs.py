"""Runs of `balora train` on tiny classifiers: their rows, and the fixtures that start them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from balora.evaluation.results import read_results
from support.classification import save_body
from support.command_line import train_with
from support.models import make_tokenizer

WORDS = ("red", "green", "blue")
METHODS = {
    "full": ("--method", "full", "--lora_r", "-", "--lora_alpha", "-"),
    "lora": ("--method", "lora"),
    "pissa": ("--method", "pissa"),
    "balora": ("--method", "balora"),
    "only diversity": ("--method", "pissa", "--diversity_coef", "4e-4"),
    "in features": ("--method", "balora", "--space", "features"),
}


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


def trains_in(folder: Path, models: Callable[[str], str]) -> Callable[..., int]:
    """Return what runs `balora train` on a tiny BERT with some fields changed: its exit status."""

    def run(*options: str, rows: Sequence[dict[str, Any]] | None = None) -> int:
        fields = {
            "task": "classification",
            "model_name_or_path": models("bert"),
            "dataset_name": write(folder / "train.jsonl", rows or rows_of("single")),
            "eval_dataset_name": write(folder / "test.jsonl", rows_of("single", 7)),
            "output_dir": str(folder / "out"),
            "num_train_epochs": "2",
            "per_device_train_batch_size": "4",
            "learning_rate": "1e-2",
            "lora_r": "2",
            "lora_alpha": "4",
            "save_strategy": "no",
        }
        return train_with(fields, options)

    return run


@pytest.fixture
def train(models, tmp_path) -> Callable[..., int]:
    return trains_in(tmp_path, models)


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, for the tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    assert trains_in(folder, models)("--num_train_epochs", "1") == 0
    return folder / "out"


def results_of(folder: Path) -> dict[str, Any]:
    return read_results(folder)


def error_of(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("balora: ")]
    assert len(lines) == 1
    return lines[0]


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
