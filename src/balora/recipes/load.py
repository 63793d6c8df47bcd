"""A recipe: one flat YAML file, changed field by field from the command line, checked as a whole.

Every key, type and choice is checked before anything is built, and all problems are listed in one
`ConfigError`. The keys are the fields of balora's own dataclasses and of trl's `SFTConfig`; in a
recipe that sets `task`, of transformers' `TrainingArguments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from balora.config import AdapterConfig
from balora.config.fields import accepts, field_hints, given_problems, type_problem, wrong_type
from balora.config.replay import GENERATED, RECOMMENDED
from balora.config.rules import Allowed, OneOf, Rule
from balora.config.values import parse_text, parse_texts, read_mapping
from balora.errors import ConfigError
from balora.recipes.kinds import GENERATION, Kind, kind_of
from balora.recipes.limits import DECLARED, limits
from balora.recipes.methods import (
    METHODS,
    attempt,
    fields_of_terms_off,
    foreign_fields,
    quantization_problem,
    resolve,
)
from balora.recipes.other_tools import CALLED, Here, here
from balora.recipes.recipe import Recipe
from balora.recipes.table import ROWS, pick_row

_NULL_IS_UNSET = ("preset", "report_to")


class _Known(NamedTuple):
    part: str
    annotation: Any
    """With the rules for its values."""


@cache
def known_fields(kind: Kind = GENERATION) -> dict[str, _Known]:
    """Return every field of a recipe by name: balora's own, then those of the trainer's arguments.

    Those are trl's `SFTConfig` for text generation, `TrainingArguments` for classification.
    """
    known = {
        name: _Known(part, annotation)
        for part, config_class in kind.parts.items()
        for name, annotation in field_hints(config_class).items()
        if name not in kind.foreign
    }
    arguments_class = kind.arguments_class()
    hints = field_hints(arguments_class)
    for entry in fields(arguments_class):
        if entry.init:
            names = tuple(entry.metadata.get("choices") or ())
            rules: list[Rule] = [OneOf(names)] if names else []
            rules += limits().get(entry.name, ())
            if entry.name in kind.metrics_need:
                rules.append(Allowed((kind.metrics_need[entry.name],), "leaves no metrics"))
            annotated = (DECLARED.get(entry.name, hints[entry.name]), *rules)
            known[entry.name] = _Known("training", Annotated[annotated] if rules else annotated[0])
    return known


def load_recipe(path: Path | str | None, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read the recipe at `path`, replace single fields by `overrides`, and check everything.

    Args:
        path: A YAML file, or None when every field is given as an override.
        overrides: Field names to the text given on the command line. ``null`` or ``none`` takes a
            field out again that the file sets. ``method`` brings its own start and its own terms,
            and a coefficient of 0 ends a term: what the file says of them is set aside.

    Raises:
        ConfigError: One message with every problem: unknown keys, wrong types, values that are no
            choice, missing fields, settings that cannot act or are refused.
    """
    source = None if path is None else Path(path)
    content = read_mapping(source) if source else {}
    return check_recipe(content, parse_overrides(content, overrides or {}), source=source)


