"""Labels beside what they name, moved apart where they would overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

Array = NDArray[np.float64]

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
    bars: Sequence[tuple[float, float, float, float]],
    others: Sequence[tuple[float, float]],
) -> None:
    """Name points, each label where it covers least: near its point, off the others.

    Args:
        axes: With their limits set.
        points: To be named, in data units.
        colours: Of each point.
        bars: Left, lower, right and upper end of lines that a label should rather not cover.
        others: Smaller points that a label should rather not cover.
    """
    unit = axes.figure.dpi / 72
    frame = np.array([axes.get_window_extent().extents])
    spots = axes.transData.transform(list(points.values()))
    ends = axes.transData.transform(np.reshape(bars, (-1, 2))).reshape(-1, 4)
    small = axes.transData.transform(np.reshape(others, (-1, 2)))
    taken = [_grown(np.tile(spots, 2), 6 * unit), _grown(ends, 1.5 * unit)]
    taken += [_grown(np.tile(small, 2), 2 * unit)]
    weights = [60.0] * (len(spots) + len(ends)) + [6.0] * len(small)
    # what has least room is placed first
    crowd = (1 / (1 + np.hypot(*(spots[:, None] - spots).transpose(2, 0, 1)))).sum(axis=1)
    names = list(points)
    for i in np.argsort(-crowd, kind="stable"):
        label, colour = plain(shortened(names[i])), ink(colours[names[i]])
        text = axes.text(0, 0, label, fontsize=_SIZE, color=colour, va="bottom", zorder=6)
        size = text.get_window_extent()
        boxes = _boxes(spots[i], size.width, size.height, unit)
        near = np.clip(spots[i], boxes[:, :2], boxes[:, 2:])
        distance = np.hypot(*(spots[i] - near).T)
        cost = _covered(boxes, np.concatenate(taken)) @ weights + size.width * distance
        cost += 500 * (size.width * size.height - _covered(boxes, frame)[:, 0])
        best = int(np.argmin(cost))
        taken.append(boxes[best : best + 1])
        weights.append(200.0)
        x, y = axes.transData.inverted().transform(boxes[best, :2])
        text.set_position((x, y))
        if distance[best] > 13 * unit:
            line = axes.transData.inverted().transform([spots[i], near[best]])
            axes.plot(line[:, 0], line[:, 1], color="#888888", linewidth=0.6, zorder=3)


def height_of_key(number: int) -> float:
    """Return how many inches `draw_key` needs for so many entries."""
    return LINE * -(-number // 2)


def draw_key(figure: Figure, entries: Sequence[tuple[str, str, str, str]]) -> None:
    """Write what the numbers of points stand for, in two columns at the foot of the figure.

    Args:
        figure: With room below its axes.
        entries: Number, name, colour and marker, in order.
    """
    figure.legend(
        [Line2D([], [], color=c, marker=m, ls="", ms=5, mew=0) for _, _, c, m in entries],
        [f"{number} {plain(shortened(name))}" for number, name, *_ in entries],
        labelcolor=[ink(colour) for _, _, colour, _ in entries],
        loc="lower left",
        ncols=2,
        frameon=False,
        borderpad=0,
        handletextpad=0,
        labelspacing=0.12,
        fontsize=_SIZE,
    )


def _grown(boxes: Array, reach: float) -> Array:
    """Return boxes (left, lower, right, upper), shape (N, 4), that reach further on every side."""
    return boxes + reach * np.array([-1, -1, 1, 1])


def _boxes(spot: Array, width: float, height: float, unit: float) -> Array:
    """Return where a label may stand, shape (80, 4): around its point, at several distances."""
    turns = np.arange(16) * np.pi / 8
    way = np.tile(np.stack([np.cos(turns), np.sin(turns)], axis=1), (5, 1))
    radius = np.repeat([8, 14, 22, 32, 44], 16)[:, None] * unit
    # the nearest edge of the label, not its middle, is at the radius
    low = spot + radius * way - np.array([width, height]) * (0.5 - 0.5 * way)
    return np.concatenate([low, low + np.array([width, height])], axis=1)


def _covered(boxes: Array, others: Array) -> Array:
    """Return the area that each of N boxes shares with each of M others, shape (N, M)."""
    ours, theirs = boxes[:, None], others[None]
    sides = np.minimum(ours, theirs)[..., 2:] - np.maximum(ours, theirs)[..., :2]
    return np.asarray(np.clip(sides, 0, None).prod(axis=-1))
