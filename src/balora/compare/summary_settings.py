"""What a recipe asks of its summaries and their reference, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from balora.compare.comparison import Comparison
from balora.compare.methods import parse_method
from balora.config.words import suggestion
from balora.errors import ConfigError
from balora.evaluation.metrics import measured_by, metric_of
from balora.report.columns import AVERAGE, Column, column_of
from balora.rows import place_of

_PARTS = ("source", "values")


def summary_problems(comparison: Comparison) -> list[str]:
    """Say what is wrong with `summary` and `reference`, each problem once."""
    problems = []
    for name, columns in (comparison.config.summary or {}).items():
        problems += [
            f"`summary`, `{name}`: {problem}"
            for text in columns
            if (problem := _column_problem(comparison, text)) is not None
        ]
    if comparison.config.reference is not None:
        problems += _reference_problems(comparison, comparison.config.reference)
    return problems


def _column_problem(comparison: Comparison, text: str) -> str | None:
    conditions = tuple(comparison.config.conditions or ())
    column = column_of(text, conditions)
    if text == AVERAGE:
        return f"`{AVERAGE}` stands there without being named; leave it out"
    if column.metric is None:
        return None
    measuring = _measuring(comparison, column)
    if not measuring:
        known = sorted({name for c in _names(comparison) for name in _metrics(comparison, c)})
        return (
            f"`{text}` is measured in no cell{suggestion(text, [*conditions, *known])}; name "
            "a condition, or one of " + ", ".join(known)
        )
    if len(measuring) > 1:
        return (
            f"`{text}` is measured under {', '.join(measuring)}; say under which, such as "
            f"{measuring[0]}/{text}"
        )
    if metric_of(column.metric).direction != "up":
        return f"`{text}` has no place in an average: more of it is not better"
    return None


def _names(comparison: Comparison) -> tuple[str, ...]:
    return tuple(comparison.config.conditions or ("",))


def _measuring(comparison: Comparison, column: Column) -> list[str]:
    """Return the conditions that measure a column, empty without a name where there is one."""
    asked = _names(comparison) if column.condition is None else (column.condition,)
    return [name for name in asked if _is_measured(comparison, name, str(column.metric))]


def _is_measured(comparison: Comparison, condition: str, metric: str) -> bool:
    if comparison.kind.evaluates_itself and ":" in metric:
        metric = metric.rpartition(":")[2]
    return metric in _metrics(comparison, condition)


def _metrics(comparison: Comparison, condition: str) -> tuple[str, ...]:
    """Return the metrics that a condition measures, those of its benchmarks by their prefix."""
    lab = () if comparison.lab is None else ("lab",)
    own = measured_by(*comparison.kind.instruments, *lab)
    place = place_of(next(iter(comparison.config.models or ("",))), condition)
    benchmarks = comparison.bench_of(place).get("benchmarks", ())
    return own + tuple(
        name
        for name in measured_by("benchmark")
        if any(name == one or name.startswith(f"{one}_") for one in benchmarks)
    )


def _reference_problems(comparison: Comparison, reference: Mapping[str, Any]) -> list[str]:
    config = comparison.config
    unknown = [name for name in reference if name not in _PARTS]
    if unknown:
        name = unknown[0]
        return [f"`reference` has `{name}`{suggestion(str(name), _PARTS)}; it takes source, values"]
    source, values = reference.get("source"), reference.get("values")
    if not (isinstance(source, str) and source.strip()):
        return ["`reference` has no `source`: say where its values stand"]
    if not (isinstance(values, Mapping) and values):
        return ["`reference` has no `values`: give numbers by model, method and column"]
    if config.summary is None:
        return ["`reference` is set, but there is no `summary` that it could stand beside"]
    known = [*dict.fromkeys(text for columns in config.summary.values() for text in columns)]
    return [*_values_problems(comparison, values, [*known, AVERAGE])]


def _values_problems(
    comparison: Comparison, values: Mapping[Any, Any], columns: list[str]
) -> Iterator[str]:
    models = comparison.config.models
    by_model = values if models else {"": values}
    for model, methods in by_model.items():
        where = f"`reference`, `{model}`" if model else "`reference`"
        if models and model not in models:
            yield f"{where} is none of `models`{suggestion(str(model), models)}"
        if not isinstance(methods, Mapping):
            yield f"{where} must be a mapping from methods to numbers by column, got {methods!r}"
            continue
        for method, numbers in methods.items():
            if (problem := _method_problem(comparison, method)) is not None:
                yield f"{where}: {problem}"
            elif not isinstance(numbers, Mapping):
                yield f"{where}, `{method}` must be a mapping of numbers by column, got {numbers!r}"
            else:
                yield from _number_problems(f"{where}, `{method}`", numbers, columns)


def _method_problem(comparison: Comparison, method: Any) -> str | None:
    if method in (comparison.config.methods or ()):
        return None
    try:
        parse_method(str(method), comparison.config.own_names)
    except ConfigError as error:
        return str(error).rstrip(".")
    return None  # a method that is left out this time


def _number_problems(where: str, numbers: Mapping[Any, Any], columns: list[str]) -> Iterator[str]:
    for column, value in numbers.items():
        if column not in columns:
            yield f"{where}: `{column}` is no column of `summary`{suggestion(str(column), columns)}"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{where}: `{column}` must be a number, got {value!r}"
