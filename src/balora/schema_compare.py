"""The JSON Schema of a comparison: a recipe of training, and what stands where in it.

Where a field has no place is read from :mod:`balora.compare.places`, as the loader does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from balora.compare.bench_settings import BENCH, ELSEWHERE, NO_BACKEND
from balora.compare.comparison import LAB
from balora.compare.config import EVERY
from balora.compare.places import ALWAYS, REFUSALS, Place, Refusal
from balora.recipes.kinds import CLASSIFICATION, GENERATION, KINDS, Kind
from balora.recipes.table import ROWS
from balora.rows import COMPARE

Schema = dict[str, Any]
_ENTRIES: Mapping[Place, str] = {
    "model": "models",
    "condition": "conditions",
    "method": "settings",
    "sweep": "sweep",
}
_OVER: tuple[Place, ...] = (*_ENTRIES, "sweep of all")


def comparison_schema(flat: Schema, compare: Schema, bench: Schema, lab: Schema) -> Schema:
    """Return what a recipe of a comparison may hold.

    Args:
        flat: What a recipe of training may hold.
        compare: The fields of `compare` by themselves.
        bench: Those of `bench`.
        lab: Those of `lab`.
    """
    beside = {"type": "string", "description": "The recipe beside this one with the rows."}
    rows = {"anyOf": [flat["properties"][ROWS], beside]}
    compare = _merged(compare, {"properties": {BENCH: _bench(bench)}})
    fields = {**flat["properties"], ROWS: rows, COMPARE: compare, LAB: lab}
    every = [one for one in REFUSALS if all(map(one.of_kind, KINDS))]
    cases = {id(one.case): one.case for one in every if one.case is not ALWAYS}
    found = _merged(
        {**flat, "properties": fields, "$defs": _definitions(flat)},
        *(_at(place, {"type": "object", **_fields_of(place, "recipe")}) for place in _OVER),
        _at("condition", {"type": ["object", "null"]}),
        _at("method", {"properties": {LAB: False, BENCH: False}}),
        *_refused(one for one in every if one.case is ALWAYS),
    )
    for branch, kind in (("then", CLASSIFICATION), ("else", GENERATION)):
        found[branch] = _merged(flat[branch], *_of_kind(kind, branch))
    found["if"] = {"anyOf": [flat["if"], _in_every_condition(flat["if"])]}
    found["allOf"] = [
        {"if": case.schema, "then": _merged(*_refused(one for one in every if one.case is case))}
        for case in cases.values()
    ]
    return found


def _of_kind(kind: Kind, branch: str) -> list[Schema]:
    """Return what holds of one kind alone: its fields in each place, and what it refuses."""
    own = [one for one in REFUSALS if one.of_kind(kind) and not one.of_kind(kind.other)]
    return [*(_at(place, _fields_of(place, branch)) for place in _OVER), *_refused(own)]


def _bench(bench: Schema) -> Schema:
    """Return the fields of `bench` that a comparison takes."""
    fields = {**bench["properties"], **dict.fromkeys(ELSEWHERE, False)}
    backends = [name for name in fields["backend"]["enum"] if name != NO_BACKEND]
    return {**bench, "properties": {**fields, "backend": {**fields["backend"], "enum": backends}}}


def _definitions(flat: Schema) -> Schema:
    """Return the fields that an entry may give, and the lists of a sweep, by kind as well."""
    names = [name for name in flat["properties"] if name != ROWS]
    beside = {
        "method": {"type": "string"},  # also one with terms
        BENCH: {"$ref": f"#/properties/{COMPARE}/properties/{BENCH}", "type": "object"},
        LAB: {"$ref": f"#/properties/{LAB}"},
    }
    over: dict[str, dict[str, Any]] = {"recipe": {name: _over("", name) for name in names}}
    for branch in ("then", "else"):
        own = flat[branch]["properties"]
        over[branch] = {name: one and _over(f"{branch}/", name) for name, one in own.items()}
    found: Schema = {}
    for part, fields in over.items():
        tried = {name: one and _tried(one) for name, one in fields.items()}
        found |= {f"{part} fields": {"properties": fields}, f"{part} values": {"properties": tried}}
    found["recipe fields"]["properties"] |= beside
    for part in ("recipe fields", "recipe values"):
        found[part]["additionalProperties"] = False
    return found


def _over(part: str, name: str) -> Schema:
    """Return a field that goes over the recipe's: null takes that one out again."""
    return {"anyOf": [{"$ref": f"#/{part}properties/{name}"}, {"type": "null"}]}


def _tried(field: Schema) -> Schema:
    return {"type": "array", "items": field, "minItems": 1, "uniqueItems": True}


def _fields_of(place: Place, part: str) -> Schema:
    """Return the reference to what an entry of a place may give."""
    what = "values" if place in ("sweep", "sweep of all") else "fields"
    return {"allOf": [{"$ref": f"#/$defs/{part} {what}"}]}


def _at(place: Place, found: Schema) -> Schema:
    """Return a schema of the whole recipe that says something of a place in it."""
    if place == "recipe":
        return found
    if place == "sweep of all":
        found = {"properties": {"sweep": {"properties": {EVERY: found}}}}
    elif place != "compare":
        found = {"properties": {_ENTRIES[place]: {"additionalProperties": found}}}
    return {"properties": {COMPARE: found}}


def _refused(refusals: Iterable[Refusal]) -> list[Schema]:
    return [
        _at(place, {"properties": dict.fromkeys(sorted(one.names), False)})
        for one in refusals
        for place in one.places
    ]


def _in_every_condition(condition: Schema) -> Schema:
    """Return when every condition fulfils what else the recipe does, such as to name a task."""
    entries = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"type": "object", **condition},
    }
    own = {"type": "object", "required": ["conditions"], "properties": {"conditions": entries}}
    return {"required": [COMPARE], "properties": {COMPARE: own}}


def _merged(*schemas: Schema) -> Schema:
    """Return schemas in one, the later ones over the earlier where both say something."""
    found: Schema = {}
    for one in schemas:
        for name, value in one.items():
            both = isinstance(value, dict) and isinstance(found.get(name), dict)
            found[name] = _merged(found[name], value) if both else value
    return found
