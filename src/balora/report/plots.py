"""The plots of a comparison, as PNG and SVG: the numbers behind each panel, then the drawing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from balora.evaluation.metrics import metric_of
from balora.report import figures
from balora.report.figures import Curve, Look, Spot
from balora.report.labels import Array
from balora.report.statistics import mean_interval
from balora.report.study import Study
from balora.rows import BASE

FOLDER = "plots"
TERMS: Mapping[str, str] = {
    "task_loss": "task loss",
    "consistency_loss": "consistency term",
    "diversity_loss": "diversity term",
    "svd_loss": "SVD term",
}
"""What a learning curve may show."""
_MAX_POINTS = 60
"""Of a learning curve; more cannot be told apart at the size of a panel."""

Details = Mapping[str, Mapping[str, Any]]


class Plot(NamedTuple):
    """One panel that was drawn."""

    kind: str
    """``tradeoff``, ``curves``, ``spectra`` or ``updates``."""
    condition: str
    """Name of the condition, empty where there are none."""
    alt: str
    """What it shows, for who cannot see it."""
    stem: Path
    """Where it is, without ``.png`` or ``.svg``."""


def write_plots(study: Study, details: Details) -> list[Plot]:
    """Draw what the cells have figures for into ``plots/`` and say what there is.

    Args:
        study: The comparison.
        details: As `Study.details` returns them; what a cell lacks is left out.
    """
    folder = study.folder / FOLDER
    folder.mkdir(exist_ok=True)
    look = figures.looks(study.trained)
    drawn = []
    with figures.style():
        for kind, draw in _KINDS.items():
            for condition, name, alt, figure in draw(study, details, look):
                parts = [_file_name(part) for part in (kind, name, condition) if part]
                stem = folder / "--".join(parts)
                figures.save(figure, stem)
                drawn.append(Plot(kind, condition, alt, stem))
    return drawn


def _file_name(text: str) -> str:
    """Return a text as part of a file's name, with a hash where another would be the same."""
    name = re.sub(r"[^\w.+=-]+", "_", text)
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


Panels = Iterator[tuple[str, str, str, Figure]]
"""Condition, name of the panel, alternative text, drawing."""


def _tradeoff(study: Study, details: Details, look: Mapping[str, Look]) -> Panels:
    if study.task is None or study.retention is None:
        return
    x, y = metric_of(study.retention), metric_of(study.task)
    for condition in study.conditions:
        found = _spots(study, condition)
        if found:
            before = _before(study, condition, study.retention)
            runs = np.array([run for spot in found.values() for run in spot.runs])
            known = runs[:, 0] if before is None else np.append(runs[:, 0], before)
            figure = figures.tradeoff_panel(
                found,
                look,
                title=condition,
                metrics=(x, y),
                before=before,
                # of the runs: the interval of two seeds can be ten times as wide as what they span
                limits=(_range(known), _range(runs[:, 1])),
            )
            yield condition, "", f"{y.title} against {x.title}, a point per run", figure


def _spots(study: Study, condition: str) -> dict[str, Spot]:
    found = {}
    assert study.task is not None
    assert study.retention is not None
    for method in study.trained:
        xs = study.values(condition, method, study.retention)
        ys = study.values(condition, method, study.task)
        runs = [(xs[seed], ys[seed]) for seed in xs if seed in ys]
        x, y = (mean_interval(values) for values in ([r[0] for r in runs], [r[1] for r in runs]))
        if x is not None and y is not None:
            found[method] = Spot(runs, x, y)
    return found


def _before(study: Study, condition: str, name: str) -> float | None:
    value = study.estimate(condition, BASE, name)
    return None if value is None else value.mean


def _curves(study: Study, details: Details, look: Mapping[str, Look]) -> Panels:
    for term, title in TERMS.items():
        found = {c: _curves_of(study, details, c, term) for c in study.conditions}
        values = [
            line
            for curves in found.values()
            for curve in curves.values()
            for _, line in (*curve.seeds, curve.mean)
        ]
        if not values:
            continue
        limits = _range(np.concatenate(values))
        for condition, curves in found.items():
            if curves:
                figure = figures.curves_panel(
                    curves, look, title=condition, quantity=title, limits=limits
                )
                yield condition, term, f"{title} over the steps, a line per method", figure


