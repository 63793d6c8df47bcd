"""``report.html``: one page with tables, plots, samples and how to run it again.

The file holds everything it shows and forbids itself to load anything else, so that it can be
mailed, and reads the same in ten years.
"""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balora.errors import ConfigError
from balora.evaluation.metrics import metric_of
from balora.files import write_text
from balora.report.findings import matched, unfinished, unlearned
from balora.report.sections import facts, failed, samples, sweeps
from balora.report.study import MAJORITY, Study
from balora.report.summary import summaries
from balora.report.tables import main_table, note, other_table
from balora.rows import COMPARISON_FILE

if TYPE_CHECKING:
    from balora.report.plots import Plot

REPORT_FILE = "report.html"
MAX_PICTURE_BYTES = 2_000_000
"""Of all pictures as they stand in the page, which with everything else stays under 3 MB."""
_PACKAGES = ("matplotlib", "jinja2")
_KINDS: Mapping[str, tuple[str, str]] = {
    "summary": (
        "Across conditions",
        "The mean of every model and method with its 95% interval over the seeds. A diamond is "
        "what others report of the same; it was not measured here.",
    ),
    "tradeoff": (
        "What was learned against what was kept",
        "A small point is one run, a large one the mean of a method with its 95% interval along "
        "both axes, cut where it leaves the panel. The axes are each panel's own. Look for methods "
        "in the better corner (arrow), and compare forgetting only between methods of like height: "
        "a method that learns nothing forgets nothing.",
    ),
    "curves": (
        "Learning curves",
        "The mean over seeds is strong, each seed faint. Look at whether the task loss has "
        "levelled off, and whether a term still moves: one that does not change anything stays "
        "flat. Terms are as logged, without their coefficient; a method is missing where its term "
        "is off.",
    ),
    "spectra": (
        "Spectra of the logits",
        "Singular values of the logits of the same response tokens, before and after. Look at the "
        "lower part: above 1 a direction has grown, below 1 it has shrunk; a line that falls from "
        "left to right is a model whose answers gather in few directions.",
    ),
    "updates": (
        "Where the weights changed",
        "The size of the update relative to the weight, ||dW|| / ||W|| (Frobenius), layer by "
        "layer in the model's order, on a log scale: bright is large, grey was not trained. Look "
        "for rows that are darker as a whole (gentler methods) and for blocks that stand out.",
    ),
}
"""Heading and caption of each kind of plot, in the order of the page."""


class MissingPackageError(ConfigError):
    """A package of the extra ``report`` is not installed."""


def write_report(study: Study) -> None:
    """Write ``report.html`` and the plots beside it.

    Args:
        study: The comparison; what the details of its cells lack is dropped.

    Raises:
        MissingPackageError: If matplotlib or jinja2 is not installed.
    """
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(
                f"{name} is not installed, which the report needs: `pip install 'balora[report]'`."
            )
    from balora.report.plots import write_plots

    write_text(study.folder / REPORT_FILE, _page(study, write_plots(study)))


def _page(study: Study, plots: Sequence[Plot]) -> str:
    import jinja2

    from balora.report.panels import looks

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typographic"] = _typographic
    file = study.folder / COMPARISON_FILE
    return environment.get_template("report.html.jinja").render(
        title=_title(study),
        state=[unfinished(study)] if unfinished(study) else [*unlearned(study).values()],
        matched=matched(study),
        counts=_counts(study),
        note=note(study),
        tables=[_table(study, condition) for condition in study.conditions],
        summaries=[
            (
                one.name,
                one.heads,
                [(one.cells(line), line.is_reported) for line in one.lines],
                one.notes,
            )
            for one in summaries(study)
        ],
        others=[t for c in study.conditions if (t := other_table(study, c)) is not None],
        colours={name: look.colour for name, look in looks(study.trained).items()},
        plots=_by_kind(plots),
        samples=samples(study),
        sweeps=sweeps(study),
        sweep_tolerance=study.settings.get("sweep_tolerance"),
        facts=facts(study),
        failed=failed(study),
        recipe=file.read_text(encoding="utf-8") if file.is_file() else "",
    )


def _typographic(text: str) -> str:
    return text.replace("+-", "\N{PLUS-MINUS SIGN}")


def _title(study: Study) -> str:
    """Return what the page is about: the metric of the task and that of what was kept."""
    names = [name for name in (study.task, study.retention) if name is not None]
    title = " and ".join(metric_of(name).title for name in names) or "no metrics yet"
    return title[0].upper() + title[1:]


def _counts(study: Study) -> list[tuple[str, str]]:
    """Return the metrics at the top of the page, each with what it counts."""
    num_failed = len(failed(study))
    numbers = [
        (len([name for name in study.methods if name != MAJORITY]), "method"),
        (len(study.seeds), "seed"),
        (len([name for name in study.conditions if name]), "condition"),
        (len(study.rows) + len(study.tried) - num_failed, "finished cell"),
        (num_failed, "failed cell"),
        (len(study.missing), "missing cell"),
    ]
    return [(str(n), name + ("" if n == 1 else "s")) for n, name in numbers if n]


def _table(study: Study, condition: str) -> dict[str, Any]:
    """Return the main table, each cell with its mark: best, better, worse or none."""
    table, marks = main_table(study, condition), dict[tuple[str, int], str]()
    is_ranked = unfinished(study) is None and condition not in unlearned(study)
    column = 1
    for name in study.main(condition):
        best = study.best(condition, name, study.trained) if is_ranked else ()
        marks |= {(method, column): "best" for method in best if len(study.trained) > 1}
        if study.baseline is not None:
            column += 1
            marks |= {(m, column): _verdict(study, condition, m, name) for m in study.trained}
        column += 1
    lines = [
        (method, [(text, marks.get((method, i), "")) for i, text in enumerate(texts, start=1)])
        for method, *texts in table.lines
    ]
    return {"condition": condition, "heads": table.heads[1:], "lines": lines}


def _verdict(study: Study, condition: str, method: str, name: str) -> str:
    """Say whether a difference to the baseline that is beyond its interval is for the better."""
    difference, metric = study.difference(condition, method, name), metric_of(name)
    if difference is None or not difference.excludes_zero or metric.higher_is_better is None:
        return ""
    return "better" if metric.gain(difference.mean) > 0 else "worse"


def _by_kind(plots: Sequence[Plot]) -> list[dict[str, Any]]:
    """Return the panels by kind, each as a data URI with what it shows.

    They are SVG, or PNG where that is too much; what still does not fit is left to its file.
    """
    sources = [_uri(plot.stem, "svg") for plot in plots]
    if sum(map(len, sources)) > MAX_PICTURE_BYTES:
        sources = [_uri(plot.stem, "png") for plot in plots]
    pictures: dict[str, list[tuple[str, str]]] = {}
    used = 0
    for plot, source in zip(plots, sources, strict=True):
        used += len(source)
        alt = f"{plot.alt}, {plot.condition}" if plot.condition else plot.alt
        if used > MAX_PICTURE_BYTES:
            source, alt = "", f"{alt}: see plots/{plot.stem.name}.png"
        pictures.setdefault(plot.kind, []).append((source, alt))
    return [
        {"kind": kind, "title": title, "caption": caption, "pictures": pictures[kind]}
        for kind, (title, caption) in _KINDS.items()
        if kind in pictures
    ]


def _uri(stem: Path, end: str) -> str:
    kind = {"svg": "image/svg+xml", "png": "image/png"}[end]
    content = stem.with_name(f"{stem.name}.{end}").read_bytes()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
