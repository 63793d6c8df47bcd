"""The plots of a comparison, as PNG and SVG: the numbers behind each panel, then the drawing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from balora.evaluation.metrics import metric_of
from balora.report import panels
from balora.report.labels import Array
from balora.report.panels import Bar, Curve, Look, Spot
from balora.report.statistics import Estimate, mean_interval
from balora.report.study import Study
from balora.report.summary import Line, summaries
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


class Plot(NamedTuple):
    """One panel that was drawn."""

    kind: str
    """``summary``, ``tradeoff``, ``curves``, ``spectra`` or ``updates``."""
    condition: str
    """Name of the condition, empty where there are none, or of the summary."""
    alt: str
    """What it shows, for who cannot see it."""
    stem: Path
    """Where it is, without ``.png`` or ``.svg``."""


def write_plots(study: Study) -> list[Plot]:
    """Draw what the cells have values for into ``plots/`` and say what there is.

    Args:
        study: The comparison; what the details of its cells lack is dropped.
    """
    folder = study.folder / FOLDER
    folder.mkdir(exist_ok=True)
    look = panels.looks(study.trained)
    drawn = []
    with panels.style():
        for kind, draw in _KINDS.items():
            for condition, name, alt, figure in draw(study, look):
                parts = [_file_name(part) for part in (kind, name, condition) if part]
                stem = folder / "--".join(parts)
                panels.save(figure, stem)
                drawn.append(Plot(kind, condition, alt, stem))
    return drawn


def _file_name(text: str) -> str:
    """Return a text as part of a file's name, with a hash where another would be the same."""
    name = re.sub(r"[^\w.+=-]+", "_", text)
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


Panels = Iterator[tuple[str, str, str, Figure]]
"""Condition, name of the panel, alternative text, drawing."""


def _tradeoff(study: Study, look: Mapping[str, Look]) -> Panels:
    for condition in study.conditions:
        task, retention = study.task_of(condition), study.retention_of(condition)
        if task is None or retention is None:
            continue
        x, y = metric_of(retention), metric_of(task)
        spots = {
            method: spot
            for method in study.trained
            if (spot := _spot(study, condition, method, x.name, y.name)) is not None
        }
        if not spots:
            continue
        base = study.estimate(condition, BASE, x.name)
        xs, ys = np.array([run for spot in spots.values() for run in spot.runs]).T
        figure = panels.tradeoff_panel(
            spots,
            look,
            title=condition,
            metrics=(x, y),
            before=None if base is None else base.mean,
            # of the runs: the interval of two seeds can be ten times as wide as what they span
            limits=(_range(xs if base is None else [*xs, base.mean]), _range(ys)),
        )
        yield condition, "", f"{y.title} against {x.title}, a point per run", figure


def _spot(study: Study, condition: str, method: str, x: str, y: str) -> Spot | None:
    """Return the runs of a method that have both metrics; None where none has."""
    xs, ys = (study.values(condition, method, name) for name in (x, y))
    runs = [(xs[seed], ys[seed]) for seed in xs if seed in ys]
    means = [mean_interval(run[i] for run in runs) for i in (0, 1)]
    return None if means[0] is None or means[1] is None else Spot(runs, means[0], means[1])


def _curves(study: Study, look: Mapping[str, Look]) -> Panels:
    for term, title in TERMS.items():
        found = {c: _curves_of(study, c, term) for c in study.conditions}
        curves = [curve for of_condition in found.values() for curve in of_condition.values()]
        if not curves:
            continue
        values = [line for curve in curves for _, line in (*curve.seeds, curve.mean)]
        limits = _range(np.concatenate(values))
        for condition, of_condition in found.items():
            if of_condition:
                figure = panels.curves_panel(
                    of_condition, look, title=condition, quantity=title, limits=limits
                )
                yield condition, term, f"{title} over the steps, a line per method", figure


