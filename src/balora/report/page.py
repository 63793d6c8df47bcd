"""``report.html``: one page with tables, plots, samples and how to run it again.

The file holds everything it shows and forbids itself to load anything else, so that it can be
mailed, and reads the same in ten years.
"""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from balora.errors import ConfigError
from balora.evaluation.metrics import Metric
from balora.files import write_text
from balora.report.headline import findings, headline, matched, unfinished, unlearned
from balora.report.sections import facts, failed, samples, sweep_tolerance, sweeps
from balora.report.statistics import Estimate
from balora.report.study import MAJORITY, Study, read_study, shown
from balora.report.tables import differences_text, main_table, mean_text, note, other_table
from balora.rows import COMPARISON_FILE

if TYPE_CHECKING:
    from balora.report.plots import Plot

REPORT_FILE = "report.html"
MAX_PICTURE_BYTES = 2_000_000
"""Of all pictures as they stand in the page, which with everything else stays under 3 MB."""
_PACKAGES = ("matplotlib", "jinja2")
_KINDS: Mapping[str, tuple[str, str]] = {
    "tradeoff": (
        "What was learned against what was kept",
        "A small point is one run, a large one the mean of a method with its 95% interval along "
        "both axes, cut where it leaves the panel. The axes are each panel's own. Look for methods "
        "in the better corner (arrow), and compare forgetting only between methods of like height: "
        "who learns nothing forgets nothing.",
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


class MissingPackageError(ConfigError, ModuleNotFoundError):
    """A package of the extra ``report`` that is not installed: exit status 2."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"the report needs {package}, which is not installed; `pip install 'balora[report]'`."
        )
        self.name = package


class Picture(NamedTuple):
    """A panel as it stands in the page."""

    source: str
    """A data URI."""
    alt: str
    """What it shows."""


class Bar(NamedTuple):
    """An interval drawn in a cell of a table, in percent of the cell's width."""

    low: float
    high: float
    mean: float
    zero: float


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    """What it says."""
    verdict: str = ""
    """``better`` or ``worse`` where a difference is beyond its interval."""
    bar: Bar | None = None
    """The interval of a difference, on the scale of its column."""
    is_best: bool = False
    """Whether it has the best mean of its column."""


def write_report(folder: Path) -> None:
    """Write ``report.html`` and the plots beside it.

    Args:
        folder: Of the comparison; ``details.json`` of cells may be missing, and so is then what
            would be shown of them.

    Raises:
        ConfigError: If the folder holds no comparison.
        MissingPackageError: If matplotlib or jinja2 is not installed.
    """
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(name)
    study = read_study(folder)
    details = study.details()
    from balora.report.plots import write_plots

    write_text(folder / REPORT_FILE, _page(study, details, write_plots(study, details)))


def _page(study: Study, details: Mapping[str, Any], plots: Sequence[Plot]) -> str:
    import jinja2

    from balora.report.figures import looks

    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=templates,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        headline=headline(study),
        findings=findings(study),
        note=_typographic(note(study)),
        counts=_counts(study),
        tables=[_table(study, condition) for condition in study.conditions],
        others=[t for c in study.conditions if (t := other_table(study, c)) is not None],
        colours={name: look.colour for name, look in looks(study.trained).items()},
        plots=_by_kind(plots),
        matched=matched(study),
        samples=samples(study, details),
        sweeps=sweeps(study),
        sweep_tolerance=sweep_tolerance(study),
        facts=facts(study),
        failed=failed(study),
        recipe=_recipe(study),
        typographic=_typographic,
    )


def _recipe(study: Study) -> str:
    file = study.folder / COMPARISON_FILE
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _typographic(text: str) -> str:
    return text.replace("+-", "\N{PLUS-MINUS SIGN}")


def _counts(study: Study) -> list[tuple[str, str]]:
    """Return the figures at the top of the page, each with what it counts."""
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
    """Return the main table with what is drawn in its cells."""
    plain = main_table(study, condition)
    columns: list[list[Cell]] = []
    for name in study.main:
        columns.append(_means(study, condition, name))
        if study.baseline is not None:
            columns.append(_differences(study, condition, name))
    rest = list(zip(*(line[1 + len(columns) :] for line in plain.lines), strict=True))
    columns += [[Cell(text) for text in column] for column in rest]
    lines = [list(cells) for cells in zip(*columns, strict=True)]
    return {
        "condition": condition,
        "heads": plain.heads[1:],
        "lines": list(zip(study.methods, lines, strict=True)),
    }


def _means(study: Study, condition: str, name: str) -> list[Cell]:
    metric = shown(name)
    means = {method: study.estimate(condition, method, name) for method in study.methods}
    whole = [m for m in study.trained if study.is_whole(condition, m, name)]
    known = [e.mean for m, e in means.items() if e is not None and m in whole]
    best = None
    is_ranked = unfinished(study) is None and condition not in unlearned(study)
    if is_ranked and metric.higher_is_better is not None and len(known) > 1:
        best = max(known) if metric.higher_is_better else min(known)
    return [
        Cell(
            _typographic(mean_text(estimate, study.num_finished(condition, method), metric)),
            is_best=estimate is not None and method in whole and estimate.mean == best,
        )
        for method, estimate in means.items()
    ]


def _differences(study: Study, condition: str, name: str) -> list[Cell]:
    """Return the paired differences, on one scale for all conditions.

    The pre-trained model is left out of the scale: it would press all others together.
    """
    metric = shown(name)
    every = [study.difference(c, m, name) for c in study.conditions for m in study.trained]
    ends = [v for d in every if d is not None for v in (d.mean, d.low, d.high) if v is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    cells = []
    texts = differences_text(study, condition, name)
    for method, text in zip(study.methods, texts, strict=True):
        difference = study.difference(condition, method, name)
        bar = _bar(difference, low, high) if method in study.trained else None
        verdict = _verdict(difference, metric) if method in study.trained else ""
        cells.append(Cell(text, verdict, bar))
    return cells


def _verdict(difference: Estimate | None, metric: Metric) -> str:
    if difference is None or not difference.excludes_zero or metric.higher_is_better is None:
        return ""
    return "better" if (difference.mean > 0) == metric.higher_is_better else "worse"


def _bar(difference: Estimate | None, low: float, high: float) -> Bar | None:
    if difference is None or low == high:
        return None

    def place(value: float) -> float:
        return round(3 + 94 * (value - low) / (high - low), 2)

    ends = [difference.mean if end is None else end for end in (difference.low, difference.high)]
    return Bar(place(ends[0]), place(ends[1]), place(difference.mean), place(0.0))


def _by_kind(plots: Sequence[Plot]) -> list[dict[str, Any]]:
    pictures = dict(zip(plots, _pictures(plots), strict=True))
    return [
        {
            "kind": kind,
            "title": title,
            "caption": caption,
            "pictures": [pictures[plot] for plot in plots if plot.kind == kind],
        }
        for kind, (title, caption) in _KINDS.items()
        if any(plot.kind == kind for plot in plots)
    ]


def _pictures(plots: Sequence[Plot]) -> list[Picture]:
    """Return the panels as SVG, or as PNG from the largest on, as far as the budget asks for it.

    Where that is still too much, the last panels are left to their files.
    """
    forms = [{end: _uri(plot.stem, end) for end in ("svg", "png")} for plot in plots]
    chosen = ["svg"] * len(plots)
    left = sum(len(form["svg"]) for form in forms)
    savings = [len(form["svg"]) - len(form["png"]) for form in forms]
    for i in sorted(range(len(plots)), key=lambda i: -savings[i]):
        if left <= MAX_PICTURE_BYTES or savings[i] <= 0:
            break
        chosen[i] = "png"
        left -= savings[i]
    found, used = [], 0
    for plot, form, end in zip(plots, forms, chosen, strict=True):
        used += len(form[end])
        where = f"{plot.alt}, {plot.condition}" if plot.condition else plot.alt
        has_room = used <= MAX_PICTURE_BYTES
        found.append(
            Picture(form[end], where)
            if has_room
            else Picture("", f"{where}: see plots/{plot.stem.name}.png")
        )
    return found


def _uri(stem: Path, end: str) -> str:
    kind = {"svg": "image/svg+xml", "png": "image/png"}[end]
    content = stem.with_name(f"{stem.name}.{end}").read_bytes()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
