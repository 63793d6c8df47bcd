"""The names of methods: a start, and terms added to it or taken away.

.. code-block:: text

    base | (full | lora | pissa | olora | mica | balora) (+TERM | +TERM=COEF | -TERM)*
    TERM = kl (the same as consistency) | consistency | diversity | svd | replay

``base`` is the pre-trained model, not trained. ``+TERM=COEF`` sets the coefficient of a term,
``+TERM`` takes the recipe's (that of its preset where it gives none), ``-TERM`` leaves it out.
Replay is a term like the others: ``balora`` has that of the recipe, the other methods have none.
Added to a recipe that sets none it is `replay: generated`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from balora.config import BALoraConfig
from balora.config.objective import COEFFICIENTS
from balora.config.replay import GENERATED, RECOMMENDED
from balora.config.words import suggestion
from balora.errors import ConfigError
from balora.recipes.kinds import Kind
from balora.recipes.methods import (
    FIELDS_OF_TERM,
    METHODS,
    REPLAY_FIELDS,
    fields_of_terms_off,
    foreign_fields,
    reference_problem,
    resolve,
)
from balora.rows import BASE

_REPLAY = "replay_coef"
STARTS = tuple(METHODS)
DEFAULT_METHODS = ("full", "lora", "pissa", "balora")
TERMS = {
    "kl": "consistency_coef",
    "consistency": "consistency_coef",
    "diversity": "diversity_coef",
    "svd": "svd_coef",
    "replay": _REPLAY,
}
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PART = re.compile(rf"([-+])([A-Za-z_]\w*)(?:=({_NUMBER}))?")
_WHOLE = re.compile(rf"([A-Za-z_]\w*)((?:{_PART.pattern})*)")
_WHAT_THERE_IS = (
    f"there are {BASE}, {', '.join(STARTS)}, all but {BASE} with +TERM, +TERM=COEF and -TERM "
    f"(terms: {', '.join(TERMS)}), and names under `settings` that have a `method`"
)


@dataclass(frozen=True)
class Method:
    """What the name of a method says; two names that say the same are equal."""

    start: str
    """``base``, or a `method` of a recipe."""
    coefficients: tuple[tuple[str, float | None], ...] = ()
    """Coefficients by their field, sorted; None takes the recipe's, 0 leaves the term out."""


def parse_method(name: str, known: Collection[str] = ()) -> Method:
    """Return what the name of a method says.

    Args:
        name: As the user wrote it.
        known: Names of the user's own, for the suggestion.

    Raises:
        ConfigError: If it is no name of a method, with what there is; if a term is named twice or
            taken from a method that lacks it; for full fine-tuning with consistency.
    """
    whole = _WHOLE.fullmatch(name)
    if whole is None or whole[1] not in (BASE, *STARTS):
        raise ConfigError(f"`{name}` is no method{_closest(name, known)}; {_WHAT_THERE_IS}.")
    start, parts = whole[1], _PART.findall(whole[2])
    if start == BASE and parts:
        raise ConfigError(f"`{name}` adds to the pre-trained model, which is not trained.")
    coefficients: dict[str, float | None] = {}
    for sign, term, number in parts:
        if term not in TERMS:
            raise ConfigError(
                f"`{name}` names no term with `{term}`{suggestion(term, TERMS)}; the terms are "
                f"{', '.join(TERMS)}."
            )
        problem = _part_problem(start, sign, term, number, coefficients)
        if problem:
            raise ConfigError(f"`{name}` {problem}.")
        coefficients[TERMS[term]] = 0.0 if sign == "-" else float(number) if number else None
    return Method(start, tuple(sorted(coefficients.items())))


def _closest(name: str, known: Collection[str]) -> str:
    found = suggestion(name, (BASE, *STARTS, *known))
    start, sign, _ = name.partition("+" if "+" in name else "-")
    return found or (suggestion(start, (BASE, *STARTS)) if sign else "")


def _part_problem(
    start: str, sign: str, term: str, number: str, so_far: Mapping[str, float | None]
) -> str | None:
    coefficient = TERMS[term]
    if coefficient in so_far:
        return f"names the term {term} twice; keep one"
    if sign == "-":
        if number:
            return f"leaves out {term} with a number; write -{term} alone, or +{term}={number}"
        return (
            None if METHODS[start].has_terms else f"leaves out {term}, which {start} does not have"
        )
    if number and float(number) == 0:
        return f"adds {term} with the coefficient 0; " + (
            f"write -{term}" if METHODS[start].has_terms else "leave it out"
        )
    if coefficient == "consistency_coef":
        problem = reference_problem(1, has_adapter=METHODS[start].has_adapter)
        return problem and f"cannot work: {problem}; use lora+{term} or pissa+{term}"
    return None


def recipe_without(method: Method, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without what it says of its own method and this one has no use for."""
    aside = foreign_fields(method.start) | {"method"}
    if _REPLAY in dict(method.coefficients):
        aside |= REPLAY_FIELDS
    return {name: value for name, value in recipe.items() if name not in aside}


def method_fields(method: Method, recipe: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Return the fields that make a run one of `method`, to go over `recipe_without`.

    A term that is added has the settings that the recipe's own has: its temperature, its schedule.

    Args:
        method: Not ``base``.
        recipe: The fields of the recipe.
        kind: Its kind, for the numbers of a preset.

    Raises:
        ConfigError: If a term is added without a number and its coefficient in the recipe is 0,
            or the recipe's own terms cannot work.
    """
    given: dict[str, Any] = {"method": method.start}
    terms = dict(method.coefficients)
    if _REPLAY in terms:
        given |= _replay_fields(terms.pop(_REPLAY), recipe)
    if not terms:
        return given
    own = _objective(recipe, kind)
    for coefficient, value in terms.items():
        given[coefficient] = getattr(own, coefficient) if value is None else value
        if value is None and given[coefficient] == 0:
            term = coefficient.removesuffix("_coef")
            raise ConfigError(
                f"{method.start}+{term} takes the recipe's `{coefficient}`, which is 0; write "
                f"{method.start}+{term}=0.1 or another number."
            )
        if value != 0 and not METHODS[method.start].has_terms:
            given |= _settings_of(coefficient, own)
    return given


def _replay_fields(coefficient: float | None, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's own replay, or the default one; nothing where it is left out."""
    of_preset = RECOMMENDED if recipe.get("preset") == "recommended" else {}
    if coefficient == 0:
        return dict.fromkeys(of_preset.keys() & {"replay"})
    own = {**of_preset, **{name: recipe[name] for name in REPLAY_FIELDS & recipe.keys()}}
    own |= {} if coefficient is None else {_REPLAY: coefficient}
    return {"replay": GENERATED, **{name: v for name, v in own.items() if v is not None}}


def _objective(recipe: Mapping[str, Any], kind: Kind) -> BALoraConfig:
    """Return the terms of the recipe, as method balora has them."""
    names = {"preset", *COEFFICIENTS, "schedule", "space", *sum(FIELDS_OF_TERM.values(), ())}
    own = {name: value for name, value in recipe.items() if name in names}
    off = fields_of_terms_off(own)
    return resolve(
        {name: value for name, value in own.items() if name not in off}, task=kind.preset_task
    ).objective


def _settings_of(coefficient: str, own: BALoraConfig) -> dict[str, Any]:
    """Return the settings of a term that are not the defaults."""
    names = {*FIELDS_OF_TERM[coefficient], "schedule", "space"}
    return {
        field.name: getattr(own, field.name)
        for field in fields(BALoraConfig)
        if field.name in names and getattr(own, field.name) != field.default
    }
