"""The summaries of a comparison: one line a model and method, one column a metric, their average.

What others report stands in lines of its own. It is no value of the study: nothing is ranked by
it, and no difference is taken to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from balora.evaluation.metrics import metric_of
from balora.report.columns import AVERAGE, OUTSIDE, OVERALL, Column, column_of
from balora.report.statistics import Estimate, mean_interval
from balora.report.study import MAJORITY, Study
from balora.rows import place_of

REPORTED = "reported"
"""After the name of a method whose results others report."""


class Line(NamedTuple):
    """The results of one method on one model."""

    model: str
    """Empty where there are no models."""
    method: str
    results: dict[str, Estimate | float]
    """By column, as points; what others report is a number without an interval."""
    num_runs: int
    """Finished runs, of the condition that has most."""
    is_reported: bool = False

    @property
    def name(self) -> str:
        """The method, and whether others report it."""
        return f"{self.method} ({REPORTED})" if self.is_reported else self.method


class Summary(NamedTuple):
    """One summary, with what a reader must know of it."""

    name: str
    columns: dict[str, str]
    """Headings by column, the average last."""
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def heads(self) -> tuple[str, ...]:
        """The headings of the table."""
        models = ("model",) if any(line.model for line in self.lines) else ()
        return (*models, "method", *self.columns.values())

    def cells(self, line: Line) -> tuple[str, ...]:
        """Return a line as text, under `heads`."""
        first = (line.model, line.name) if self.heads[0] == "model" else (line.name,)
        return (*first, *(_text(line, column) for column in self.columns))


def summaries(study: Study) -> list[Summary]:
    """Return the summaries that the recipe asks for."""
    asked: Mapping[str, Sequence[str]] = study.settings.get("summary") or {}
    return [_summary(study, name, columns) for name, columns in asked.items()]


def _summary(study: Study, name: str, texts: Sequence[str]) -> Summary:
    conditions = tuple(study.settings.get("conditions") or ())
    columns = [column_of(text, conditions) for text in texts]
    lines: list[Line] = []
    notes: list[str] = []
    for model in _models(study):
        for method in study.methods:
            if method == MAJORITY:
                continue
            line, missing = _measured(study, model, method, columns)
            lines.append(line)
            if missing:
                notes.append(_no_average(line, missing))
            lines += _reported(study, line, texts)
    titles = {column.text: column.title for column in columns} | {AVERAGE: AVERAGE}
    notes = [_SCALE, *_sources(study, lines), *_outside(study, columns), *notes]
    return Summary(name, titles, tuple(lines), tuple(notes))


_OF_NO_ORIGIN = (OUTSIDE, OVERALL, "mismatched")
"""Places of a metric that are no data set out of domain."""
_SCALE = (
    "Points: shares, correlations and F1 times 100, MT-Bench from 1 to 10. The average is the "
    "plain mean of the columns, as in the paper, over the seeds that have all of them."
)


def _models(study: Study) -> tuple[str, ...]:
    return tuple(study.settings.get("models") or ("",))


def _measured(
    study: Study, model: str, method: str, columns: Sequence[Column]
) -> tuple[Line, list[str]]:
    """Return the line of a method, and the columns that it has no result of."""
    values = {column.text: _values(study, model, method, column) for column in columns}
    results: dict[str, Estimate | float] = {
        text: estimate
        for text, of_seeds in values.items()
        if (estimate := mean_interval(of_seeds.values())) is not None
    }
    missing = [text for text in values if text not in results]
    seeds = set.intersection(*(set(of_seeds) for of_seeds in values.values()))
    means = [
        sum(of[seed] for of in values.values()) / len(values) for seed in sorted(seeds, key=str)
    ]
    if (average := mean_interval(means)) is not None:
        results[AVERAGE] = average
    places = [place_of(model, name) for name in study.settings.get("conditions") or ("",)]
    num_runs = max(study.num_finished(place, method) for place in places)
    return Line(model, method, results, num_runs), missing


def _values(study: Study, model: str, method: str, column: Column) -> dict[int | None, float]:
    """Return the points of a column by seed."""
    names = study.settings.get("conditions") or ("",)
    asked = names if column.condition is None else (column.condition,)
    for place in (place_of(model, name) for name in asked):
        metric = column.metric or study.task_of(place)
        found = {} if metric is None else study.values(place, method, metric)
        if found and metric is not None:
            return {seed: metric_of(metric).points(value) for seed, value in found.items()}
    return {}


def _reported(study: Study, line: Line, texts: Sequence[str]) -> list[Line]:
    """Return the line of what others report of the same method and model; none where nothing is."""
    values = (study.settings.get("reference") or {}).get("values") or {}
    of_model = values.get(line.model, {}) if line.model else values
    known = of_model.get(line.method) or {}
    results: dict[str, Estimate | float] = {
        text: float(known[text]) for text in texts if text in known
    }
    if AVERAGE in known and len(results) in (0, len(texts)):  # else it is of other columns
        results[AVERAGE] = float(known[AVERAGE])
    return [Line(line.model, line.method, results, 0, is_reported=True)] if results else []


def _no_average(line: Line, missing: Sequence[str]) -> str:
    of = f"{line.method} on {line.model}" if line.model else line.method
    return f"{of} has no average: {', '.join(missing)} not measured."


def _sources(study: Study, lines: Iterable[Line]) -> list[str]:
    if not any(line.is_reported for line in lines):
        return []
    source = str((study.settings.get("reference") or {}).get("source", "")).rstrip(".")
    return [
        f"Lines that say ({REPORTED}) are not measured here, and nothing is ranked by them: "
        f"{source}."
    ]


def _outside(study: Study, columns: Iterable[Column]) -> list[str]:
    """Say which sets the means over data sets out of domain are over."""
    found = []
    for column in columns:
        place, _, metric = (column.metric or "").rpartition(":")
        if place != OUTSIDE:
            continue
        sets = dict.fromkeys(
            name.removesuffix(f":{metric}")
            for row in study.rows
            if row["condition"].rpartition("/")[2] == (column.condition or "")
            for name, value in row["metrics"].items()
            if name.endswith(f":{metric}") and value is not None
        )
        names = ", ".join(name for name in sets if name not in _OF_NO_ORIGIN)
        found.append(f"{column.text} is the mean over {names or 'no set'}.")
    return found


def _text(line: Line, column: str) -> str:
    result = line.results.get(column)
    if result is None:
        return "-"
    if not isinstance(result, Estimate):
        return f"{result:.2f}"
    half = "" if result.half_width is None else f" +- {result.half_width:.2f}"
    of = f" ({result.n} of {line.num_runs})" if result.n < line.num_runs else ""
    return f"{result.mean:.2f}{half}{of}"
