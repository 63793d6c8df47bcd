"""The tables of a comparison: on the console, as Markdown, as CSV and as LaTeX.

A table for each condition: the main metrics with their paired differences to the baseline and what
a run costs, then every other metric. They need neither matplotlib nor jinja2.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from balora.evaluation.bench.judges import judged_by
from balora.evaluation.metrics import metric_of
from balora.evaluation.table import aligned, markdown, markdown_text
from balora.files import write_text
from balora.report.findings import unfinished, unlearned
from balora.report.statistics import Estimate
from balora.report.study import COSTS, Study
from balora.report.summary import Summary, summaries
from balora.report.texts import difference_text, mean_text, seeds_text

_SHOWN_COSTS = {
    "num_trainable_parameters": "parameters",
    "train_seconds": "train s",
    "peak_memory_mib": "MiB",
}
"""Costs of the main table, with their headings on the console."""
_SUMMARY_HEADS = (
    *("summary", "model", "method", "is_reported", "column", "mean", "low", "high", "n"),
)
_CSV_HEADS = (
    *("condition", "method", "metric", "mean", "low", "high", "n", "num_failed", "baseline"),
    *("difference", "difference_low", "difference_high", "num_pairs", "excludes_zero"),
    *("p_value", "corrected_p_value"),
)


class Table(NamedTuple):
    """One table as text, without any markup."""

    condition: str
    """Name of the condition, empty where there are none."""
    heads: tuple[str, ...]
    """Of the columns."""
    lines: tuple[tuple[str, ...], ...]
    """One per method."""


def format_console(study: Study) -> str:
    """Return the main table of every condition, the summaries, and what the intervals are."""
    parts = []
    for condition in study.conditions:
        table = main_table(study, condition, is_short=True)
        title = [f"Condition {condition}:", ""] if condition else []
        parts.append("\n".join([*title, aligned([table.heads, *table.lines])]))
    for summary in summaries(study):
        lines = [summary.heads, *map(summary.cells, summary.lines)]
        parts.append("\n".join([f"{summary.name}:", "", aligned(lines), "", *summary.notes]))
    return "\n\n".join([*parts, note(study)])


def write_tables(study: Study) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.tex`` into the folder, each by rename.

    And ``summary.csv``, where the recipe asks for summaries.
    """
    write_text(study.folder / "table.md", _markdown(study))
    write_text(study.folder / "table.csv", _csv(study))
    write_text(study.folder / "table.tex", _latex(study))
    if found := summaries(study):
        write_text(study.folder / "summary.csv", _summary_csv(found))


def main_table(study: Study, condition: str, *, is_short: bool = False) -> Table:
    """Return the metrics of `Study.main`, the differences to the baseline, costs and seeds.

    Args:
        study: The comparison.
        condition: One of its conditions.
        is_short: Whether headings are cut to what a console has room for.
    """
    heads = ["method"]
    columns = [list(study.methods)]
    for name in study.main(condition):
        title = metric_of(name).title
        heads.append(_without_unit(title) if is_short else title)
        columns.append([mean_text(study, condition, method, name) for method in study.methods])
        if study.baseline is not None:
            heads.append(f"{'to' if is_short else 'difference to'} {study.baseline}")
            texts = [difference_text(study, condition, m, name) for m in study.methods]
            columns.append(texts)
    for name, short in _SHOWN_COSTS.items():
        means = [study.estimate(condition, method, name) for method in study.methods]
        if any(means):
            metric = metric_of(name)
            heads.append(short if is_short else metric.title)
            columns.append([metric.show(e.mean if e else None) for e in means])
    heads.append("seeds")
    columns.append([seeds_text(study, condition, method) for method in study.methods])
    return Table(condition, tuple(heads), tuple(zip(*columns, strict=True)))


def other_table(study: Study, condition: str) -> Table | None:
    """Return the metrics that the main table drops; None when it has them all."""
    names = study.others(condition)
    if not names:
        return None
    lines = [
        (method, *(mean_text(study, condition, method, name) for name in names))
        for method in study.methods
    ]
    return Table(condition, ("method", *(metric_of(n).title for n in names)), tuple(lines))


def note(study: Study) -> str:
    """Return what the metrics of a table are, what judged them, and why they are not ranked."""
    state = unfinished(study)
    judges = judged_by(
        row.get("bench", {}).get("judged_by", {}) for row in study.rows if row["error"] is None
    )
    rest = [state] if state else unlearned(study).values()
    return " ".join([_what_is_shown(study), *judges, *rest])


