"""The two parts of the training rows."""

from __future__ import annotations

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from balora.compare.held_out import write_parts
from balora.config import DataConfig
from balora.config.classification import ClassificationConfig
from balora.data import load_examples
from balora.data.classification import load_evaluation_rows, load_training_rows
from balora.errors import ConfigError


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    found = [{"instruction": f"say {i}", "output": f"{i}", "other": i} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path, found


def test_parts_are_disjoint_whole_and_the_same_every_time(rows, tmp_path):
    path, found = rows
    config = DataConfig(dataset_name=str(path))
    parts = write_parts(config, tmp_path / "parts", 0.25)
    fit, rest = read(parts.fit), read(parts.held_out)
    assert (len(fit), len(rest)) == (15, 5)
    assert sorted(fit + rest, key=lambda row: row["other"]) == found
    assert rest != found[-5:]  # drawn, not cut off
    assert rest != found[:5]
    assert write_parts(config, tmp_path / "again", 0.25).fit.read_bytes() == parts.fit.read_bytes()
    assert not list((tmp_path / "parts").glob(".tmp*"))


def test_a_column_of_times_is_written_as_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    times = [{"instruction": "a", "created_at": f"2023-05-0{i}T12:00:00"} for i in range(1, 9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in times))
    parts = write_parts(DataConfig(dataset_name=str(path)), tmp_path / "parts", 0.25)
    found = sorted(row["created_at"] for row in read(parts.fit) + read(parts.held_out))
    assert found[0].startswith("2023-05-01")
    assert len(found) == 8


def test_only_training_rows_are_taken_and_the_columns_stay(rows, tmp_path):
    path, _ = rows
    config = DataConfig(
        dataset_name=str(path),
        dataset_train_split="train[:8]",
        dataset_test_split="train[8:]",
        prompt_column="instruction",
        response_column="output",
    )
    parts = write_parts(config, tmp_path / "parts", 0.25)
    assert {row["other"] for row in read(parts.fit) + read(parts.held_out)} == set(range(8))
    again = DataConfig(
        dataset_name=str(parts.fit), prompt_column="instruction", response_column="output"
    )
    assert load_examples(again, split="train").dataset.num_rows == 6


def test_at_least_one_row_is_held_out_and_one_is_left(rows, tmp_path):
    path, _ = rows
    config = DataConfig(dataset_name=str(path), dataset_train_split="train[:2]")
    parts = write_parts(config, tmp_path / "parts", 0.01)
    assert (len(read(parts.fit)), len(read(parts.held_out))) == (1, 1)
    with pytest.raises(
        ConfigError, match=r"`held_out_fraction` is 0\.9, which leaves none of the 2"
    ):
        write_parts(config, tmp_path / "parts", 0.9)


def test_classification_keeps_tsv_columns_and_is_not_given_noise(tmp_path):
    """CoLA's own file has no header; noise acts on the part that is trained on alone."""
    path = tmp_path / "train.tsv"
    path.write_text("".join(f"src\t{i % 2}\t\tsentence {i}\n" for i in range(20)))
    (tmp_path / "dev.tsv").write_text("src\t1\t\tone\nsrc\t0\t\ttwo\n")
    config = ClassificationConfig(task="cola", dataset_name=str(tmp_path), label_noise=1.0)
    parts = write_parts(config, tmp_path / "parts", 0.25)
    written = ClassificationConfig(
        task="cola",
        dataset_name=str(parts.fit),
        eval_dataset_name=str(parts.held_out),
        dataset_test_split="train",
        label_noise=1.0,
    )
    train = load_training_rows(written)
    (held,) = load_evaluation_rows(written, train.class_names).values()
    assert (len(train.dataset), len(held.dataset)) == (15, 5)
    truth = {f"sentence {i}": i % 2 for i in range(20)}
    assert all(row["label"] == truth[row["text"]] for row in held.dataset)
    assert all(row["label"] != truth[row["text"]] for row in train.dataset)


def test_classes_of_the_hub_are_written_by_name(tmp_path, monkeypatch):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cold", "warm"])})
    stored = Dataset.from_dict(
        {"text": [f"{i}" for i in range(8)], "label": [0, 1] * 4}, features=features
    )
    monkeypatch.setattr("balora.data.reading.training_rows", lambda data: stored)
    config = ClassificationConfig(task="classification", dataset_name="x")
    parts = write_parts(config, tmp_path, 0.25)
    assert {row["label"] for row in read(parts.fit)} == {"cold", "warm"}