def _curves_of(study: Study, details: Details, condition: str, term: str) -> dict[str, Curve]:
    found = {}
    for method in study.trained:
        lines = []
        for row in study.of(condition, method):
            points = [
                (point["step"], point[term])
                for point in details.get(row["cell"], {}).get("curves") or ()
                if point.get(term) is not None and point.get("step") is not None
            ]
            if points:
                steps, values = np.array(points, dtype=np.float64).T
                lines.append((steps, values))
        if lines:
            found[method] = mean_curve(lines)
    return found


def mean_curve(lines: Sequence[tuple[Array, Array]], max_points: int = _MAX_POINTS) -> Curve:
    """Return lines on common steps, and their mean over the steps that all of them span.

    Args:
        lines: Steps, ascending, and values of each seed; at least one.
        max_points: At most this many steps, evenly spaced; values between are interpolated.
    """
    first = max(steps[0] for steps, _ in lines)
    last = min(steps[-1] for steps, _ in lines)
    grid = np.unique(np.concatenate([steps for steps, _ in lines]))
    common = grid[(grid >= first) & (grid <= last)]
    if not len(common):  # the runs have no step in common
        common = grid
    if len(common) > max_points:
        common = common[np.linspace(0, len(common) - 1, max_points).round().astype(int)]
    values = [np.interp(common, steps, line) for steps, line in lines]
    return Curve([(common, line) for line in values], (common, np.mean(values, axis=0)))


def _spectra(study: Study, details: Details, look: Mapping[str, Look]) -> Panels:
    for condition in study.conditions:
        rows = [row for method in study.methods for row in study.of(condition, method)]
        before = _mean_of(_spectrum(details, row["cell"], "before") for row in rows)
        after = {
            method: mean
            for method in study.trained
            if (mean := _mean_of(_spectra_of(study, details, condition, method))) is not None
        }
        if after:
            figure = figures.spectra_panel(before, after, look, title=condition)
            yield condition, "", "singular values of the logits before and after", figure


def _spectra_of(study: Study, details: Details, condition: str, method: str) -> Iterable[Any]:
    return (_spectrum(details, row["cell"], "after") for row in study.of(condition, method))


def _spectrum(details: Details, cell: str, when: str) -> Any:
    return (details.get(cell, {}).get("spectrum") or {}).get(when)


def _mean_of(spectra: Iterable[Any]) -> Array | None:
    """Return the mean of those that are there, as long as the shortest; None for none."""
    # of a model that was lost to NaN there is nothing to draw
    found = [spectrum for spectrum in spectra if spectrum and None not in spectrum]
    if not found:
        return None
    num = min(map(len, found))
    mean: Array = np.mean([np.asarray(s[:num], dtype=np.float64) for s in found], axis=0)
    return mean


def _updates(study: Study, details: Details, look: Mapping[str, Look]) -> Panels:
    del look  # a map has a scale instead
    found = {c: _sizes(study, details, c) for c in study.conditions}
    maps = [sizes for by_method in found.values() for sizes in by_method.values()]
    positive = [size for sizes in maps for size in sizes.values() if size > 0]
    if not positive:
        return
    layers = list(dict.fromkeys(name for sizes in sorted(maps, key=len)[::-1] for name in sizes))
    for condition, sizes in found.items():
        if sizes:
            figure = figures.updates_panel(sizes, layers, title=condition, limits=_range(positive))
            yield condition, "", "size of the update, methods by layers", figure


def _sizes(study: Study, details: Details, condition: str) -> dict[str, dict[str, float]]:
    """Return the mean over the seeds of the relative size, by method and layer."""
    found = {}
    for method in study.trained:
        seen: dict[str, list[float]] = {}
        for row in study.of(condition, method):
            for update in details.get(row["cell"], {}).get("updates") or ():
                if update["relative"] is not None:
                    seen.setdefault(update["layer"], []).append(update["relative"])
        if seen:
            found[method] = {name: float(np.mean(values)) for name, values in seen.items()}
    return found


def _range(values: Sequence[float] | Array) -> tuple[float, float]:
    return float(np.min(values)), float(np.max(values))


_KINDS: Mapping[str, Callable[[Study, Details, Mapping[str, Look]], Panels]] = {
    "tradeoff": _tradeoff,
    "curves": _curves,
    "spectra": _spectra,
    "updates": _updates,
}
