r"""Means over seeds and paired differences, with their 95% intervals.

Seeds are the sample: an interval says where the mean over other seeds would lie if they were drawn
as these were. It covers one comparison; of twenty differences that are none, one is outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Of every interval."""


class Estimate(NamedTuple):
    """A mean over seeds and its interval."""

    mean: float
    """In the unit of the values."""
    low: float | None
    """Lower end of the interval; None where the sample is one value."""
    high: float | None
    """Upper end."""
    n: int
    """Values, or pairs of values."""

    @property
    def half_width(self) -> float | None:
        """Return half the width of the interval, at least 0; None where there is none."""
        return None if self.high is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Say whether the interval leaves 0 out; False where there is no interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(values: Iterable[float]) -> Estimate | None:
    r"""Return the mean of independent values and its interval by Student's t.

    .. math::
        \bar x \pm t_{0.975,\, n-1} \frac{s}{\sqrt n}, \qquad
        s^2 = \frac{1}{n-1} \sum_{i=1}^{n} (x_i - \bar x)^2

    in float64, with :math:`t` the quantile of Student's distribution. It presumes values that are
    about normal over the seeds; equal values give an interval of width 0.

    Args:
        values: One per seed.

    Returns:
        None without a value; an `Estimate` without an interval for one value.

    Raises:
        ValueError: If a value is NaN or infinite: a mean of it would hide the others.
    """
    sample = np.fromiter(values, dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError(f"`values` must be finite, got {sample.tolist()}.")
    if not len(sample):
        return None
    mean = float(sample.mean())
    if len(sample) == 1:
        return Estimate(mean, None, None, 1)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(sample) - 1))
    half = quantile * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return Estimate(mean, mean - half, mean + half, len(sample))


def paired_difference(
    values: Mapping[int | None, float], baseline: Mapping[int | None, float]
) -> Estimate | None:
    r"""Return the mean difference to a baseline over the seeds that both have, and its interval.

    .. math::
        \bar d \pm t_{0.975,\, n-1} \frac{s_d}{\sqrt n}, \qquad d_i = x_i - b_i

    with :math:`x_i, b_i` the values of seed :math:`i`: the interval of a paired t-test. What both
    have in common under a seed, such as the order of the rows, falls out of it.

    Args:
        values: By seed. The one value of a model that has no seed is under None; it pairs with
            every seed of the other.
        baseline: The same of the baseline, under the same condition.

    Returns:
        None without a pair; an `Estimate` without an interval for one pair.

    Raises:
        ValueError: If a value of a pair is NaN or infinite.
    """
    if None in values:
        values = {**dict.fromkeys(baseline, values[None]), **values}
    if None in baseline:
        baseline = {**dict.fromkeys(values, baseline[None]), **baseline}
    seeds = [seed for seed in values if seed in baseline]
    return mean_interval(values[seed] - baseline[seed] for seed in seeds)
