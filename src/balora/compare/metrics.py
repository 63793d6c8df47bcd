"""The metrics of a comparison: what they are called, which way is better, what they speak of.

A figure that was measured on a data set of another origin has the name of the set before it, as in
``other_sources:matthews_correlation``; it says how well what was learned holds elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from balora.errors import ConfigError
from balora.field_types import suggestion

Role = Literal["task", "forgetting", "other"]


@dataclass(frozen=True)
class Metric:
    """How a metric is shown, and which way is better."""

    title: str
    """As a table's heading names it."""
    higher_is_better: bool | None
    """None where neither way is better in itself."""
    form: str
    """Format of one value, for `str.format`."""
    role: Role
    """The task that was trained, what was kept of the pre-trained model, or something else."""
    is_of_task_rows: bool
    """Whether it is measured on the rows of the task, in whose place a sweep puts training rows
    that were held out. By any other a sweep would choose on what is reported."""
    nothing: float | None = None
    """The value, or a worse one, at which nothing was learned; None where none says so."""

    def show(self, value: float | None, *, is_signed: bool = False) -> str:
        """Return a value as text, a dash for None; what would round to 0 has two digits."""
        if value is None:
            return "-"
        sign = "+" if is_signed else ""
        if abs(value) < _NOTHING:
            value = 0.0
        text = self.form.replace("{:", f"{{:{sign}").format(value)
        if value == 0 or re.search("[1-9]", text):
            return text
        is_share = self.form.endswith("%}")
        return f"{100 * value:{sign}.2g}%" if is_share else f"{value:{sign}.2g}"

    def gain(self, difference: float) -> float:
        """Return a difference with the sign that makes the better one positive."""
        return difference if self.higher_is_better else -difference

    def is_nothing(self, value: float, chance: float | None) -> bool:
        """Say whether a value shows that nothing was learned.

        Args:
            value: Of a model, or a mean of several.
            chance: What the majority class has; None where there is none.
        """
        floors = [floor for floor in (self.nothing, chance) if floor is not None]
        return any(self.gain(value - floor) <= _NOTHING for floor in floors)


_NOTHING = 1e-12
"""What rounding leaves of a difference that is none."""
_SHARE, _NATS, _NUMBER = "{:.1%}", "{:.4f}", "{:.3f}"

METRICS: Mapping[str, Metric] = {
    # text generation; where several speak of the task, the first that was measured counts
    "exact_match": Metric("exact match", True, _SHARE, "task", True, 0.0),
    "response_loss": Metric("response loss (nats/token)", False, _NATS, "task", True),
    "kl": Metric("KL to the pre-trained model (nats/token)", False, _NATS, "other", True),
    "entropy": Metric("response entropy (nats/token)", None, _NATS, "other", True),
    # what was planted in the lab's world
    "recall": Metric("recall of facts", True, _SHARE, "forgetting", False),
    "recall_head": Metric("recall of head facts", True, _SHARE, "forgetting", False),
    "recall_tail": Metric("recall of tail facts", True, _SHARE, "forgetting", False),
    "retention_loss": Metric(
        "loss on retained text (nats/token)", False, _NATS, "forgetting", False
    ),
    "memorised_noise": Metric("memorised noisy labels", False, _SHARE, "other", False),
    "corrupted_repeat": Metric("repeated corrupted values", False, _SHARE, "other", False),
    "corrupted_truth": Metric("truth of corrupted facts", True, _SHARE, "other", False),
    "stereotype_score": Metric("stereotype score (0.5 is neutral)", None, _NUMBER, "other", False),
    "distinct_1": Metric("distinct-1", True, _NUMBER, "other", False),
    "distinct_2": Metric("distinct-2", True, _NUMBER, "other", False),
    "sample_entropy": Metric("entropy of samples (nats)", True, _NUMBER, "other", False),
    "self_similarity": Metric("self-similarity of samples", False, _NUMBER, "other", False),
    # classification and regression
    "matthews_correlation": Metric("Matthews correlation", True, _NUMBER, "task", True, 0.0),
    "accuracy": Metric("accuracy", True, _SHARE, "task", True, 0.0),
    "f1": Metric("F1", True, _NUMBER, "task", True, 0.0),
    "macro_f1": Metric("macro F1", True, _NUMBER, "task", True, 0.0),
    "pearson": Metric("Pearson correlation", True, _NUMBER, "task", True, 0.0),
    "spearman": Metric("Spearman correlation", True, _NUMBER, "task", True, 0.0),
    "mse": Metric("mean squared error", False, _NATS, "other", True),
    "ece": Metric("calibration error (ECE)", False, _NATS, "other", True),
}


GENERATION = ("exact_match", "response_loss", "kl", "entropy", "retention_loss")
"""What is measured of text generation."""

LAB = (
    *GENERATION,
    "recall",
    "recall_head",
    "recall_tail",
    "memorised_noise",
    "corrupted_repeat",
    "corrupted_truth",
    "stereotype_score",
    "distinct_1",
    "distinct_2",
    "sample_entropy",
    "self_similarity",
)
"""What is measured in the lab."""

CLASSIFICATION = (
    "matthews_correlation",
    "accuracy",
    "f1",
    "macro_f1",
    "pearson",
    "spearman",
    "mse",
    "ece",
)
"""What is measured of classification and regression, as far as the task has it."""


def metric_of(name: str) -> Metric:
    """Return the metric called `name`; ``SET:NAME`` is the figure of another data set.

    Raises:
        ConfigError: If there is none of that name, with the list.
    """
    origin, _, own = name.rpartition(":")
    if own not in METRICS:
        raise ConfigError(
            f"`{name}` is no metric{suggestion(own, METRICS)}; there are {', '.join(METRICS)}, and "
            "SET:METRIC for a data set out of domain."
        )
    metric = METRICS[own]
    if not origin:
        return metric
    role: Role = "forgetting" if metric.role == "task" else metric.role
    return replace(metric, title=f"{metric.title}, {origin}", role=role, is_of_task_rows=False)


def task_metric(figures: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the name of the metric that speaks of the task; None where none was measured.

    Args:
        figures: The ``metrics`` of the cells. The first metric of `METRICS` with the role "task"
            that one of them has counts: exact match before the response loss, where the data have
            answers to match; Matthews correlation before accuracy.
    """
    measured = {name for row in figures for name, value in row.items() if value is not None}
    return next((n for n, m in METRICS.items() if m.role == "task" and n in measured), None)
