"""The JSON Schema (draft 2020-12) of a recipe, made from what its fields declare.

An editor completes and checks a recipe by it, from a first line such as

.. code-block:: yaml

    # yaml-language-server: $schema=train.json

Every key, type, range and choice is in it; what fields must fulfil together is not, nor what is
missing, since a field may be given on the command line.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from balora.config import BALoraConfig
from balora.config.classification import OutOfDomainConfig
from balora.config.fields import (
    FieldDescription,
    alternatives,
    choices,
    describe,
    field_hints,
    full_words,
    rules_of,
)
from balora.config.glue_x import GLUE_X
from balora.config.rules import (
    Allowed,
    Distinct,
    Form,
    Interval,
    Name,
    Named,
    NotEmpty,
    OneOf,
    Pattern,
    Rule,
)
from balora.config.values import parse_text
from balora.config.words import spelled_default
from balora.recipes.kinds import CLASSIFICATION, GENERATION, Kind
from balora.recipes.load import known_fields
from balora.recipes.table import ROWS, TASKS

Schema = dict[str, Any]
_FOLDER = Path(__file__).parent / "schemas"
_NOT_BLANK = r"\S"
_BY_THE_MACHINE = ("bf16", "use_cpu")
"""What a recipe that is silent leaves to the machine."""


def packaged_schema(recipe: str) -> Schema:
    """Return the schema that comes with balora, made with the versions that it is tested with.

    It needs no torch. `schema` gives the one of the versions that are installed.
    """
    text = (_FOLDER / f"{recipe}.json").read_text(encoding="utf-8")
    return typing.cast(Schema, json.loads(text))


def schema(recipe: str) -> Schema:
    """Return the schema of a recipe of `balora train`, `balora compare` or `balora lab`.

    Imports trl and transformers for the fields of the training arguments.
    """
    from balora.compare.config import CompareConfig
    from balora.evaluation.bench.config import BenchConfig
    from balora.lab.config import LabConfig
    from balora.schema_compare import comparison_schema

    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A recipe of balora {recipe}",
        "type": "object",
    }
    lab = _section(LabConfig)
    if recipe == "lab":
        return {**head, "properties": {"lab": {**lab, "type": "object"}}, "required": ["lab"]}
    if recipe == "train":
        return {**head, **_flat()}
    sections = _section(CompareConfig), _section(BenchConfig)
    return {**head, **comparison_schema(_flat(), *sections, lab)}


def as_text(found: Schema) -> str:
    """Return a schema as it is printed and packaged."""
    return json.dumps(found, indent=1)


def _flat() -> Schema:
    """Return what a flat recipe may hold: `task` tells which of the two kinds it is of."""
    generation, classification = (_properties(kind) for kind in (GENERATION, CLASSIFICATION))
    both = {**generation, **classification}
    alike = {name for name in both if generation.get(name) == classification.get(name)}
    shared: Schema = {}
    for name, one in both.items():
        in_both = name in generation and name in classification
        sentence = {"description": one["description"].partition("\n")[0]}
        shared[name] = sentence if in_both and name not in alike else one
    shared[ROWS] = _rows(classification.keys(), alike)
    by_kind = [
        {"properties": {name: own.get(name, False) for name in both if name not in alike}}
        for own in (classification, generation)
    ]
    return {
        "properties": shared,
        "additionalProperties": False,
        "if": {"required": ["task"], "properties": {"task": {"type": "string"}}},
        "then": by_kind[0],
        "else": by_kind[1],
    }


def _rows(names: Iterable[str], alike: set[str]) -> Schema:
    """Return what stands under `rows`, which are of classification."""
    fields = {
        name: {"$ref": f"#/{'' if name in alike else 'then/'}properties/{name}"} for name in names
    }
    row = {"type": "object", "properties": fields, "additionalProperties": False}
    tasks = {"type": "object", "minProperties": 1, "additionalProperties": row}
    model = {**row, "properties": {**fields, TASKS: tasks}, "required": [TASKS]}
    return {
        "description": "Fields by model and task, of which one row is picked.",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": model,
    }


def _section(config_class: type) -> Schema:
    hints = field_hints(config_class)
    fields = {one.name: field_schema(hints[one.name], one) for one in describe(config_class)}
    return {"type": ["object", "null"], "properties": fields, "additionalProperties": False}


def _properties(kind: Kind) -> Schema:
    known = known_fields(kind)
    described = _described(kind)
    found = {name: field_schema(entry.annotation, described[name]) for name, entry in known.items()}
    if "out_of_domain" in found:
        own = _section(OutOfDomainConfig)
        entry = {**own, "type": "object"}
        by_name = {"type": "object", "additionalProperties": entry}
        found["out_of_domain"] = {
            **found["out_of_domain"],
            "anyOf": [
                {"type": "array", "items": entry},
                by_name,
                {"const": GLUE_X},
                {"type": "null"},
            ],
        }
    return found


def _described(kind: Kind) -> dict[str, FieldDescription]:
    """Return every field of a recipe with its sentence and its default in this kind."""
    own = [one for part in kind.parts.values() for one in describe(part)]
    preset = BALoraConfig.preset("paper", kind.preset_task)
    defaults = {
        **dataclasses.asdict(preset),
        **kind.adapter_defaults,
        **kind.argument_defaults,
        "learning_rate": kind.adapter_learning_rate,
        **dict.fromkeys(_BY_THE_MACHINE, None),
    }
    known = known_fields(kind)
    arguments = [
        FieldDescription(
            field.name,
            full_words(known[field.name].annotation),
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default,
            " ".join(str(field.metadata.get("help", "")).split()),
        )
        for field in dataclasses.fields(kind.arguments_class())
        if field.name in known
    ]
    return {
        one.name: one._replace(default=defaults.get(one.name, one.default))
        for one in (*own, *arguments)
    }


def field_schema(annotation: Any, described: FieldDescription) -> Schema:
    """Return the schema of one field, with its sentence, its type in words and its default."""
    found = annotation_schema(annotation, is_field=True)
    default = (
        described.default.value if isinstance(described.default, enum.Enum) else described.default
    )
    words = f"{described.type}; {spelled_default(default)}"
    found["description"] = f"{described.sentence}\n\n{words}"
    if default not in ("required", "", None):
        found["default"] = default
    forms = [r for _, rules in alternatives(annotation) for r in rules if isinstance(r, Form)]
    if forms:
        found["examples"] = [parse_text(forms[0].example, dict)]
    return found


def annotation_schema(annotation: Any, *, is_field: bool = False) -> Schema:
    """Return the schema of what an annotation takes.

    Args:
        annotation: A type with rules, as a field declares it.
        is_field: Whether it is a field's own, which takes no blank text; an entry of a list may.
    """
    named = choices(annotation)
    found = [
        part
        for member, rules in alternatives(annotation)
        if not (named and member is str)
        for part in _member(member, rules, is_field)
    ]
    if len(found) == 1:
        return found[0]
    if all(part.keys() == {"type"} for part in found):
        return {"type": [part["type"] for part in found]}
    return {"anyOf": found}


def _member(member: Any, rules: tuple[Rule, ...], is_field: bool) -> list[Schema]:
    """Return the schema of one alternative; none where a recipe cannot hold one."""
    origin, declared = typing.get_origin(member) or member, typing.get_args(member)
    if member is Any:
        return [{}]
    if origin is Literal:
        return [{"enum": list(declared)}]
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return [{"enum": [one.value for one in origin]}]
    make = _OF_TYPE.get(origin)
    if make is None:
        return []
    found = make(declared, rules, is_field)
    allowed = [rule.values for rule in rules if isinstance(rule, Allowed)]
    if allowed:
        found = {"enum": list(allowed[0])}
    return [found]


def _text(_: Any, rules: tuple[Rule, ...], is_field: bool) -> Schema:
    found: Schema = {"type": "string"}
    if is_field:
        found["pattern"] = _NOT_BLANK
    for rule in rules:
        if isinstance(rule, OneOf):
            return {"enum": list(rule.names)}
        if isinstance(rule, Pattern):
            found["format"] = "regex"
        elif isinstance(rule, Name):
            found["pattern"] = "^[^/]*[^/\\s][^/]*$"
    names = [name for rule in rules if isinstance(rule, Named) for name in rule.names]
    return {"anyOf": [{"enum": names}, found]} if names else found


def _number(kind: str) -> Callable[..., Schema]:
    def make(_: Any, rules: tuple[Rule, ...], is_field: bool) -> Schema:
        found: Schema = {"type": kind}
        for rule in rules:
            if isinstance(rule, Interval):
                found |= _bounds(rule)
                if rule.also:
                    found = {"anyOf": [found, {"enum": list(rule.also)}]}
        return found

    return make


def _bounds(rule: Interval) -> Schema:
    ends = {
        "minimum": rule.ge,
        "exclusiveMinimum": rule.gt,
        "maximum": rule.le,
        "exclusiveMaximum": rule.lt,
    }
    return {name: end for name, end in ends.items() if end is not None}


def _list(declared: tuple[Any, ...], rules: tuple[Rule, ...], is_field: bool) -> Schema:
    is_filled = any(isinstance(rule, NotEmpty) for rule in rules)
    items = annotation_schema(declared[0], is_field=is_filled) if declared else {}
    for rule in rules:
        if isinstance(rule, OneOf):
            items = {"enum": list(rule.names)}
    found: Schema = {"type": "array", "items": items}
    if is_filled:
        found["minItems"] = 1
    if any(isinstance(rule, Distinct) for rule in rules):
        found["uniqueItems"] = True
    return found


def _mapping(declared: tuple[Any, ...], rules: tuple[Rule, ...], is_field: bool) -> Schema:
    found: Schema = {"type": "object"}
    if any(isinstance(rule, NotEmpty) for rule in rules):
        found["minProperties"] = 1
    of_key, of_entry = declared or (Any, Any)
    if rules_of(of_key):
        found["propertyNames"] = annotation_schema(of_key, is_field=True)
    if of_entry is not Any:
        found["additionalProperties"] = annotation_schema(of_entry, is_field=True)
    return found


def _plain(kind: str) -> Callable[..., Schema]:
    return lambda *_: {"type": kind}


_OF_TYPE: Mapping[Any, Callable[..., Schema]] = {
    NoneType: _plain("null"),
    bool: _plain("boolean"),
    int: _number("integer"),
    float: _number("number"),
    str: _text,
    list: _list,
    dict: _mapping,
}
