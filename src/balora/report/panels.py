"""The panels of the report's plots: one figure each, one colour per method throughout.

Each takes what it draws by method, at least one; how each method looks; a title, which may be
empty; and limits, the same in all panels that are compared. Panels are small enough to be read at
the width of a phone; on a wider page they stand side by side, one per condition. Everything is
drawn on figures of their own: pyplot and its state are not used.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from balora.evaluation.metrics import Metric
from balora.report.labels import (
    LINE,
    Array,
    draw_key,
    height_of_key,
    label_ends,
    label_points,
    plain,
    shortened,
    width_of,
)
from balora.report.statistics import Estimate

# Paul Tol's "muted" scheme, safe for colour-blind readers; those that are faint on white come last
_COLOURS = (
    *("#332288", "#CC6677", "#117733", "#AA4499", "#44AA99"),
    *("#882255", "#999933", "#88CCEE", "#DDCC77"),
)
_MARKERS = "osD^vPXph"
_GREY, _INK = "#6b6b6b", "#222222"
_MOST_NAMES = 14
"""Points that are named where they are; of more, each has a number and the names stand below."""
WIDTH = 3.9
"""Inches of every panel."""
_LEFT = 0.165
"""Where axes begin, as a fraction of the width."""
_WHOLE = FuncFormatter(lambda value, _: f"{value:.6g}")
"""Ticks that need no offset beside the axis, which would be read as one of them or not at all."""
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}%")
STYLE: Any = {
    "axes.edgecolor": "#9a9a9a",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.size": 8.5,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "path.simplify_threshold": 0.5,
    "svg.fonttype": "path",  # a reader need not have the font
    "svg.hashsalt": "balora",  # the same picture is the same file
    "text.color": _INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


class Look(NamedTuple):
    """How a method is drawn, in every plot."""

    colour: str
    marker: str
    dash: str


class Curve(NamedTuple):
    """A quantity over the steps: each seed, and their mean on common steps."""

    seeds: list[tuple[Array, Array]]
    mean: tuple[Array, Array]


class Bar(NamedTuple):
    """The result of a method on a model."""

    model: str
    """Empty where there are no models."""
    method: str
    mean: float | None
    half: float | None
    """Half the interval, None without one."""
    reported: float | None
    """What others report, None where they do not."""


class Spot(NamedTuple):
    """A method in the plane of forgetting and task: its runs, their mean, both intervals."""

    runs: list[tuple[float, float]]
    x: Estimate
    y: Estimate

    @property
    def bars(self) -> list[tuple[float, float, float, float]]:
        """Return left, lower, right and upper end of both intervals."""
        (x, *_), (y, *_) = self.x, self.y
        wide, high = self.x.half_width or 0, self.y.half_width or 0
        return [(x - wide, y, x + wide, y), (x, y - high, x, y + high)]


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Return how each method is drawn; beyond nine the colours repeat with another dash."""
    dashes = ("-", "--", ":", "-.")
    found = {}
    for i, name in enumerate(methods):
        lap, turn = divmod(i, len(_COLOURS))
        marker = _MARKERS[(turn + lap) % len(_MARKERS)]
        found[name] = Look(_COLOURS[turn], marker, dashes[lap % len(dashes)])
    return found


def curves_panel(
    curves: Mapping[str, Curve],
    look: Mapping[str, Look],
    *,
    title: str,
    quantity: str,
    limits: tuple[float, float],
) -> Figure:
    """Draw a quantity, which the title names, over the steps: each mean, its seeds faint."""
    height = max(3.2, 0.8 + LINE * len(curves))
    # not along the axis: there is no room beside ticks such as -0.00125
    heading = ": ".join(part for part in (title, quantity) if part)
    figure, axes = _panel(heading, height=height, right=_right(curves))
    for name, curve in curves.items():
        colour, _, dash = look[name]
        for steps, values in curve.seeds if len(curve.seeds) > 1 else ():
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.6, zorder=2)
        axes.plot(*curve.mean, color=colour, linestyle=dash, linewidth=1.6, zorder=3)
    _scale(axes, limits)
    axes.set_xlim(0, max(curve.mean[0][-1] for curve in curves.values()) or 1)
    axes.set_xlabel("step")
    ends = {n: (float(c.mean[0][-1]), float(c.mean[1][-1])) for n, c in curves.items()}
    label_ends(axes, ends, {name: look[name].colour for name in curves})
    return figure


