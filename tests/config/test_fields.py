"""What the fields of the settings say of themselves."""

from __future__ import annotations

import dataclasses

import pytest

from balora.compare.config import CompareConfig
from balora.config import BALoraConfig, DataConfig, OutOfDomainConfig
from balora.config.fields import describe
from balora.config.options import BenchOptions, EvalOptions, ExportOptions, ReplayOptions
from balora.evaluation.bench.config import BenchConfig, BenchmarkData
from balora.lab.config import LabConfig
from balora.recipes.kinds import KINDS

CLASSES = dict.fromkeys(
    [
        *(part for kind in KINDS for part in kind.parts.values()),
        *(OutOfDomainConfig, CompareConfig, LabConfig, BenchConfig, BenchmarkData),
        *(BenchOptions, EvalOptions, ExportOptions, ReplayOptions),
    ]
)


@pytest.mark.parametrize("config_class", CLASSES)
def test_every_field_has_one_sentence(config_class):
    described = describe(config_class)
    assert [entry.name for entry in described] == [f.name for f in dataclasses.fields(config_class)]
    for entry in described:
        assert entry.sentence.endswith("."), f"{entry.name} has no sentence below it"
        assert entry.sentence[0].isupper(), entry.name
        assert 12 < len(entry.sentence) < 110, entry.name
        assert entry.type
    assert len({entry.sentence for entry in described}) == len(described)


def test_describe_gives_type_default_and_sentence():
    by_name = {entry.name: entry for entry in describe(BALoraConfig) + describe(DataConfig)}
    of_a_number = "a number, greater than 0 and at most 1"
    assert by_name["svd_k"][1:3] == (f"a whole number, 1 or greater, or {of_a_number}", 0.3)
    assert by_name["schedule"].type == "one of `constant`, `iclr2026`"
    assert by_name["entropy_top_k"].type == "a whole number, 1 or greater, or null"
    assert by_name["dataset_name"].default == "required"
    assert "without it" not in by_name["dataset_name"].sentence


def test_describe_leaves_an_undescribed_field_empty():
    assert describe(_Undescribed)[0].sentence == "Described."
    assert describe(_Undescribed)[1].sentence == ""


@dataclasses.dataclass
class _Undescribed:
    one: int = 0
    """Described."""
    two: int = 0
