"""The JSON schemas: of every recipe, refusing what the loader refuses, and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from balora.cli import main
from balora.compare.config import CompareConfig
from balora.config.classification import ClassificationConfig
from balora.config.fields import field_hints
from balora.config.values import read_mapping
from balora.errors import ConfigError
from balora.lab.config import LabConfig
from balora.recipes import CLASSIFICATION, GENERATION, known_fields, load_recipe
from balora.schema import annotation_schema, packaged_schema, schema
from support.bad_values import inputs

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes").glob("*.yaml"))
NOT_JSON = {"nan", "infinite", "minus infinite", "huge"}
"""Numbers that JSON has not, or whose size it leaves open."""
OF_FUNCTIONS = {"torch_compile_backend", "lora_target_modules"}
"""Fields whose texts a function of the loader's looks at."""
NEEDED = {"model_name_or_path": "m", "dataset_name": "d.jsonl", "output_dir": "o"}


@pytest.fixture(scope="module")
def validator():
    return pytest.importorskip("jsonschema").Draft202012Validator


@pytest.fixture(scope="module")
def train(validator):
    return validator(packaged_schema("train"))


@pytest.mark.parametrize("recipe", ["train", "compare", "lab"])
def test_the_packaged_schema_is_the_one_that_is_made(recipe, capsys):
    found = schema(recipe)
    assert found == packaged_schema(recipe), "`make schemas` writes it anew"
    assert main(["schema", recipe]) == 0
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_names_its_schema_and_is_valid_by_it(validator, path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, first
    found = json.loads((path.parent / named[1]).read_text(encoding="utf-8"))
    validator.check_schema(found)
    content = read_mapping(path)
    assert found["title"].endswith("compare" if "compare" in content else "train")
    assert [str(error) for error in validator(found).iter_errors(content)] == []


HINTS = {
    "generation": lambda: {n: e.annotation for n, e in known_fields(GENERATION).items()},
    "classification": lambda: {n: e.annotation for n, e in known_fields(CLASSIFICATION).items()},
    "compare": lambda: field_hints(CompareConfig),
    "lab": lambda: field_hints(LabConfig),
}


@pytest.mark.parametrize("place", HINTS)
def test_schema_and_loader_refuse_the_same_values(validator, place):
    hints, differing = HINTS[place](), []
    refused = 0
    for one in inputs(hints):
        is_whole = isinstance(one.value, float) and one.value.is_integer()  # 8.0 is one in JSON
        if one.what in NOT_JSON or is_whole or one.field in OF_FUNCTIONS:
            continue
        found = annotation_schema(hints[one.field], is_field=True)
        is_valid = validator(found).is_valid(one.value)
        refused += not is_valid
        if is_valid == one.is_refused:
            differing.append(f"{one}, {one.value!r}: {'taken' if is_valid else 'refused'}")
    assert not differing
    assert refused > len(hints)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lora_r": 0},
        {"lora_r": "8"},
        {"svd_k": 1.5},
        {"lora_rr": 8},
        {"method": "lroa"},
        {"learning_rate": -1},
        {"lr_scheduler_type": "cosin"},
        {"lr_scheduler_kwargs": "{}"},
        {"loss_type": "dft"},
        {"label_smoothing_factor": 0.1},
        {"use_liger_kernel": True},
        {"lora_target_modules": []},
        {"label_column": "y"},
        {"space": "features"},
        {"task": "cola", "packing": True},
        {"task": "cola", "temperature": 2.0},
        {"task": "cola", "prediction_loss_only": True},
        {"task": "classification", "class_fractions": {"a": 2}},
        {"task": "cola", "out_of_domain": [{"name": "x", "dataset_nam": "d"}]},
        {"task": "cola", "rows": {"m": {}}},
        {"task": "cola", "rows": {"m": {"tasks": {"cola": {"lora_r": 0}}}}},
    ],
    ids=str,
)
def test_a_wrong_recipe_is_refused_by_both(train, tmp_path, wrong):
    right = {**NEEDED, **{name: wrong[name] for name in ("task",) if name in wrong}}
    assert train.is_valid(right)
    assert not train.is_valid({**right, **wrong})
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**right, **wrong}))
    with pytest.raises(ConfigError):
        load_recipe(path)


@pytest.mark.parametrize(
    ("wrong", "is_valid"),
    [
        ({}, True),
        ({"compare": {"seeds": [0], "methods": ["lora", "lora+kl=0.3"]}}, True),
        ({"compare": {"settings": {"mine": {"method": "lora+kl", "lora_r": 4}}}}, True),
        ({"compare": {"conditions": {"a": None, "b": {"lab": {"noise_rate": 0.1}}}}}, True),
        ({"compare": {"seeds": [-1]}}, False),
        ({"compare": {"methods": []}}, False),
        ({"compare": {"jbos": 2}}, False),
        ({"compare": {"settings": {"lora": {"lora_rr": 4}}}}, False),
        ({"compare": {"conditions": {"b": {"lab": {"noise_rate": 1.5}}}}}, False),
        ({"lab": {"num_people": 3}}, False),
    ],
    ids=str,
)
def test_what_stands_under_compare_and_lab(validator, wrong, is_valid):
    assert validator(packaged_schema("compare")).is_valid({**NEEDED, **wrong}) is is_valid


def test_defaults_are_those_of_the_kind():
    found = packaged_schema("train")
    of_generation, of_classification = (found[n]["properties"] for n in ("else", "then"))
    for name, one, other in (
        ("lora_r", 128, 8),
        ("learning_rate", 2e-4, 5e-4),
        ("diversity_coef", 3e-4, 4e-4),
        ("eval_strategy", "no", "epoch"),
    ):
        assert (of_generation[name]["default"], of_classification[name]["default"]) == (one, other)
    assert set(field_hints(ClassificationConfig)) <= found["properties"].keys()
    text = found["properties"]["lora_dropout"]["description"]
    assert text.endswith("\n\na number, 0 or greater and less than 1; 0.0")
