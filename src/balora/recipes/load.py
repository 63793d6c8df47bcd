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
from balora.errors import ConfigError
from balora.field_rules import OneOf
from balora.field_types import (
    accepts,
    field_hints,
    suggestion,
    type_problem,
    wrong_type,
)
from balora.recipes.kinds import GENERATION, Kind, kind_of
from balora.recipes.limits import limits
from balora.recipes.methods import attempt, fields_of_terms_off, foreign_fields, resolve
from balora.recipes.recipe import Recipe
from balora.recipes.table import TABLE, pick_row
from balora.recipes.values import parse_text, read_mapping

_NONE_IS_A_NAME = ("prompt_template", "report_to")
_NULL_IS_UNSET = ("preset", "report_to")
_WIDER = {"resume_from_checkpoint": bool | str | None}
"""What a recipe takes where the arguments' class declares less than it reads."""
_REPLACED_BY = {  # names that other tools or versions use for the same thing
    "warmup_ratio": "warmup_steps",
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "model": "model_name_or_path",
    "dataset": "dataset_name",
    "rank": "lora_r",
    "lora_rank": "lora_r",
    "alpha": "lora_alpha",
    "target_modules": "lora_target_modules",
}


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
    }
    arguments_class = kind.arguments_class()
    hints = field_hints(arguments_class)
    for entry in fields(arguments_class):
        if entry.init:
            names = tuple(entry.metadata.get("choices") or ())
            rules = (*limits().get(entry.name, ()), *([OneOf(names)] if names else []))
            annotated = (_WIDER.get(entry.name, hints[entry.name]), *rules)
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
    return check_recipe(read_mapping(source) if source else {}, overrides, source=source)


def check_recipe(
    content: Mapping[str, Any],
    overrides: Mapping[str, str] | None = None,
    *,
    source: Path | None = None,
) -> Recipe:
    """Return the recipe of the fields that a file holds, as `load_recipe` does.

    Args:
        content: The fields of the file.
        overrides: As for `load_recipe`.
        source: The file, for messages.

    Raises:
        ConfigError: As `load_recipe`.
    """
    texts = overrides or {}
    kind = _kind(content, texts)
    values = replace_fields(content, texts, source=source)
    labels = {**{name: name for name in values}, **{name: f"--{name}" for name in texts}}
    problems = [
        problem
        for name, value in values.items()
        if (problem := _problem(name, value, labels[name], kind))
    ]
    problems += _missing(values, kind)
    if problems:
        where = f"{source}: " if source else ""
        raise ConfigError(where + "; ".join(problems) + ".")
    return _build(values, source, kind)


def replace_fields(
    content: Mapping[str, Any], overrides: Mapping[str, str], *, source: Path | None = None
) -> dict[str, Any]:
    """Return the fields of a file with single ones replaced, unchecked; its table is resolved.

    Args:
        content: The fields of the file.
        overrides: As for `load_recipe`.
        source: The file, for messages.

    Raises:
        ConfigError: If the file has a table that gives no row.
    """
    kind = _kind(content, overrides)
    from_user = _parsed(overrides, kind)
    try:
        from_file = _from_file(dict(content), from_user)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from error
    values = _without_unset({**from_file, **from_user}, from_user, kind)
    if isinstance(resume := values.get("resume_from_checkpoint"), bool):
        values["resume_from_checkpoint"] = str(resume).lower()  # transformers takes text here
    return values


def _kind(content: Mapping[str, Any], overrides: Mapping[str, str]) -> Kind:
    asked = {name: parse_text(text, str) for name, text in overrides.items() if name == "task"}
    return kind_of({**content, **asked})


def _parsed(overrides: Mapping[str, str], kind: Kind) -> dict[str, Any]:
    """Return the values that the texts of the command line stand for."""
    known = known_fields(kind)
    return {
        name: parse_text(
            text, known[name].annotation, names=("none",) if name in _NONE_IS_A_NAME else ()
        )
        if name in known
        else text
        for name, text in overrides.items()
    }