def parse_overrides(content: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of fields that the command line gives, by the kind of the recipe.

    Args:
        content: The fields of the file; with `task`, from there or from `texts`, it is one of
            classification.
        texts: Fields to their text.
    """
    task = {name: parse_text(text, str) for name, text in texts.items() if name == "task"}
    known = known_fields(kind_of({**content, **task}))
    hints = {name: entry.annotation for name, entry in known.items()}
    # what another tool calls otherwise is read as the field that it is, all else as YAML
    others = {name: hints.get(CALLED.get(name, name), Any) for name in texts}
    return parse_texts(texts, {**others, **hints})


def check_recipe(
    content: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    *,
    source: Path | None = None,
    dashes: str = "--",
) -> Recipe:
    """Return the recipe of the fields that a file holds, as `load_recipe` does.

    Args:
        content: The fields of the file.
        given: Values that replace them; None takes a field out where it is no value of it.
        source: The file, for messages.
        dashes: What stands before the name of a given field where the user wrote it.

    Raises:
        ConfigError: As `load_recipe`.
    """
    given = given or {}
    kind = kind_of({**content, **given})
    values = replace_fields(content, given, source=source)

    def label(name: str) -> str:
        return f"{dashes}{name}" if name in given else name

    others = _of_other_tools(values, kind)
    foreign = [f"`{label(name)}` {found.sentence}" for name, found in others.items()]
    # the rest is checked with the lines that are named in their place
    rest = {name: value for name, value in values.items() if name not in others}
    for found in others.values():
        rest |= found.fields
    problems = given_problems(
        rest,
        known_fields(kind),
        of="a recipe",
        look=partial(_problem, kind),
        label=label,
        instead=partial(_instead, kind),
    )
    problems += _missing(rest, kind)
    errors = [f"{'; '.join([*foreign, *problems])}."] if foreign or problems else []
    recipe = None if problems else attempt(errors, lambda: _build(rest, source, kind))
    if recipe is None or errors:
        raise ConfigError((f"{source}: " if source else "") + " ".join(errors))
    return recipe


def _of_other_tools(values: Mapping[str, Any], kind: Kind) -> dict[str, Here]:
    """Return what stands in a recipe for each key that another tool would take."""
    unknown = [name for name in values if name not in known_fields(kind)]
    return {name: found for name in unknown if (found := here(name, values)) is not None}


def replace_fields(
    content: Mapping[str, Any], given: Mapping[str, Any], *, source: Path | None = None
) -> dict[str, Any]:
    """Return the fields of a file with single ones replaced, unchecked; of its rows one is picked.

    Args:
        content: The fields of the file.
        given: As for `check_recipe`.
        source: The file, for messages.

    Raises:
        ConfigError: If the file has rows and none for what is asked.
    """
    aside = _set_aside(content, given)
    try:
        row = pick_row(content, given, aside)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from error
    values = {name: value for name, value in row.items() if name not in aside}
    values = _without_unset({**values, **given}, given)
    if isinstance(resume := values.get("resume_from_checkpoint"), bool):
        values["resume_from_checkpoint"] = str(resume).lower()  # transformers takes text here
    return values


def _set_aside(from_file: Mapping[str, Any], given: Mapping[str, Any]) -> frozenset[str]:
    """Return what the file may say of its own method, or of a term, that the user replaces."""
    foreign = fields_of_terms_off(given)
    method = given.get("method")
    if isinstance(method, str) and method != from_file.get("method", AdapterConfig().method):
        foreign |= foreign_fields(method)
    return foreign


def _without_unset(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the fields that the user took out again with ``--field null``."""
    known = known_fields(kind_of(values))
    return {
        name: value
        for name, value in values.items()
        if value is not None
        or not (
            name in _NULL_IS_UNSET
            or (name in known and name in given and not _takes_null(known[name]))
        )
    }


def _takes_null(entry: _Known) -> bool:
    return accepts(entry.annotation, type(None))


def _missing(values: Mapping[str, Any], kind: Kind) -> list[str]:
    return [
        f"`{name}` is missing: add it to the recipe or pass `--{name}`"
        for name in kind.required
        if values.get(name) is None
    ]


def _problem(kind: Kind, name: str, value: Any) -> str | None:
    """Return what is wrong with the value of one field."""
    entry = known_fields(kind)[name]
    if value is None and not _takes_null(entry):
        is_said = name in kind.required
        return None if is_said else "is empty; give it a value or leave it out"
    # a part of balora's own says itself what is out of range, with its other problems
    look = type_problem if entry.part == "training" else wrong_type
    return look(value, entry.annotation)


def _instead(kind: Kind, name: str) -> str | None:
    """Return what to do with a key that is no field of this kind of recipe, where it is known."""
    if name == ROWS:
        return "belongs into a recipe's file"
    if name in known_fields(kind.other):
        fix = "leave it out" if name in kind.foreign else kind.other.chosen_by
        return f"is a field of {kind.other.words} only, and this is {kind.words}; {fix}"
    return None


def _build(values: Mapping[str, Any], source: Path | None, kind: Kind) -> Recipe:
    by_part: dict[str, dict[str, Any]] = {part: {} for part in (*kind.parts, "training")}
    for name, value in values.items():
        by_part[known_fields(kind)[name].part][name] = value
    if values.get("preset") == "recommended" and values.get("replay", GENERATED) is not None:
        by_part["replay"] = {**RECOMMENDED, **by_part.get("replay", {})}
    errors: list[str] = []
    own: dict[str, Any] = {
        name: attempt(errors, partial(part, **by_part[name]))
        for name, part in kind.parts.items()
        if name not in ("adapter", "objective")  # a method decides these two together
    }
    given = {**by_part["adapter"], **by_part["objective"]}
    task, defaults = kind.preset_task, kind.adapter_defaults
    resolved = attempt(errors, lambda: resolve(given, task=task, adapter_defaults=defaults))
    if errors or resolved is None:
        raise ConfigError(" ".join(errors))
    problem = quantization_problem(own["quantization"], resolved)
    if problem is not None:
        raise ConfigError(problem)
    training = by_part["training"]
    own["data"].check_training(training)
    if METHODS[resolved.adapter.method].has_adapter:
        training = {"learning_rate": kind.adapter_learning_rate, **training}
    return Recipe(
        adapter=resolved.adapter,
        objective=resolved.objective,
        training=training,
        source=source,
        **own,
    )
