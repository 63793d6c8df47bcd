"""Metrics as a table of plain text or Markdown: what the console and the files of a run show.

Titles and formats are those of the registry (:mod:`balora.evaluation.metrics`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from balora.evaluation.metrics import metric_of

Columns: TypeAlias = Mapping[str, Mapping[str, Any]]
"""From the heading of a column to its values by the name of the metric."""


def format_table(columns: Columns) -> str:
    """Return one line per metric: the first model, then every other one and its change from it.

    A metric that no model has is left out; one that a model lacks is a dash.

    Raises:
        ValueError: If there is no model.
    """
    names = dict.fromkeys(
        name for column in columns.values() for name, value in column.items() if value is not None
    )
    lines = metric_lines(columns, names, changes=True)
    first, *others = columns
    heads = ["", first, *(word for name in others for word in (name, "change"))]
    return aligned([heads, *lines])


def metric_lines(
    columns: Columns, names: Iterable[str], *, changes: bool = False
) -> list[list[str]]:
    """Return a line of cells per metric: its title, then the value of each column.

    Args:
        columns: The values.
        names: The metrics in order.
        changes: Whether the difference from the first column stands after every other one.

    Raises:
        ValueError: If there is no column.
    """
    if not columns:
        raise ValueError("`columns` is empty: there is nothing to show.")
    lines = []
    for name in names:
        metric = metric_of(name)
        first, *others = (column.get(name) for column in columns.values())
        cells = [metric.title, metric.show(first)]
        for value in others:
            cells.append(metric.show(value))
            if changes:
                change = None if first is None or value is None else value - first
                cells.append(metric.show(change, is_signed=True))
        lines.append(cells)
    return lines


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text: the first column to the left, a rule below the first line."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, rows))
    return "\n".join([rows[0], rule, *rows[1:]])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a Markdown table, what Markdown would read as markup escaped."""
    rule = ("---", *["---:"] * (len(lines[0]) - 1))
    escaped = [[markdown_text(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (escaped[0], rule, *escaped[1:]))


def markdown_text(text: str) -> str:
    """Return a text that Markdown shows as it stands, with a plus-minus sign for ``+-``."""
    escaped = re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text)
    return escaped.replace("+-", "\N{PLUS-MINUS SIGN}")
