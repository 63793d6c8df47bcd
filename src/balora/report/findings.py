"""What the rows of a comparison allow to be said of it, and what stands in the way."""

from __future__ import annotations

from balora.evaluation.metrics import metric_of
from balora.report.study import Study
from balora.report.texts import difference_text, mean_text

_MOST_NAMES = 5
"""Missing cells that a sentence names."""


def unfinished(study: Study) -> str | None:
    """Return a sentence on a comparison that has no metrics, or not all; None for a whole one."""
    number = len(study.rows)
    if study.missing:
        names = ", ".join(study.missing[:_MOST_NAMES])
        more = ", ..." if len(study.missing) > _MOST_NAMES else ""
        return (
            f"Not finished: {len(study.missing)} of {number + len(study.missing)} cells have not "
            f"run ({names}{more}), so nothing is ranked."
        )
    if not number:
        return "No cell has run."
    if all(row["error"] is not None for row in study.rows):
        return f"No cell finished: {number} of {number} failed."
    return None


def unlearned(study: Study) -> dict[str, str]:
    """Return for each condition where no method has learned the task a sentence that says so.

    Not above the majority class or, where that is unknown, not above what no answer gets.
    """
    found = {}
    for condition in study.conditions:
        task = study.task_of(condition)
        if task is None:
            continue
        metric = metric_of(task)
        estimates = (study.estimate(condition, m, task) for m in study.trained)
        means = [estimate.mean for estimate in estimates if estimate is not None]
        chance = study.chance(condition, task)
        if not means or not metric.is_nothing(best := max(means, key=metric.gain), chance):
            continue
        reached = f"the best {metric.title} is {metric.show(best)}"
        text = (
            f"no method learned the task: {reached}."
            if chance is None
            else f"no method is above the majority class: {reached}, and that of the majority "
            f"class {metric.show(chance)}."
        )
        found[condition] = f"Under {condition}, {text}" if condition else f"N{text[1:]}"
    return found


def matched(study: Study) -> dict[str, str]:
    """Return for each condition who is best in the task at no more forgetting than the baseline.

    More or less is the mean of the paired differences, whatever its interval. A condition in which
    no method can be held against the baseline, or none has learned, is dropped; all are where the
    comparison is not finished or has no baseline.
    """
    baseline, found, idle = study.baseline, dict[str, str](), unlearned(study)
    if baseline is None or unfinished(study) is not None:
        return {}
    for condition in (name for name in study.conditions if name not in idle):
        task, retention = study.task_of(condition), study.retention_of(condition)
        if task is None or retention is None:
            continue
        keeps = metric_of(retention)
        kept = {m: study.difference(condition, m, retention) for m in study.trained}
        gains = {m: keeps.gain(d.mean) for m, d in kept.items() if d is not None}
        others = [method for method, gain in gains.items() if gain >= 0]
        best = study.best(condition, task, [baseline, *others])
        if gains and not others:
            found[condition] = f"No method is as good as {baseline} in {keeps.title}."
        elif gains and best:
            text = mean_text(study, condition, best[0], task)
            if baseline not in best:
                text += f", {difference_text(study, condition, best[0], task)} to {baseline}"
            found[condition] = (
                f"Of the methods no worse than {baseline} in {keeps.title}, the best in "
                f"{metric_of(task).title}: {' and '.join(best)}, {text}."
            )
    return found
