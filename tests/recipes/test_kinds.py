"""The table of the two kinds: what it names is there, and nothing else compares them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import balora
from balora.recipes.kinds import KINDS, kind_of, kind_of_data, load


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.words)
def test_what_the_table_names_is_there(kind):
    names = kind.arguments, kind.training_rows, kind.prepare, kind.evaluate
    assert all(callable(load(name)) for name in names)
    assert kind.other is not kind
    assert kind.other.other is kind


def test_a_task_makes_a_recipe_one_of_classification():
    assert [kind_of(one).words for one in ({}, {"task": None}, {"task": "cola"})] == [
        *("text generation", "text generation", "classification")
    ]


def test_the_data_part_tells_the_kind():
    from balora.config import ClassificationConfig, DataConfig

    parts = DataConfig(dataset_name="a.jsonl"), ClassificationConfig(task="cola")
    assert tuple(kind_of_data(part) for part in parts) == KINDS


def test_nothing_compares_one_kind_with_another():
    """What differs between the kinds is asked of the table or of the data part."""
    decides = re.compile(
        r"is (not )?(GENERATION|CLASSIFICATION)\b"
        r"|isinstance\([^)]*\b(ClassificationConfig|DataConfig)"
    )
    root = Path(balora.__file__).parent
    found = [
        f"{path.relative_to(root)}:{number}"
        for path in root.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if decides.search(line)
    ]
    assert not found