def tradeoff_panel(
    spots: Mapping[str, Spot],
    look: Mapping[str, Look],
    *,
    title: str,
    metrics: tuple[Metric, Metric],
    before: float | None,
    limits: tuple[tuple[float, float], tuple[float, float]],
) -> Figure:
    """Draw the task score over what was kept: a small point per run, a large one per mean.

    Metrics and limits are of the x axis, then of the y axis; before is what the pre-trained model
    has on the x axis, None where it was not measured.
    """
    labels = {name: name for name in spots}
    key = 0.0
    if len(spots) > _MOST_NAMES:
        labels = {name: str(i) for i, name in enumerate(spots, start=1)}
        key = height_of_key(len(spots))
    # wider ticks than elsewhere: 99.00%
    figure, axes = _panel(
        title, height=3.6 + key, right=0.95, left=_LEFT + 0.04, bottom=(0.45 + key) / (3.6 + key)
    )
    if before is not None:
        _draw_before(axes, before)
    for name, spot in spots.items():
        _draw_spot(axes, spot, look[name])
    for axis, metric in zip((axes.xaxis, axes.yaxis), metrics, strict=True):
        axis.set_label_text(metric.title)
        axis.set_major_formatter(_PERCENT if metric.form.endswith("%}") else _WHOLE)
    axes.set_xlim(*_padded(limits[0]))
    axes.set_ylim(*_padded(limits[1]))
    axes.locator_params(axis="x", nbins=6)  # more of them touch
    if key:
        draw_key(figure, [(labels[name], name, *look[name][:2]) for name in spots])
    if (arrow := better(*metrics)) is not None:
        axes.set_title(f"better {arrow}", loc="right", fontsize=9, fontweight="normal")
    label_points(
        axes,
        {labels[name]: (spot.x.mean, spot.y.mean) for name, spot in spots.items()},
        {labels[name]: look[name].colour for name in spots},
        bars=[line for spot in spots.values() for line in spot.bars],
        others=[run for spot in spots.values() for run in spot.runs],
    )
    return figure


def _draw_before(axes: Axes, before: float) -> None:
    """Draw where the pre-trained model is on the x axis."""
    axes.axvline(before, color=_GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    style: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "bottom", "fontsize": 8}
    place = axes.get_xaxis_transform()
    axes.text(before, 0.02, " pre-trained ", color=_GREY, transform=place, **style)


def _draw_spot(axes: Axes, spot: Spot, look: Look) -> None:
    """Draw the runs of a method, their mean and its intervals."""
    colour, marker, _ = look
    for x, y in spot.runs:
        axes.plot(x, y, marker, color=colour, markersize=3.5, alpha=0.35, mew=0, zorder=2)
    axes.errorbar(
        spot.x.mean,
        spot.y.mean,
        xerr=spot.x.half_width,
        yerr=spot.y.half_width,
        fmt=marker,
        color=colour,
        markersize=7.5,
        elinewidth=1.1,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=4,
    )


def better(x: Metric, y: Metric) -> str | None:
    """Return an arrow to the corner where both metrics are better; None where one has no way."""
    ways = {"up": ("EAST", "NORTH"), "down": ("WEST", "SOUTH")}
    if x.direction == "none" or y.direction == "none":
        return None
    return unicodedata.lookup(f"{ways[y.direction][1]} {ways[x.direction][0]} ARROW")


