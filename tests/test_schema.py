"""The JSON schemas: of every recipe, refusing what the loader refuses, and no more."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

from balora.cli import main
from balora.compare.bench_settings import ELSEWHERE
from balora.compare.config import CompareConfig
from balora.compare.places import REFUSALS
from balora.compare.plan import Plan
from balora.compare.reading import read_comparison
from balora.config.classification import ClassificationConfig
from balora.config.fields import alternatives, choices, field_hints, type_problem
from balora.config.rules import Allowed, OneOf
from balora.config.values import dump_mapping, read_mapping
from balora.errors import ConfigError
from balora.evaluation.bench.config import BenchConfig
from balora.lab.config import LabConfig
from balora.recipes import CLASSIFICATION, GENERATION, known_fields, load_recipe
from balora.recipes.kinds import KINDS
from balora.schema import annotation_schema, packaged_schema, schema
from support.bad_values import extremes, inputs

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


@cache
def _checked(path, validator):
    found = json.loads(path.read_text(encoding="utf-8"))
    validator.check_schema(found)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_names_its_schema_and_is_valid_by_it(validator, path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, first
    found = _checked(path.parent / named[1], validator)
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
        ({"compare": {"conditions": {"a": None, "b": {"lora_r": 4}}}}, True),
        ({"compare": {"seeds": [-1]}}, False),
        ({"compare": {"methods": []}}, False),
        ({"compare": {"jbos": 2}}, False),
        ({"compare": {"settings": {"lora": {"lora_rr": 4}}}}, False),
        ({"compare": {"conditions": {"b": {"lab": {"noise_rate": 1.5}}}}}, False),
        ({"lab": {"num_people": 3}}, False),
        ({"compare": {"settings": {"lora": {"lora_r": None}}}}, True),
        ({"compare": {"settings": {"lora": None}}}, False),
        ({"compare": {"models": {"a": None}}}, False),
        ({"compare": {"sweep": {"lora": {"lora_r": [4, 8]}}}}, True),
        ({"compare": {"sweep": {"lora": {"lora_r": [4, 0]}}}}, False),
        ({"compare": {"sweep": {"lora": {"lora_r": 4}}}}, False),
        ({"compare": {"bench": {"backend": "vllm"}}}, True),
        ({"compare": {"bench": {"backend": "endpoint"}}}, False),
        ({"compare": {"conditions": {"a": {"task": "cola", "class_fractions": {"x": 0.5}}}}}, True),
    ],
    ids=str,
)
def test_what_stands_under_compare_and_lab(validator, wrong, is_valid):
    assert validator(packaged_schema("compare")).is_valid({**NEEDED, **wrong}) is is_valid


OWN = {"methods": ["balora", "mine"], "seeds": [0], "settings": {"mine": {"method": "balora"}}}
BASES = {
    "generation": {**NEEDED, "compare": OWN},
    "classification": {**NEEDED, "task": "cola", "compare": OWN},
    "lab": {"output_dir": "o", "lab": {}, "compare": OWN},
    "models": {
        **{"dataset_name": "d.jsonl", "output_dir": "o"},
        "compare": {**OWN, "models": {"b": {"model_name_or_path": "m"}}},
    },
}
BESIDE = {"bench": {"benchmarks": ["gsm8k"]}, "lab": {}}
PLACES = {
    "recipe": lambda fields: fields,
    "model": lambda fields: {"compare": {"models": {"b": fields}}},
    "condition": lambda fields: {"compare": {"conditions": {"a": fields}}},
    "method": lambda fields: {"compare": {"settings": {"mine": fields}}},
    "sweep": lambda fields: {"compare": {"sweep": {"mine": _lists(fields)}}},
    "sweep of all": lambda fields: {"compare": {"sweep": {"*": _lists(fields)}}},
    "compare": lambda fields: {"compare": fields},
    "bench": lambda fields: {"compare": {"bench": fields}},
    "bench of a condition": lambda fields: {"compare": {"conditions": {"a": {"bench": fields}}}},
    "lab": lambda fields: {"lab": fields},
    "lab of a condition": lambda fields: {"compare": {"conditions": {"a": {"lab": fields}}}},
}
ONLY_IN = {
    "model": ("models",),
    **dict.fromkeys(("lab", "lab of a condition"), ("lab",)),
    **dict.fromkeys(("bench", "bench of a condition"), ("generation", "lab", "models")),
}
"""Bases of places that others do not have."""
WHY = [
    *(one.why % {"kind": k.words, "other": k.other.words} for one in REFUSALS for k in KINDS),
    *(f", but {why}" for why in ELSEWHERE.values()),
]
NO_PLACE = re.compile(
    rf"`(\w+)` (?:is set(?:{'|'.join(map(re.escape, WHY))})|is no field of|is a field of .* only,)"
)
"""What the loader says of a field that stands where it has no place."""


def _lists(fields):
    return {name: [value] for name, value in fields.items()}


def _with(base, change):
    """Return a recipe with fields added, also below one that both have."""
    return base | {
        name: _with(base.get(name, {}), value) if isinstance(value, dict) else value
        for name, value in change.items()
    }


def _legal(hints):
    """Return for each field a value that its declaration takes."""
    found = {}
    for name, hint in hints.items():
        rules = [rule for _, own in alternatives(hint) for rule in own]
        names = [*choices(hint), *(n for r in rules if isinstance(r, OneOf) for n in r.names)]
        allowed = [value for r in rules if isinstance(r, Allowed) for value in r.values]
        tried = [one.value for one in inputs({name: hint}) if one.what != "huge"]
        lists = [[one] for one in names]
        candidates = [*allowed, *names, *lists, *extremes(hint), *tried, None]
        found[name] = next(one for one in candidates if type_problem(one, hint) is None)
    return found


def _fields_of(place):
    if place == "compare":
        nested = {"models", "conditions", "settings", "sweep", "summary", "reference"}
        hints = {n: hint for n, hint in field_hints(CompareConfig).items() if n not in nested}
        return _legal(hints) | {"bench": BESIDE["bench"]}
    if place.startswith("bench"):
        return _legal(field_hints(BenchConfig))
    if place.startswith("lab"):
        return _legal(field_hints(LabConfig))
    known = {name: e.annotation for kind in KINDS for name, e in known_fields(kind).items()}
    known.pop("task")  # it makes another comparison of it
    return _legal(known) | (BESIDE if place in ("model", "condition", "method") else {})


def _refused_by_loader(content, path):
    """Return the fields that have no place, of those that are looked at together."""
    path.write_text(dump_mapping(content))
    try:
        Plan(read_comparison(path, {})).check()
    except ConfigError as error:
        return set(NO_PLACE.findall(str(error)))
    return set()


@pytest.mark.parametrize(
    ("place", "base"), [(p, b) for p in PLACES for b in BASES if b in ONLY_IN.get(p, BASES)]
)
def test_a_field_has_its_place_by_both(validator, tmp_path, place, base):
    content, at, by_schema = BASES[base], PLACES[place], validator(packaged_schema("compare"))
    fields, path, by_loader = _fields_of(place), tmp_path / "recipe.yaml", set()
    assert by_schema.is_valid(content)
    if (place, base) == ("condition", "models"):
        fields.pop("model_name_or_path")  # refused by both, as one that is set twice
    # one by one where something else would be said first
    for part in [{n: v} for n, v in fields.items()] if place == "compare" else [fields]:
        left = part
        while found := _refused_by_loader(_with(content, at(left)), path) & left.keys():
            by_loader |= found
            left = {name: value for name, value in left.items() if name not in found}
    refused = {
        name
        for name, value in fields.items()
        if not by_schema.is_valid(_with(content, at({name: value})))
    }
    assert refused == by_loader


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
