"""The metrics: what each is called, how it is shown, which way is better, who measures it.

This is the one place that says so. A metric that a module of the user's own brings is added by
`register` when that module is imported. ``SET:METRIC`` and ``BENCHMARK/METRIC`` need no
entry: they are the metric after the mark, measured elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from balora.config.words import suggestion
from balora.errors import ConfigError

Direction = Literal["up", "down", "none"]
Role = Literal["task", "retention", "other", "cost"]

SHARE, NATS, NUMBER, PLAIN, RATING = "{:.1%}", "{:.4f}", "{:.3f}", "{:.4g}", "{:.2f}"
"""Formats of one value, for `str.format`."""
_ON_TASK_ROWS = ("answers", "responses", "classification")
"""Instruments that read the rows of the task."""
_CATEGORIES = (
    *("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
)
"""Of MT-Bench's questions."""
_NOTHING = 1e-12
"""What rounding leaves of a difference that is none."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown, and which way is better."""

    name: str
    """As rows, recipes and logs spell it."""
    title: str
    """As a table's heading names it."""
    form: str
    """Format of one value, for `str.format`."""
    direction: Direction
    """The better way; "none" where neither is better in itself."""
    instrument: str
    """Name of the instrument that measures it."""
    role: Role
    """The task that was trained, what was retained of the pre-trained model, what a run cost, or
    something else."""
    nothing: float | None = None
    """The value, or a worse one, at which nothing was learned; None where none says so."""

    @property
    def higher_is_better(self) -> bool | None:
        """Say whether more is better; None where neither way is."""
        return None if self.direction == "none" else self.direction == "up"

    @property
    def is_of_task_rows(self) -> bool:
        """Say whether it is measured on the rows of the task.

        In their place a sweep puts training rows that were held out. By any other metric a sweep
        would choose on what is reported.
        """
        return self.instrument in _ON_TASK_ROWS and not re.search("[:/]", self.name)

    def show(self, value: float | None, *, is_signed: bool = False) -> str:
        """Return a value as text, a dash for None and NaN; what would round to 0 has two digits."""
        if value is None or math.isnan(value):
            return "-"
        sign = "+" if is_signed else ""
        if abs(value) < _NOTHING:
            value = 0.0
        text = self.form.replace("{:", f"{{:{sign}").format(value)
        if value == 0 or re.search("[1-9]", text):
            return text
        is_share = self.form.endswith("%}")
        return f"{100 * value:{sign}.2g}%" if is_share else f"{value:{sign}.2g}"

    def points(self, value: float) -> float:
        """Return a value on the scale of a summary: shares, correlations and F1 times 100."""
        is_part = self.form == SHARE or (self.form, self.instrument) == (NUMBER, "classification")
        return 100 * value if is_part else value

    def gain(self, difference: float) -> float:
        """Return a difference with the sign that makes the better one positive."""
        return difference if self.direction == "up" else -difference

    def is_nothing(self, value: float, chance: float | None) -> bool:
        """Say whether a value shows that nothing was learned.

        Args:
            value: Of a model, or a mean of several.
            chance: What the majority class has; None where there is none.
        """
        floors = [floor for floor in (self.nothing, chance) if floor is not None]
        return any(self.gain(value - floor) <= _NOTHING for floor in floors)

    def at(self, place: str) -> Metric:
        """Return the same metric of another data set or a benchmark.

        It says how well what was learned holds elsewhere, so one of the task becomes one of what
        was retained.

        Args:
            place: The set or benchmark with its mark: ``hans:`` or ``gsm8k/``.
        """
        role: Role = "retention" if self.role == "task" else self.role
        return replace(self, name=place + self.name, title=f"{self.title}, {place[:-1]}", role=role)


METRICS: dict[str, Metric] = {}
"""The registered metrics by name. Of several that speak of the task, the first counts that was
measured, so the order matters; `register` adds to its end."""


def register(*metrics: Metric) -> None:
    """Add metrics to the registry; one that is there already stays as it is.

    Raises:
        ValueError: If another metric has the name.
    """
    for metric in metrics:
        if METRICS.setdefault(metric.name, metric) != metric:
            raise ValueError(f"`{metric.name}` is registered as {METRICS[metric.name]} already.")


