"""Which fields have no place where: what a comparison refuses, and its JSON Schema does not take.

One table, `REFUSALS`, for both. That generation and classification have different fields is
:mod:`balora.recipes.kinds`', what `bench` does not take :mod:`balora.compare.bench_settings`'.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from balora.compare.bench_settings import BENCH
from balora.compare.comparison import EVALUATION, LAB, Comparison
from balora.compare.config import EVERY
from balora.config import DataConfig
from balora.config.classification import ClassificationConfig
from balora.config.objective import COEFFICIENTS
from balora.recipes.kinds import Kind
from balora.rows import COMPARE

Place = Literal["recipe", "compare", "model", "condition", "method", "sweep", "sweep of all"]
"""The recipe itself, what stands under `compare`, and an entry of `models`, `conditions`,
`settings` and `sweep`."""
OF_A_SWEEP = ("held_out_fraction", "sweep_tolerance")
_OF_METHODS: tuple[Place, ...] = ("method", "sweep", "sweep of all")
_OVER: tuple[Place, ...] = ("model", "condition", *_OF_METHODS)
_OF_RUNS: tuple[Place, ...] = ("recipe", *_OVER)


class Case(NamedTuple):
    """Where a field is refused: said of the comparison, and in JSON Schema of its recipe."""

    holds: Callable[[Comparison], bool]
    schema: Mapping[str, Any]


def _under_compare(name: str, **schema: Any) -> dict[str, Any]:
    own = {"type": "object", "required": [name], "properties": {name: {"type": "object", **schema}}}
    return {"required": [COMPARE], "properties": {COMPARE: own}}


ALWAYS = Case(lambda _: True, {})
HAS_COMPARE = Case(lambda _: True, {"required": [COMPARE]})
"""A recipe of `balora train` can be compared as it stands: its seed is not read."""
HAS_LAB = Case(lambda one: one.lab is not None, {"required": [LAB]})
HAS_NO_LAB = Case(lambda one: one.lab is None, {"not": HAS_LAB.schema})
HAS_MODELS = Case(lambda one: bool(one.config.models), _under_compare("models"))
HAS_NO_SWEEP = Case(
    lambda one: not one.config.sweep, {"not": _under_compare("sweep", minProperties=1)}
)


class Refusal(NamedTuple):
    """Fields that have no place in some places."""

    names: Collection[str]
    places: tuple[Place, ...]
    why: str
    """It follows "is set"; ``%(kind)s`` is the kind of the runs, ``%(other)s`` the other one."""
    case: Case = ALWAYS
    of_kind: Callable[[Kind], bool] = lambda _: True
    """In which of the two kinds."""


_DATA = {field.name for data in (DataConfig, ClassificationConfig) for field in fields(data)}
_MODEL = ("model_name_or_path", "model_revision")
_OF_THE_LAB = (
    *_MODEL,
    *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"),
    *("eval_dataset_name", "prompt_column", "input_column", "response_column", "prompt_template"),
)
REFUSALS = (
    Refusal(
        ("seed",),
        ("recipe",),
        ", but the seeds of a comparison are `seeds` under `compare`",
        HAS_COMPARE,
    ),
    Refusal(("seed",), _OVER, ", but the seeds of a comparison are `seeds` under `compare`"),
    Refusal(
        ("overwrite",),
        _OF_RUNS,
        ", but a comparison starts again with `--overwrite` on the command line",
    ),
    Refusal(("dry_run",), _OF_RUNS, ", but `--dry_run` on the command line lists the cells"),
    Refusal(
        ("resume_from_checkpoint",),
        _OF_RUNS,
        ", but a comparison always resumes with the cells that are missing",
    ),
    Refusal(
        _OF_THE_LAB,
        _OF_RUNS,
        ", but model and data are the lab's; leave out it or `lab`",
        HAS_LAB,
    ),
    Refusal(("output_dir",), _OVER, "; it holds for all cells and stands in the recipe itself"),
    Refusal(
        ("model_name_or_path",),
        ("recipe", "condition", *_OF_METHODS),
        ", but each of `models` names its own; keep one of them",
        HAS_MODELS,
    ),
    Refusal(
        ("method",),
        ("model", "condition", "sweep", "sweep of all"),
        "; methods are named in `methods`",
    ),
    Refusal(
        {*_MODEL, *_DATA} - {"overlong_rows", "max_length"},
        _OF_METHODS,
        ", but all methods have the same model and data, or a difference would say nothing of "
        "the method; set it in the recipe or in `conditions`",
    ),
    Refusal(
        COEFFICIENTS,
        ("sweep of all",),
        ", which would add the term to methods without it; sweep it method by method",
    ),
    Refusal(
        (LAB,),
        ("recipe",),
        ", but its task is %(other)s, and `task` makes this %(kind)s; leave out one of them",
        of_kind=lambda kind: not kind.has_lab,
    ),
    Refusal((LAB,), ("model",), ", but the lab brings a model of its own"),
    Refusal((LAB,), ("condition",), ", but the recipe has none; add `lab: {}` to it", HAS_NO_LAB),
    Refusal(
        (BENCH,),
        ("compare", "model", "condition"),
        ", but this is %(kind)s, whose models write no answers",
        of_kind=lambda kind: kind.evaluates_itself,
    ),
    Refusal(OF_A_SWEEP, ("compare",), ", but there is no `sweep`; leave it out", HAS_NO_SWEEP),
    Refusal(
        EVALUATION,
        ("compare",),
        ", but this is %(kind)s, which is evaluated by its own settings; leave it out",
        of_kind=lambda kind: kind.evaluates_itself,
    ),
    Refusal(
        EVALUATION[:2],
        ("compare",),
        ", but the lab has its own; leave it out (`lab: {num_test: N}` sets how many rows there "
        "are)",
        HAS_LAB,
    ),
)


def place_problems(comparison: Comparison, asked: Collection[str]) -> Iterator[str]:
    """Say of each field that stands where it has no place why it has none.

    Args:
        comparison: As it was asked for.
        asked: The fields of `compare` that were given.
    """
    config, kind = comparison.config, comparison.kind
    words = {"kind": kind.words, "other": kind.other.words}
    acting = [one for one in REFUSALS if one.of_kind(kind) and one.case.holds(comparison)]
    for place, where, names in _fields_by_place(comparison, asked):
        for name in names:
            found = (one.why for one in acting if name in one.names and place in one.places)
            why = next(found, None)
            if why is not None:
                yield f"{where}`{name}` is set{why % words}"
            elif place in _OF_METHODS:
                yield from _set_twice(f"{where}`{name}`", name, config.models, config.conditions)


def _fields_by_place(
    comparison: Comparison, asked: Collection[str]
) -> Iterator[tuple[Place, str, Collection[str]]]:
    """Yield every place, the words for it, and the fields that it gives."""
    config = comparison.config
    yield "recipe", "", [*comparison.recipe, *([] if comparison.lab is None else [LAB])]
    yield "compare", "", asked
    for name, own in (config.models or {}).items():
        yield "model", f"`models`, `{name}`: ", own
    for name, fields_of_it in (config.conditions or {}).items():
        yield "condition", f"`conditions`, `{name}`: ", fields_of_it or {}
    for name in config.settings or {}:
        yield "method", f"`settings` of `{name}`: ", config.settings_of(name)
    for name, swept in (config.sweep or {}).items():
        yield "sweep of all" if name == EVERY else "sweep", f"`sweep` of `{name}`: ", swept


def _set_twice(field: str, name: str, *entries: Mapping[str, Any] | None) -> Iterator[str]:
    """Refuse a field of a method that a model or a condition sets, which would go before it."""
    for where, own in zip(("models", "conditions"), entries, strict=True):
        setting = [key for key, given in (own or {}).items() if name in (given or {})]
        if setting:
            yield (
                f"{field} is set, which `{where}`, `{setting[0]}` sets as well and could not "
                "change; keep one of them"
            )
            return
