"""Wrong values for every field of every command, derived from what the fields declare."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from balora.config.fields import alternatives, type_problem
from balora.config.rules import Interval

NEVER = {"nan", "infinite", "minus infinite", "huge", "blank", "nested list"}
"""Values that no field takes, whatever it declares, unless it declares nothing of its entries."""

_VALUES: dict[str, Any] = {
    "whole": 3,
    "zero": 0,
    "negative": -1,
    "fraction": 0.5,
    "large": 10.0**12,
    "huge": 2**70,
    "nan": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "true": True,
    "text": "no_such_thing",
    "blank": " ",
    "list": [1],
    "empty list": [],
    "nested list": [[1]],
    "list of texts": ["no_such_thing"],
    "mapping": {"no_such_thing": 1},
    "mapping by name": {"hans": {"no_such_thing": 1}},
    "list of mappings": [{"no_such_thing": 1}],
    "broken pattern": "[",
}


class Input(NamedTuple):
    """One value for one field."""

    field: str
    what: str
    value: Any
    is_refused: bool
    """Whether the declaration of the field alone refuses it."""

    @property
    def is_typical(self) -> bool:
        """Whether one value for each way of being wrong is enough to have this one among them."""
        return self.what in (
            *("blank", "text", "nan", "mapping", "under", "over", "above", "below"),
        )

    def __str__(self) -> str:
        return f"{self.field}: {self.what}"


def inputs(hints: Mapping[str, Any], *, as_texts: bool = False) -> Iterator[Input]:
    """Yield every value for every field.

    Args:
        hints: Annotations by the name of the field.
        as_texts: Whether a value is to be given as the text of the command line.
    """
    from balora.config.values import parse_text

    for field, hint in hints.items():
        for what, value in {**_VALUES, **_beyond(hint)}.items():
            if as_texts:
                text = spelled(value)
                value = parse_text(text, hint)
                yield Input(field, what, text, type_problem(value, hint) is not None)
            else:
                yield Input(field, what, value, type_problem(value, hint) is not None)


def _beyond(hint: Any) -> dict[str, Any]:
    """Return the values just outside the range of a field."""
    found = {}
    for _, rules in alternatives(hint):
        for rule in rules:
            if isinstance(rule, Interval):
                ends = {"below": rule.gt, "above": rule.lt}
                ends |= {"under": None if rule.ge is None else rule.ge - 1}
                ends |= {"over": None if rule.le is None else rule.le + 1}
                found |= {name: end for name, end in ends.items() if end is not None}
    return found


def extremes(hint: Any) -> list[float]:
    """Return the least and the greatest number that a field takes, and 0 where it takes that."""
    numbers = {10**6, *(v for v in _VALUES.values() if type(v) in (int, float))}
    for _, rules in alternatives(hint):
        for rule in rules:
            if isinstance(rule, Interval):
                ends = [end for end in (rule.ge, rule.gt, rule.le, rule.lt) if end is not None]
                numbers |= {end + step for end in ends for step in (0, 1, -1, 1e-9, -1e-9)}
    taken = sorted(number for number in numbers if type_problem(number, hint) is None)
    return sorted({taken[0], taken[-1], *({0} & set(taken))}) if taken else []


def spelled(value: Any) -> str:
    """Return a value as the text of a command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
    return json.dumps(value)


def listing(folder: Path) -> set[str]:
    """Return what is in a folder, at any depth."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
