"""The before / after table, as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balora.evaluation.inheritance import Inheritance

_ROWS = (
    ("exact match", "exact_match", "{:.1%}"),
    ("KL to the pre-trained model (nats/token)", "kl", "{:.4f}"),
    ("response entropy (nats/token)", "entropy", "{:.4f}"),
    ("response loss (nats/token)", "response_loss", "{:.4f}"),
    ("loss on retained text (nats/token)", "retention_loss", "{:.4f}"),
)


def format_table(columns: Mapping[str, Inheritance]) -> str:
    """Return one line per figure and one column per model; with two, their difference as well.

    A figure that no model has is left out; one that a model lacks is a dash.

    Raises:
        ValueError: If there is no model.
    """
    if not columns:
        raise ValueError("`columns` is empty: there is no model to show.")
    lines = [["", *columns, *(["change"] if len(columns) == 2 else [])]]
    for title, name, form in _ROWS:
        values = [getattr(column, name) for column in columns.values()]
        if all(value is None for value in values):
            continue
        cells = ["-" if value is None else form.format(value) for value in values]
        if len(values) == 2:
            cells.append(_change(values, form))
        lines.append([title, *cells])
    return aligned(lines)


def _change(values: list[float | None], form: str) -> str:
    before, after = values
    if before is None or after is None:
        return "-"
    return form.replace("{:", "{:+").format(after - before)


def aligned(lines: list[list[str]]) -> str:
    """Return lines of cells as text: the first column to the left, a rule below the first line."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, rows))
    return "\n".join([rows[0], rule, *rows[1:]])
