"""The figures of benchmarks as plain text: one line a metric, one column a model."""

from __future__ import annotations

from collections.abc import Mapping

from balora.evaluation.bench.suite import Figure
from balora.evaluation.metrics import metric_of
from balora.evaluation.table import aligned

Figures = Mapping[str, Figure]


def format_figures(models: Mapping[str, Figures]) -> str:
    """Return the table; each value has its standard error after it, and each benchmark its size.

    Raises:
        ValueError: If there is no model.
    """
    if not models:
        raise ValueError("`models` is empty: there is nothing to show.")
    names = list(dict.fromkeys(name for figures in models.values() for name in figures))
    lines = [["", *models]]
    for name in names:
        columns = [figures.get(name) for figures in models.values()]
        lines.append([_title(name, columns), *(_cell(name, figure) for figure in columns)])
    return aligned(lines)


def _title(name: str, columns: list[Figure | None]) -> str:
    sizes = {figure.n for figure in columns if figure is not None}
    size = f", n = {sizes.pop()}" if len(sizes) == 1 else ""
    return f"{metric_of(name).title}{size}"


def _cell(name: str, figure: Figure | None) -> str:
    if figure is None or figure.value is None or figure.standard_error is None:
        return "-"
    metric = metric_of(name)
    return f"{metric.show(figure.value)} +- {metric.form.format(figure.standard_error)}"
