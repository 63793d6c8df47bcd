"""The scores of benchmarks as plain text: one line a metric, one column a model."""

from __future__ import annotations

from collections.abc import Mapping

from balora.evaluation.bench.suite import Score
from balora.evaluation.metrics import metric_of
from balora.evaluation.table import aligned

Scores = Mapping[str, Score]


def format_scores(models: Mapping[str, Scores]) -> str:
    """Return the table; each value has its standard error after it, and each benchmark its size.

    Raises:
        ValueError: If there is no model.
    """
    if not models:
        raise ValueError("`models` is empty: there is nothing to show.")
    names = list(dict.fromkeys(name for scores in models.values() for name in scores))
    lines = [["", *models]]
    for name in names:
        columns = [scores.get(name) for scores in models.values()]
        lines.append([_title(name, columns), *(_cell(name, score) for score in columns)])
    return aligned(lines)


def _title(name: str, columns: list[Score | None]) -> str:
    sizes = {score.n for score in columns if score is not None}
    size = f", n = {sizes.pop()}" if len(sizes) == 1 else ""
    return f"{metric_of(name).title}{size}"


def _cell(name: str, score: Score | None) -> str:
    if score is None or score.value is None or score.standard_error is None:
        return "-"
    metric = metric_of(name)
    return f"{metric.show(score.value)} +- {metric.form.format(score.standard_error)}"
