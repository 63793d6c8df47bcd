r"""Means over seeds and paired differences, with their 95% intervals and Holm's correction.

Seeds are the sample: an interval says where the mean over other seeds would lie if they were drawn
as these were. It covers one comparison; of twenty differences that are none, one is outside.
:func:`holm` corrects for that where one of many comparisons is picked.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key", bound=Hashable)

CONFIDENCE = 0.95
"""Of every interval."""
LEVEL = 0.05
"""At or below which a corrected p-value counts."""
_ROUNDING = 1e-12
"""Relative to the values: what rounding leaves between differences that are equal."""


class Estimate(NamedTuple):
    """A mean over seeds and its interval."""

    mean: float
    """In the unit of the values."""
    low: float | None
    """Lower end of the interval; None for one value, and where all values are the same."""
    high: float | None
    """Upper end."""
    n: int
    """Values, or pairs of values."""
    p_value: float | None = None
    """Of Student's t-test, two-sided, that the mean is 0; None where there is no interval."""

    @property
    def is_constant(self) -> bool:
        """Say whether several values are all the same, so that they tell nothing of others."""
        return self.n > 1 and self.low is None

    @property
    def half_width(self) -> float | None:
        """Return half the width of the interval, at least 0; None where there is none."""
        return None if self.high is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Say whether the interval leaves 0 out; False where there is no interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(values: Iterable[float], *, scale: float = 0.0) -> Estimate | None:
    r"""Return the mean of independent values and its interval by Student's t.

    .. math::
        \bar x \pm t_{0.975,\, n-1} \frac{s}{\sqrt n}, \qquad
        s^2 = \frac{1}{n-1} \sum_{i=1}^{n} (x_i - \bar x)^2

    in float64, with :math:`t` the quantile of Student's distribution. It presumes values that are
    about normal over the seeds. Equal values have no interval: a metric of few values is the same
    in a few seeds by chance, and a width of 0 would call any difference certain.

    Args:
        values: One per seed.
        scale: Size of what the values are differences of; they are equal up to its rounding.

    Returns:
        None without a value; an `Estimate` without an interval for one value or equal ones.

    Raises:
        ValueError: If a value is NaN or infinite: a mean of it would hide the others.
    """
    sample = np.fromiter(values, dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError(f"`values` must be finite, got {sample.tolist()}.")
    if not len(sample):
        return None
    mean = float(sample.mean())
    if np.ptp(sample) <= _ROUNDING * max(scale, float(np.abs(sample).max())):
        return Estimate(mean, None, None, len(sample))
    degrees, error = len(sample) - 1, float(sample.std(ddof=1)) / math.sqrt(len(sample))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, degrees))
    return Estimate(mean, mean - half, mean + half, len(sample), p_value)


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
        None without a pair; an `Estimate` without an interval for one pair or equal differences.

    Raises:
        ValueError: If a value of a pair is NaN or infinite.
    """
    if None in values:
        values = {**dict.fromkeys(baseline, values[None]), **values}
    if None in baseline:
        baseline = {**dict.fromkeys(values, baseline[None]), **baseline}
    pairs = [(values[seed], baseline[seed]) for seed in values if seed in baseline]
    scale = max((abs(value) for pair in pairs for value in pair), default=0.0)
    return mean_interval((value - other for value, other in pairs), scale=scale)


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float | None]:
    r"""Return p-values corrected for how many there are, by Holm's step-down procedure.

    .. math::
        \tilde p_{(i)} = \max_{j \le i} \min\left(1,\ (m - j + 1)\, p_{(j)}\right)

    with :math:`p_{(1)} \le \dots \le p_{(m)}`. Whatever the tests have in common, the chance that
    any of those that are true falls to :math:`\alpha` or below is at most :math:`\alpha`.

    Args:
        p_values: By what was tested; None where there is no test, which does not count.
    """
    known = {key: value for key, value in p_values.items() if value is not None}
    corrected: dict[Key, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, key in enumerate(sorted(known, key=lambda key: known[key])):
        largest = max(largest, min(1.0, (len(known) - rank) * known[key]))
        corrected[key] = largest
    return corrected