def spectra_panel(
    before: Array | None,
    after: Mapping[str, Array],
    look: Mapping[str, Look],
    *,
    title: str,
) -> Figure:
    """Draw the singular values of the logits, descending, and below them after / before.

    Without those of the pre-trained model there is no lower part.
    """
    right, names = _right(after), LINE * len(after)
    if before is None:
        figure, upper = _panel(title, height=max(3.0, 0.8 + names), right=right)
        lower = upper
    else:
        # the names stand beside the lower part, which has 0.44 of the height
        figure, upper = _panel(title, height=max(4.4, names / 0.44), right=right, bottom=0.60)
        lower = figure.add_axes((_LEFT, 0.10, right - _LEFT, 0.44), sharex=upper)
        upper.tick_params(labelbottom=False)
        upper.plot(_index(before), before, color=_INK, linestyle="--", linewidth=1.1, zorder=4)
        upper.text(0.97, 0.93, "dashed: before", ha="right", va="top", transform=upper.transAxes)
        lower.axhline(1, color=_INK, linestyle="--", linewidth=1.1, zorder=1)
        lower.set_ylabel("after / before")
        lower.yaxis.set_major_formatter(_WHOLE)
    ends = {}
    for name, values in after.items():
        colour, _, dash = look[name]
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.4, "zorder": 3}
        index = _index(values)
        upper.plot(index, values, **style)
        if before is not None:
            index, values = _ratio(values, before)
            lower.plot(index, values, **style)
        ends[name] = (float(index[-1]), float(values[-1]))
    upper.set_yscale("log")
    upper.set_ylabel("singular value")
    lower.set_xlabel("index of the singular value")
    lower.set_xlim(left=1)
    label_ends(lower, ends, {name: look[name].colour for name in after})
    return figure


def _index(values: Array) -> Array:
    return np.arange(1, len(values) + 1, dtype=np.float64)


def _ratio(after: Array, before: Array) -> tuple[Array, Array]:
    """Return after / before by index, from 1, where both are and before is not 0."""
    num = min(len(after), len(before))
    kept = np.flatnonzero(before[:num] > 0)
    return kept.astype(np.float64) + 1, after[kept] / before[kept]


def updates_panel(
    sizes: Mapping[str, Mapping[str, float]],
    layers: Sequence[str],
    *,
    title: str,
    limits: tuple[float, float],
) -> Figure:
    """Draw a map of methods x layers: the relative size of the update, on a log scale.

    The layers are in the model's order; one that was not trained has no size. Limits are greater
    than 0.
    """
    height = 1.2 + 0.24 * len(sizes)
    left = (max(map(width_of, sizes)) + 0.15) / WIDTH
    figure, axes = _panel(title, height=height, left=left, right=0.95, bottom=0.85 / height)
    table = np.array([[sizes[m].get(name, np.nan) for name in layers] for m in sizes])
    axes.set_facecolor("#ededed")
    with np.errstate(invalid="ignore"):
        table = np.where(table > 0, table, np.nan)
    low, high = limits if limits[0] < limits[1] else (limits[0] / 2, limits[1] * 2)
    image = axes.imshow(
        table, aspect="auto", interpolation="nearest", cmap="cividis", norm=LogNorm(low, high)
    )
    axes.set_yticks(range(len(sizes)), [plain(shortened(name)) for name in sizes])
    groups = layer_groups(layers)
    for start, _, _ in groups[1:]:
        axes.axvline(start - 0.5, color="white", linewidth=1)
    every = -(-len(groups) // 16)  # room for about 16 labels
    axes.set_xticks(
        [(start + end - 1) / 2 for start, end, _ in groups[::every]],
        [name for _, _, name in groups[::every]],
    )
    axes.tick_params(length=0)
    axes.grid(visible=False)
    scale = figure.add_axes((left, 0.42 / height, 0.95 - left, 0.09 / height))
    figure.colorbar(image, cax=scale, orientation="horizontal")
    scale.minorticks_off()
    ticks = [low, (low * high) ** 0.5, high]
    scale.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks], fontsize=7.5)
    axes.set_xlabel("block", fontsize=8, labelpad=1)
    return figure


