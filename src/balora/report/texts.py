"""Metrics as text: means, paired differences with their stars, how many cells stand behind them."""

from __future__ import annotations

from balora.evaluation.metrics import metric_of
from balora.report.statistics import LEVEL, Estimate
from balora.report.study import MAJORITY, Study


def mean_text(study: Study, condition: str, method: str, name: str) -> str:
    """Return ``mean +- half the interval``, the mean alone for one seed, a dash for none.

    The mean of equal values has no interval, which is said.
    Where some of the finished runs have no value, how many have one stands behind it.
    """
    estimate = study.estimate(condition, method, name)
    if estimate is None:
        return "-"
    metric, half = metric_of(name), estimate.half_width
    text = metric.show(estimate.mean) + ("" if half is None else f" +- {metric.show(half)}")
    return text + _behind(estimate, study.num_finished(condition, method))


def difference_text(study: Study, condition: str, method: str, name: str) -> str:
    """Return the difference of a method to the baseline: ``difference [low, high]`` and stars.

    One star where the interval excludes 0, two where the difference also holds after the correction
    for all methods of the column. Where some of the finished runs have no pair, how many have one
    stands behind it.
    """
    estimate = study.difference(condition, method, name)
    if estimate is None:
        return "-"
    text, low, high = (metric_of(name).show(value, is_signed=True) for value in estimate[:3])
    if estimate.low is not None:
        text += f" [{low}, {high}]"
    if estimate.excludes_zero:
        corrected = study.corrected(condition, name).get(method)
        text += " **" if corrected is not None and corrected <= LEVEL else " *"
    return text + _behind(estimate, study.num_finished(condition, method))


def _behind(estimate: Estimate, num_runs: int) -> str:
    same = " (same)" if estimate.is_constant else ""
    return same + (f" ({estimate.n} of {num_runs})" if estimate.n < num_runs else "")


def seeds_text(study: Study, condition: str, method: str) -> str:
    """Return how many cells a mean is over, how many failed and how many have not run."""
    if method == MAJORITY:
        return "-"
    others = {
        "failed": study.num_failed(condition, method),
        "missing": study.num_missing(condition, method),
    }
    said = ", ".join(f"{number} {what}" for what, number in others.items() if number)
    return f"{study.num_finished(condition, method)}" + (f" ({said})" if said else "")
