"""What a sweep chooses: for each method the values that did best on the rows held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from balora.evaluation.metrics import metric_of, task_metric

_ROUNDING = 1e-12


class Choice(NamedTuple):
    """What was chosen for one method, and from what."""

    fields: dict[str, Any] | None
    """The values; None when no run gave a value."""
    metric: str | None
    """What it was chosen by."""
    tried: list[dict[str, Any]]
    """Every combination in order: ``fields``, ``value`` of the metric, ``error``."""


def choose(
    values: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    metric: str | None = None,
    tolerance: float = 0.0,
) -> Choice:
    """Return the best of the runs of one method, the first of equals.

    A run that failed, or whose metric is undefined, is never chosen. With a tolerance, all that are
    at most so far from the best are equals: of values listed from cautious to bold, the most
    cautious that will do.

    Args:
        values: The combinations of values, in order.
        rows: The row of the run of each.
        metric: What to go by; None takes the metric of the task, as `task_metric` finds it.
        tolerance: In units of the metric, 0 or greater.
    """
    name = metric or task_metric([row["metrics"] for row in rows])
    tried = [
        {
            "fields": dict(fields),
            "value": None if row["error"] else row["metrics"].get(name),
            "error": row["error"],
        }
        for fields, row in zip(values, rows, strict=True)
    ]
    measured = [run for run in tried if run["value"] is not None]
    if name is None or not measured:
        return Choice(None, name, tried)
    best = (max if metric_of(name).higher_is_better else min)(run["value"] for run in measured)
    # 0.98 - 0.96 is a little more than 0.02
    within = tolerance + _ROUNDING
    first = next(run for run in measured if abs(run["value"] - best) <= within)
    return Choice(dict(first["fields"]), name, tried)


def failure(choice: Choice) -> str:
    """Return one sentence that says why nothing was chosen."""
    errors = [run["error"] for run in choice.tried if run["error"]]
    if errors:
        return (
            f"its sweep chose nothing: {len(errors)} of {len(choice.tried)} runs failed, the first "
            f"with: {errors[0]}"
        )
    return (
        f"its sweep chose nothing: none of its {len(choice.tried)} runs has the metric "
        f"{choice.metric or 'of the task'}"
    )