def bars_panel(
    bars: Sequence[Bar], look: Mapping[str, Look], *, title: str, quantity: str
) -> Figure:
    """Draw a bar for each model and method, from above, with a mark where others report it.

    Methods that have no look of their own, as the pre-trained model, are grey.
    """
    heading = ": ".join(part for part in (title, quantity) if part)
    num_models = len({bar.model for bar in bars})
    height = 0.85 + 0.2 * len(bars) + 0.2 * num_models
    left = (max(width_of(bar.method) for bar in bars) + 0.15) / WIDTH
    figure, axes = _panel(heading, height=height, left=left, right=0.95)
    place, places, above = 0.0, list[float](), None
    for bar in bars:
        if bar.model != above:
            axes.text(0, place + 0.1, f" {plain(shortened(bar.model))}", fontweight="bold")
            place += 1
            above = bar.model
        colour = look[bar.method].colour if bar.method in look else _GREY
        if bar.mean is not None:
            axes.barh(place, bar.mean, 0.78, color=colour, xerr=bar.half, ecolor=_INK, zorder=2)
        if bar.reported is not None:
            style: dict[str, Any] = {"mfc": "white", "mec": _INK, "markersize": 5}
            axes.plot(bar.reported, place, "D", zorder=4, **style)
        places.append(place)
        place += 1
    axes.set_yticks(places, [plain(shortened(bar.method)) for bar in bars])
    axes.set_ylim(place - 0.4, -0.7)
    if all(value is None or value >= 0 for bar in bars for value in (bar.mean, bar.reported)):
        axes.set_xlim(left=0)  # a correlation may be below
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("points; a diamond is what others report")
    return figure


def layer_groups(layers: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return start, end and label of runs of layers: the number of a block, or the layer's name."""
    groups: list[tuple[int, int, str]] = []
    for i, name in enumerate(layers):
        number = re.search(r"\.(\d+)\.", f".{name}.")
        label = number[1] if number else re.sub(r"^lm_|ed_tokens$", "", name.rpartition(".")[2])
        if groups and number and groups[-1][2] == label:
            groups[-1] = (groups[-1][0], i + 1, label)
        else:
            groups.append((i, i + 1, label))
    return groups


def _right(names: Iterable[str]) -> float:
    """Return where axes end that have names at their right."""
    return 1 - (max(map(width_of, names)) + 0.25) / WIDTH


def _panel(
    title: str, *, height: float, right: float, left: float = _LEFT, bottom: float | None = None
) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes; fractions of the figure say where they are."""
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    low = 0.45 / height if bottom is None else bottom
    axes = figure.add_axes((left, low, right - left, 1 - 0.32 / height - low))
    axes.set_title(plain(title))
    return figure, axes


def _scale(axes: Axes, limits: tuple[float, float]) -> None:
    """Set the y axis: logarithmic where values are positive and span more than a factor 30."""
    low, high = limits
    if low > 0 and high / low > 30:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
    else:
        axes.set_ylim(*_padded(limits, 0.05))
        axes.yaxis.set_major_formatter(_WHOLE)


def _padded(limits: tuple[float, float], share: float = 0.1) -> tuple[float, float]:
    if limits == (0.0, 0.0):
        return -0.05, 1.0  # a share or a loss of 0 in every run: there is nothing below
    room = share * ((limits[1] - limits[0]) or abs(limits[0]) or 1.0)
    return limits[0] - room, limits[1] + room


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem.png`` and ``stem.svg``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    # few colours: a palette makes a third of the size
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(256).save(stem.with_name(f"{stem.name}.png"), optimize=True)
    figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None, "Creator": None})


def style() -> AbstractContextManager[None]:
    """Return a context in which panels are drawn."""
    return matplotlib.rc_context(STYLE)
