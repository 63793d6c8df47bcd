"""The columns of a summary: a metric, a condition, or a metric of one condition."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from balora.evaluation.metrics import METRICS, metric_of

AVERAGE = "average"
"""The last column of every summary, and its name among the values of a reference."""
OUTSIDE = "out_of_domain"
"""The place of a metric that is the mean over the data sets out of domain, each with one weight."""
OVERALL = "overall"
"""The place of a metric over all evaluation sets, each row with one weight: MNLI's."""


class Column(NamedTuple):
    """One column, as a recipe names it."""

    text: str
    """``METRIC``, ``CONDITION`` or ``CONDITION/METRIC``."""
    condition: str | None
    """None takes the one condition that measures the metric."""
    metric: str | None
    """None takes the metric of the condition's task."""

    @property
    def title(self) -> str:
        """The heading."""
        if self.metric is None:
            return self.text
        title = metric_of(self.metric).title
        return title if self.condition is None else f"{self.condition}: {title}"


def column_of(text: str, conditions: Collection[str]) -> Column:
    """Return what a column is; of a name that a metric and a condition share, it is the metric.

    Args:
        text: As the recipe has it.
        conditions: Their names.
    """
    condition, slash, metric = text.partition("/")
    if slash and condition in conditions:
        return Column(text, condition, metric)
    if text in conditions and text not in METRICS:
        return Column(text, text, None)
    return Column(text, None, text)