def _curves_of(study: Study, condition: str, term: str) -> dict[str, Curve]:
    found = {}
    for method in study.trained:
        lines = []
        for points in study.details(condition, method, "curves"):
            known = [
                (p["step"], p[term]) for p in points if None not in (p.get("step"), p.get(term))
            ]
            if known:
                steps, values = np.array(known, dtype=np.float64).T
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


def _spectra(study: Study, look: Mapping[str, Look]) -> Panels:
    for condition in study.conditions:
        before = _mean_spectrum(study, condition, study.methods, "before")
        after = {
            method: mean
            for method in study.trained
            if (mean := _mean_spectrum(study, condition, [method], "after")) is not None
        }
        if after:
            figure = panels.spectra_panel(before, after, look, title=condition)
            yield condition, "", "singular values of the logits before and after", figure


def _mean_spectrum(study: Study, condition: str, methods: Sequence[str], when: str) -> Array | None:
    """Return the mean of the spectra that are there, as long as the shortest; None for none."""
    every = (own.get(when) for m in methods for own in study.details(condition, m, "spectrum"))
    # of a model that was lost to NaN there is nothing to draw
    found = [spectrum for spectrum in every if spectrum and None not in spectrum]
    num = min(map(len, found), default=0)
    return np.array([own[:num] for own in found], dtype=np.float64).mean(axis=0) if num else None


def _updates(study: Study, look: Mapping[str, Look]) -> Panels:
    del look  # a map has a scale instead
    found = {c: _sizes(study, c) for c in study.conditions}
    maps = [sizes for by_method in found.values() for sizes in by_method.values()]
    positive = [size for sizes in maps for size in sizes.values() if size > 0]
    if not positive:
        return
    layers = list(dict.fromkeys(name for sizes in sorted(maps, key=len)[::-1] for name in sizes))
    for condition, sizes in found.items():
        if sizes:
            figure = panels.updates_panel(sizes, layers, title=condition, limits=_range(positive))
            yield condition, "", "size of the update, methods by layers", figure


def _sizes(study: Study, condition: str) -> dict[str, dict[str, float]]:
    """Return the mean over the seeds of the relative size, by method and layer."""
    found = {}
    for method in study.trained:
        seen: dict[str, list[float]] = {}
        for updates in study.details(condition, method, "updates"):
            for update in updates:
                if update["relative"] is not None:
                    seen.setdefault(update["layer"], []).append(update["relative"])
        if seen:
            found[method] = {name: float(np.mean(values)) for name, values in seen.items()}
    return found


def _bars(study: Study, look: Mapping[str, Look]) -> Panels:
    for summary in summaries(study):
        reported = {(one.model, one.method): one for one in summary.lines if one.is_reported}
        own = [line for line in summary.lines if not line.is_reported]
        for column, title in summary.columns.items():
            bars = [_bar(line, reported.get((line.model, line.method)), column) for line in own]
            bars = [bar for bar in bars if (bar.mean, bar.reported) != (None, None)]
            if any(bar.mean is not None for bar in bars):
                figure = panels.bars_panel(bars, look, title=summary.name, quantity=title)
                alt = f"{title}, a bar for each model and method"
                yield summary.name, column, alt, figure


def _bar(line: Line, others: Line | None, column: str) -> Bar:
    result = line.results.get(column)
    mean = result if isinstance(result, Estimate) else None
    reported = None if others is None else others.results.get(column)
    return Bar(
        line.model,
        line.method,
        None if mean is None else mean.mean,
        None if mean is None else mean.half_width,
        reported if isinstance(reported, float) else None,
    )


def _range(values: Sequence[float] | Array) -> tuple[float, float]:
    return float(np.min(values)), float(np.max(values))


_KINDS: Mapping[str, Callable[[Study, Mapping[str, Look]], Panels]] = {
    "summary": _bars,
    "tradeoff": _tradeoff,
    "curves": _curves,
    "spectra": _spectra,
    "updates": _updates,
}