def _from_file(from_file: dict[str, Any], from_user: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file says where the command line is silent, a table's row included."""
    aside = _set_aside(from_file, from_user)
    chosen = pick_row(from_file, from_user, aside)
    chosen = {name: value for name, value in chosen.items() if name not in aside}
    return chosen


def _set_aside(from_file: Mapping[str, Any], from_user: Mapping[str, Any]) -> frozenset[str]:
    """Return what the file may say of its own method, or of a term, that the user replaces."""
    foreign = fields_of_terms_off(from_user)
    method = from_user.get("method")
    if method is not None and method != from_file.get("method", AdapterConfig().method):
        foreign |= foreign_fields(method)
    return foreign


def _without_unset(
    values: dict[str, Any], from_user: Mapping[str, Any], kind: Kind
) -> dict[str, Any]:
    """Drop the fields that the user took out again with ``--field null``."""
    known = known_fields(kind)
    return {
        name: value
        for name, value in values.items()
        if value is not None
        or not (
            name in _NULL_IS_UNSET
            or (name in known and name in from_user and not _takes_null(known[name]))
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


def _problem(name: str, value: Any, label: str, kind: Kind) -> str | None:
    """Return what is wrong with one key and its value, named as the user wrote it."""
    known = known_fields(kind)
    if name not in known:
        return _unknown(name, label, kind)
    entry = known[name]
    if value is None and not _takes_null(entry):
        is_said = name in kind.required
        return None if is_said else f"`{label}` is empty; give it a value or leave it out"
    # a part of balora's own says itself what is out of range, with its other problems
    look = type_problem if entry.part == "training" else wrong_type
    if (found := look(value, entry.annotation)) is not None:
        return f"`{label}` {found}"
    if name in kind.foreign:
        return f"`{label}` is {value}, which acts in {kind.other.words} only; leave it out"
    if name in kind.metrics_need and value is not kind.metrics_need[name]:
        needed = str(kind.metrics_need[name]).lower()
        return f"`{label}` is {str(value).lower()}, which leaves no metrics; set it to {needed}"
    return _refused(name, value, label)


def _unknown(name: str, label: str, kind: Kind) -> str:
    if name == "compute_loss_func":
        return f"`{label}` is refused: it would replace the objective; leave it out"
    if name == TABLE:
        return f"`{label}` belongs into a recipe's file"
    if name == "use_peft":
        return (
            f"`{label}` is no field of a recipe: `method` says what is trained, an adapter (lora, "
            "pissa, balora) or all weights (full); leave it out"
        )
    if name in _REPLACED_BY:
        return f"`{label}` is no field of a recipe; it is called `{_REPLACED_BY[name]}` here"
    if name in known_fields(kind.other):
        fix = "set `task`" if kind is GENERATION else "leave it out"
        return f"`{label}` is a field of {kind.other.words} only, and this is {kind.words}; {fix}"
    return f"`{label}` is no field of a recipe{suggestion(name, known_fields(kind))}"


def _refused(name: str, value: Any, label: str) -> str | None:
    """Refuse what replaces or bypasses the objective."""
    if name == "loss_type" and value == "dft":
        return f"`{label}` is dft, which replaces the task loss; set it to nll"
    if name == "label_smoothing_factor" and value > 0:
        return f"`{label}` is {value}, which changes the task loss; set it to 0"
    if name == "use_liger_kernel" and value:
        return f"`{label}` is true, which replaces the model's loss; set it to false"
    return None


def _build(values: Mapping[str, Any], source: Path | None, kind: Kind) -> Recipe:
    by_part: dict[str, dict[str, Any]] = {part: {} for part in (*kind.parts, "training")}
    for name, value in values.items():
        by_part[known_fields(kind)[name].part][name] = value
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
        raise ConfigError((f"{source}: " if source else "") + " ".join(errors))
    training = by_part["training"]
    if resolved.adapter.method != "full":
        training = {"learning_rate": kind.adapter_learning_rate, **training}
    return Recipe(
        adapter=resolved.adapter,
        objective=resolved.objective,
        training=training,
        source=source,
        **own,
    )