register(
    Metric("exact_match", "exact match", SHARE, "up", "answers", "task", 0.0),
    Metric("response_loss", "response loss (nats/token)", NATS, "down", "responses", "task"),
    Metric("kl", "KL to the pre-trained model (nats/token)", NATS, "down", "responses", "other"),
    Metric("entropy", "response entropy (nats/token)", NATS, "none", "responses", "other"),
    # what was planted in the lab's world
    Metric("recall", "recall of facts", SHARE, "up", "lab", "retention"),
    Metric("recall_head", "recall of head facts", SHARE, "up", "lab", "retention"),
    Metric("recall_tail", "recall of tail facts", SHARE, "up", "lab", "retention"),
    Metric(
        "retention_loss",
        "loss on retained text (nats/token)",
        NATS,
        "down",
        "retention",
        "retention",
    ),
    Metric("memorised_noise", "memorised noisy labels", SHARE, "down", "lab", "other"),
    Metric("corrupted_repeat", "repeated corrupted values", SHARE, "down", "lab", "other"),
    Metric("corrupted_truth", "truth of corrupted facts", SHARE, "up", "lab", "other"),
    Metric("stereotype_score", "stereotype score (0.5 is neutral)", NUMBER, "none", "lab", "other"),
    Metric("distinct_1", "distinct-1", NUMBER, "up", "lab", "other"),
    Metric("distinct_2", "distinct-2", NUMBER, "up", "lab", "other"),
    Metric("sample_entropy", "entropy of samples (nats)", NUMBER, "up", "lab", "other"),
    Metric("self_similarity", "self-similarity of samples", NUMBER, "down", "lab", "other"),
    # classification and regression
    Metric(
        "matthews_correlation", "Matthews correlation", NUMBER, "up", "classification", "task", 0.0
    ),
    Metric("accuracy", "accuracy", SHARE, "up", "classification", "task", 0.0),
    Metric("f1", "F1", NUMBER, "up", "classification", "task", 0.0),
    Metric("macro_f1", "macro F1", NUMBER, "up", "classification", "task", 0.0),
    Metric("pearson", "Pearson correlation", NUMBER, "up", "classification", "task", 0.0),
    Metric("spearman", "Spearman correlation", NUMBER, "up", "classification", "task", 0.0),
    Metric("mse", "mean squared error", NATS, "down", "classification", "other"),
    Metric("ece", "calibration error (ECE)", NATS, "down", "classification", "other"),
    # benchmarks
    Metric("gsm8k", "GSM8K", SHARE, "up", "benchmark", "task", 0.0),
    Metric("gsm8k_paper", "GSM8K, the authors' rule", SHARE, "up", "benchmark", "other"),
    Metric("gsm8k_flexible", "GSM8K, last number of the text", SHARE, "up", "benchmark", "other"),
    Metric("math", "MATH", SHARE, "up", "benchmark", "task", 0.0),
    Metric("math_paper", "MATH, the authors' rule", SHARE, "up", "benchmark", "other"),
    Metric("humaneval", "HumanEval (pass@1)", SHARE, "up", "benchmark", "task", 0.0),
    Metric("mbpp", "MBPP (pass@1)", SHARE, "up", "benchmark", "task", 0.0),
    Metric("humaneval_pass@10", "HumanEval (pass@10)", SHARE, "up", "benchmark", "other"),
    Metric("humaneval_pass@100", "HumanEval (pass@100)", SHARE, "up", "benchmark", "other"),
    Metric("mbpp_pass@10", "MBPP (pass@10)", SHARE, "up", "benchmark", "other"),
    Metric("mbpp_pass@100", "MBPP (pass@100)", SHARE, "up", "benchmark", "other"),
    Metric("mt_bench", "MT-Bench, first turn (1 to 10)", RATING, "up", "benchmark", "task"),
    *(
        Metric(f"mt_bench_{name}", f"MT-Bench, {name}", RATING, "up", "benchmark", "other")
        for name in _CATEGORIES
    ),
    Metric("unanswered", "without an answer", SHARE, "down", "benchmark", "other"),
    Metric("unrated", "without a rating", SHARE, "down", "benchmark", "other"),
    Metric("programs_timed_out", "programs out of time", SHARE, "down", "benchmark", "other"),
    # fields of a row beside its metrics
    Metric("num_trainable_parameters", "trainable parameters", "{:,.0f}", "none", "run", "cost"),
    Metric("train_seconds", "training (s)", "{:.1f}", "down", "run", "cost"),
    Metric("evaluation_seconds", "evaluation (s)", "{:.1f}", "down", "run", "cost"),
    Metric("seconds", "whole cell (s)", "{:.1f}", "down", "run", "cost"),
    Metric("peak_memory_mib", "peak memory (MiB)", "{:,.0f}", "down", "run", "cost"),
)


def measured_by(*instruments: str) -> tuple[str, ...]:
    """Return the names of the metrics of some instruments, in the order of the registry."""
    return tuple(name for name, metric in METRICS.items() if metric.instrument in instruments)


def metric_of(name: str) -> Metric:
    """Return the metric called ``name``.

    ``SET:METRIC`` and ``BENCHMARK/METRIC`` are the metric, measured there. A name that is none, as
    one that a later version wrote, gives a metric that is shown as a plain number and ranks
    nothing.
    """
    if name in METRICS:
        return METRICS[name]
    place, own = _place_and_name(name)
    if place and own in METRICS:
        return METRICS[own].at(place)
    return Metric(name, name, PLAIN, "none", "", "other")


def asked_metric(name: str) -> Metric:
    """Return the metric that a setting names.

    Raises:
        ConfigError: If there is none of that name, with the list.
    """
    place, own = _place_and_name(name)
    known = [known for known, metric in METRICS.items() if metric.role != "cost"]
    if name not in known and not (place and own in known):
        raise ConfigError(
            f"`{name}` is no metric{suggestion(own, known)}; there are {', '.join(known)}, and "
            "SET:METRIC for a data set out of domain."
        )
    return metric_of(name)


def _place_and_name(name: str) -> tuple[str, str]:
    """Return ``SET:`` or ``BENCHMARK/``, empty where there is none, and the name after it."""
    own = re.split("[:/]", name)[-1]
    return name.removesuffix(own), own


def task_metric(metrics: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the name of the metric that speaks of the task; None where none was measured.

    Args:
        metrics: The ``metrics`` of the cells. The first metric of `METRICS` with the role "task"
            that one of them has counts: exact match before the response loss, where the data have
            answers to match; Matthews correlation before accuracy.
    """
    measured = {name for row in metrics for name, value in row.items() if value is not None}
    return next((n for n, m in METRICS.items() if m.role == "task" and n in measured), None)
