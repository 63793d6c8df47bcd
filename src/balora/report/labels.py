"""Labels beside what they name, moved apart where they would overlap."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

_SIZE = 8
"""Points of a label."""
LINE = 1.22 * _SIZE / 72
"""Inches from one line of labels to the next."""
_MAX_CHARACTERS = 26
"""Of a label; a longer name is cut."""


def shortened(name: str) -> str:
    """Return a name as a label has room for it."""
    cut = name[: _MAX_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return name if len(name) <= _MAX_CHARACTERS else cut


def plain(text: str) -> str:
    r"""Return text that matplotlib draws as it is: a dollar sign would begin mathematics."""
    return text.replace("$", r"\$")


def width_of(name: str) -> float:
    """Return about how many inches the label of a name is wide, on the safe side."""
    return 0.55 * _SIZE / 72 * len(shortened(name))


def ink(colour: str) -> tuple[float, float, float]:
    """Return a colour dark enough for text on white (a contrast of 4.5 or more)."""
    red, green, blue = to_rgb(colour)
    while 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18:
        red, green, blue = (0.95 * part for part in (red, green, blue))
    return red, green, blue


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    r"""Return positions at least `gap` apart in [low, high], as near to `wanted` as can be.

    The least squares solution: with the positions sorted, :math:`p_i - i \cdot gap` may not fall,
    which is isotonic regression. Where they cannot fit, the gap is what fits.
    """
    num = len(wanted)
    if num > 1:
        gap = min(gap, (high - low) / (num - 1))
    order = np.argsort(np.asarray(wanted, dtype=np.float64), kind="stable")
    steps = gap * np.arange(num)
    shifted = np.asarray(wanted, dtype=np.float64)[order] - steps
    room = max(high - gap * max(num - 1, 0), low)
    placed = np.empty(num)
    if num:
        placed[order] = isotonic_regression(shifted, y_min=low, y_max=room) + steps
    return [float(position) for position in placed]


def label_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]
) -> None:
    """Name lines at the right of the axes, each joined to the end of its line.

    Args:
        axes: With their limits set.
        ends: The last point of each line, in data units.
        colours: Of each line.
    """
    points = axes.transAxes.inverted().transform(axes.transData.transform(list(ends.values())))
    height = axes.get_window_extent().height / axes.figure.dpi
    places = spread(np.clip(points[:, 1], 0, 1).tolist(), LINE / height, 0.0, 1.0)
    for name, end, place in zip(ends, points, places, strict=True):
        start = (min(float(end[0]), 1.0), float(np.clip(end[1], 0, 1)))
        axes.plot(
            *zip(start, (1.02, place), (1.05, place), strict=True),
            color=colours[name],
            linewidth=0.9,
            clip_on=False,
            transform=axes.transAxes,
        )
        axes.text(
            1.06,
            place,
            plain(shortened(name)),
            va="center",
            fontsize=_SIZE,
            color=ink(colours[name]),
            transform=axes.transAxes,
        )


def label_points(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
    *,
    bars: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    others: Sequence[tuple[float, float]],
) -> None:
    """Name points, each label where it covers least: near its point, off the others.

    Args:
        axes: With their limits set.
        points: To be named, in data units.
        colours: Of each point.
        bars: The ends of the error bars of each point, by axis.
        others: Smaller points that a label should rather not cover.
    """
    unit = axes.figure.dpi / 72
    frame = axes.get_window_extent()
    spots = {name: _on_screen(axes, point) for name, point in points.items()}
    large = [_around(spot, 6 * unit) for spot in spots.values()]
    large += _bar_boxes(axes, list(points.values()), bars, unit)
    small = [_around(_on_screen(axes, other), 2 * unit) for other in others]
    taken: list[Bbox] = []
    for name in sorted(spots, key=lambda n: _crowd(spots[n], list(spots.values())), reverse=True):
        label = plain(shortened(name))
        text = axes.text(
            0, 0, label, fontsize=_SIZE, color=ink(colours[name]), va="bottom", zorder=6
        )
        size = text.get_window_extent()
        boxes = _boxes(spots[name], size.width, size.height, unit)
        costs = (
            200 * _covered(boxes, taken)
            + 60 * _covered(boxes, large)
            + 6 * _covered(boxes, small)
            + 500 * (size.width * size.height - _covered(boxes, [frame]))
            + size.width * np.array([_distance(spots[name], box) for box in boxes])
        )
        best = boxes[int(np.argmin(costs))]
        taken.append(best)
        x, y = axes.transData.inverted().transform((best.x0, best.y0))
        text.set_position((float(x), float(y)))
        if _distance(spots[name], best) > 13 * unit:
            _join(axes, spots[name], best)


def height_of_key(number: int) -> float:
    """Return how many inches `draw_key` needs for so many entries."""
    return LINE * -(-number // 2)


def draw_key(figure: Figure, entries: Sequence[tuple[str, str, str, str]]) -> None:
    """Write what the numbers of points stand for, in two columns at the foot of the figure.

    Args:
        figure: With room below its axes.
        entries: Number, name, colour and marker, in order.
    """
    rows = -(-len(entries) // 2)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, (rows + 0.5) * LINE / height))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(rows + 0.25, -0.25)
    for i, (number, name, colour, marker) in enumerate(entries):
        x, y = 0.3 + width / 2 * (i // rows), i % rows + 0.5
        axes.plot(x, y, marker, color=colour, markersize=5, mew=0)
        style: dict[str, Any] = {"fontsize": _SIZE, "va": "center", "color": ink(colour)}
        axes.text(x - 0.08, y, number, ha="right", **style)
        axes.text(x + 0.08, y, plain(shortened(name)), **style)


def _on_screen(axes: Axes, point: tuple[float, float]) -> tuple[float, float]:
    x, y = axes.transData.transform(point)
    return float(x), float(y)


def _bar_boxes(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    bars: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    unit: float,
) -> list[Bbox]:
    """Return the boxes of error bars, on the screen."""
    found = []
    for (x, y), (across, along) in zip(points, bars, strict=True):
        for ends in ([(across[0], y), (across[1], y)], [(x, along[0]), (x, along[1])]):
            box = Bbox(axes.transData.transform(ends))
            found.append(box.padded(1.5 * unit))
    return found


def _boxes(spot: Sequence[float], width: float, height: float, unit: float) -> list[Bbox]:
    """Return where a label may stand: around its point, at several distances."""
    found = []
    for radius, turn in itertools.product((8, 14, 22, 32, 44), range(16)):
        x = spot[0] + radius * unit * np.cos(turn * np.pi / 8)
        y = spot[1] + radius * unit * np.sin(turn * np.pi / 8)
        # the nearest edge of the label, not its middle, is at the radius
        left = x - width * (0.5 - 0.5 * np.cos(turn * np.pi / 8))
        low = y - height * (0.5 - 0.5 * np.sin(turn * np.pi / 8))
        found.append(Bbox.from_bounds(float(left), float(low), width, height))
    return found


def _around(spot: Sequence[float], reach: float) -> Bbox:
    return Bbox.from_bounds(spot[0] - reach, spot[1] - reach, 2 * reach, 2 * reach)


def _covered(boxes: Sequence[Bbox], others: Sequence[Bbox]) -> NDArray[np.float64]:
    """Return for each box the area that the others cover of it, each counted by itself."""
    if not others:
        return np.zeros(len(boxes))
    # extents are x0, y0, x1, y1
    ours = np.array([box.extents for box in boxes])[:, None, :]
    theirs = np.array([box.extents for box in others])[None, :, :]
    sides = np.minimum(ours, theirs)[..., 2:] - np.maximum(ours, theirs)[..., :2]
    return np.asarray(np.clip(sides, 0, None).prod(axis=-1).sum(axis=-1))


def _nearest(spot: Sequence[float], box: Bbox) -> tuple[float, float]:
    return (
        float(np.clip(spot[0], box.x0, box.x1)),
        float(np.clip(spot[1], box.y0, box.y1)),
    )


def _distance(spot: Sequence[float], box: Bbox) -> float:
    x, y = _nearest(spot, box)
    return float(np.hypot(spot[0] - x, spot[1] - y))


def _crowd(spot: Sequence[float], spots: Sequence[Sequence[float]]) -> float:
    """Say how near the others are: what has least room is placed first."""
    return sum(1 / (1 + float(np.hypot(spot[0] - s[0], spot[1] - s[1]))) for s in spots)


def _join(axes: Axes, spot: Sequence[float], box: Bbox) -> None:
    line = axes.transData.inverted().transform([spot, _nearest(spot, box)])
    axes.plot(line[:, 0], line[:, 1], color="#888888", linewidth=0.6, zorder=3)