def _what_is_shown(study: Study) -> str:
    if study.num_seeds == 1:
        text = "Metrics of one seed: they have no interval, and say nothing about the next seed."
        return text if study.baseline is None else f"{text} Differences are to {study.baseline}."
    text = (
        "Mean over seeds +- half the 95% interval of the mean (Student's t); (same) where every "
        "seed has one value, from which no interval follows."
    )
    if study.baseline is None:
        return text
    number = len([method for method in study.trained if method != study.baseline])
    together = "the one difference" if number == 1 else f"all {number} differences"
    return (
        f"{text} Differences to {study.baseline} are paired by seed, with their 95% interval: "
        "* where it excludes 0, as one in twenty does by chance where there is no difference; "
        f"** where that holds at the 5% level for {together} of the column together "
        "(Holm's correction)."
    )


def _without_unit(title: str) -> str:
    return re.sub(r" \([^)]*\)$", "", title)


def _tables(study: Study) -> Iterable[Table]:
    for condition in study.conditions:
        yield main_table(study, condition)
        other = other_table(study, condition)
        if other is not None:
            yield other


def _markdown(study: Study) -> str:
    parts, above = [], ""
    for table in _tables(study):
        if table.condition != above:
            parts.append(f"### {markdown_text(table.condition)}")
        above = table.condition
        parts.append(markdown([table.heads, *table.lines]))
    for summary in summaries(study):
        parts.append(f"### {markdown_text(summary.name)}")
        parts.append(markdown([summary.heads, *map(summary.cells, summary.lines)]))
        parts += map(markdown_text, summary.notes)
    return "\n\n".join([*parts, markdown_text(note(study))]) + "\n"


def _csv(study: Study) -> str:
    """One line for each condition, method and metric or cost; what there is not is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEADS)
    for condition in study.conditions:
        for method in study.methods:
            for name in (*study.metrics, *COSTS):
                values = _csv_values(study, condition, method, name)
                writer.writerow([condition, method, name, *values])
    return out.getvalue()


def _summary_csv(found: Iterable[Summary]) -> str:
    """One line for each summary, model, method and column; of what others report there is no n."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_SUMMARY_HEADS)
    for summary in found:
        for line in summary.lines:
            for column in summary.columns:
                result = line.results.get(column)
                own = result[:4] if isinstance(result, Estimate) else (result, None, None, None)
                is_reported = str(line.is_reported).lower()
                writer.writerow([summary.name, line.model, line.method, is_reported, column, *own])
    return out.getvalue()


def _csv_values(study: Study, condition: str, method: str, name: str) -> list[object]:
    mean = study.estimate(condition, method, name)
    difference = study.difference(condition, method, name)
    own = [None, None, None, 0] if mean is None else list(mean[:4])
    paired: list[object] = [None, None, None, 0, None, None, None]
    if difference is not None:
        corrected = study.corrected(condition, name).get(method)
        is_beyond = None if difference.low is None else difference.excludes_zero
        paired = [*difference[:4], is_beyond, difference.p_value, corrected]
    return [*own, study.num_failed(condition, method), study.baseline, *paired]


def _latex(study: Study) -> str:
    parts = ["% needs \\usepackage{booktabs}"]
    for table in _tables(study):
        if table.condition:
            parts.append(f"% condition {table.condition}")
        parts.append(_latex_table(table.heads, table.lines))
    for summary in summaries(study):
        parts.append("\n".join(f"% {line}" for line in (summary.name, *summary.notes)))
        parts.append(_latex_table(summary.heads, [*map(summary.cells, summary.lines)]))
    return "\n\n".join(parts) + "\n"


def _latex_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        _latex_line(heads),
        "\\midrule",
        *map(_latex_line, lines),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(rows)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def _latex_line(cells: Sequence[str]) -> str:
    line = " & ".join(map(_latex_cell, cells)) + r" \\"
    # the end of the line above would take these for its own
    return f"{{}}{line}" if line.startswith(("[", "*")) else line


def _latex_cell(text: str) -> str:
    if text == "-":
        return "--"
    escaped = "".join(_LATEX.get(mark, mark) for mark in text)
    escaped = re.sub(r" (\*+)", r"$^{\1}$", escaped).replace("+-", r"$\pm$")
    # the sign of a number, not the hyphen of a name
    return re.sub(r"(?<![\w.$])-(?=[\d.])", "$-$", escaped)
