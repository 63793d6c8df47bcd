"""What a comparison found, in sentences that are computed from its rows.

A difference counts only where its 95% interval excludes 0; where none does, the sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from balora.compare.statistics import Estimate
from balora.compare.study import Study, shown
from balora.compare.table import signed


class Leader(NamedTuple):
    """The method with the best mean of a metric under a condition."""

    condition: str
    """Name of the condition."""
    method: str
    """The first of equals, in the order of the recipe."""
    mean: float
    """Over its seeds."""
    difference: Estimate | None
    """To the baseline; None where it is the baseline, or nothing can be paired."""

    @property
    def is_beyond(self) -> bool:
        """Say whether it differs from the baseline beyond the interval."""
        return self.difference is not None and self.difference.excludes_zero


def headline(study: Study) -> str:
    """Return one sentence: who has the best task score, who keeps most, and whether it is sure."""
    if not any(row["error"] is None for row in study.rows):
        number = len(study.rows)
        return f"No cell finished: {number} of {number} failed." if number else "No cell has run."
    parts = [
        _clause(study, leaders, name)
        for name in (study.task, study.forgetting)
        if name is not None and (leaders := leaders_of(study, name))
    ]
    return "; ".join(parts) + "." if parts else "No method that trains has a figure to compare."


def findings(study: Study) -> dict[str, list[str]]:
    """Return for each condition one sentence on each of the two metrics, with the figures."""
    found: dict[str, list[str]] = {}
    for name in (study.task, study.forgetting):
        for leader in leaders_of(study, name) if name is not None else ():
            found.setdefault(leader.condition, []).append(_sentence(study, leader, str(name)))
    return {condition: found[condition] for condition in study.conditions if condition in found}


def matched(study: Study) -> dict[str, str]:
    """Return for each condition who is best in the task at no more forgetting than the baseline.

    More or less is the mean of the paired differences, whatever its interval. A condition in which
    no method can be held against the baseline is left out, and all are without a baseline.
    """
    if study.task is None or study.forgetting is None or study.baseline is None:
        return {}
    keeps = shown(study.forgetting)
    found = {}
    for condition in study.conditions:
        kept = {m: study.difference(condition, m, study.forgetting) for m in study.trained}
        gains = {m: keeps.gain(d.mean) for m, d in kept.items() if d is not None}
        others = [method for method, gain in gains.items() if gain >= 0]
        leader = _leader(study, condition, study.task, [study.baseline, *others])
        if not gains or leader is None:
            continue
        found[condition] = (
            f"Of the methods no worse than {study.baseline} in {keeps.title}, "
            f"{_led(study, leader, study.task)}."
            if others
            else f"No method is as good as {study.baseline} in {keeps.title}."
        )
    return found


def leaders_of(study: Study, name: str) -> list[Leader]:
    """Return who is best in a metric under each condition, of the methods that train.

    A condition where no such method has the figure is left out, and so is every condition for a
    metric of which neither way is better.
    """
    if shown(name).higher_is_better is None:
        return []
    found = (_leader(study, condition, name, study.trained) for condition in study.conditions)
    return [leader for leader in found if leader is not None]


def _leader(study: Study, condition: str, name: str, methods: Sequence[str]) -> Leader | None:
    """Return who of some methods is best in a metric; None where none has the figure.

    A method of which a run has no figure is left out: a mean over the runs that went well would
    win by what it does not count.
    """
    whole = [method for method in methods if not study.is_undefined(condition, method, name)]
    means = {method: study.estimate(condition, method, name) for method in whole}
    known = {method: estimate.mean for method, estimate in means.items() if estimate}
    if not known:
        return None
    best = max(known, key=lambda method: shown(name).gain(known[method]))
    return Leader(condition, best, known[best], study.difference(condition, best, name))


def _clause(study: Study, leaders: Sequence[Leader], name: str) -> str:
    """Return the clause of one metric."""
    claim = _claim(study, name)
    first = leaders[0]
    if len(leaders) == 1:
        return _led(study, first, name)
    methods = list(dict.fromkeys(leader.method for leader in leaders))
    if len(methods) == 1:
        who = f"{first.method} {claim} in all {len(leaders)} conditions"
    else:
        places = (f"{method} in {_places(leaders, method)}" for method in methods)
        who = f"what {claim} is {', '.join(places)}"
    if study.baseline is None:
        return who
    return who + (", the baseline" if methods == [study.baseline] else _how_sure(study, leaders))


def _claim(study: Study, name: str) -> str:
    title = shown(name).title
    if name == study.task:
        return f"has the best {title}"
    return f"holds up best ({title})" if ":" in name else f"keeps most ({title})"


def _led(study: Study, leader: Leader, name: str) -> str:
    """Return who leads in a metric, with the figure and how sure it is."""
    figure = shown(name).show(leader.mean)
    return f"{leader.method} {_claim(study, name)}, {figure}{_against(study, leader, name)}"


def _places(leaders: Sequence[Leader], method: str) -> str:
    return " and ".join(leader.condition for leader in leaders if leader.method == method)


def _how_sure(study: Study, leaders: Sequence[Leader]) -> str:
    beyond = [leader.condition for leader in leaders if leader.is_beyond]
    if not beyond:
        return f", with no difference to {study.baseline} beyond the 95% interval"
    only = "" if len(beyond) == len(leaders) else f" in {' and '.join(beyond)} only"
    return f", ahead of {study.baseline} beyond the 95% interval{only}"


def _against(study: Study, leader: Leader, name: str) -> str:
    metric = shown(name)
    if leader.method == study.baseline:
        return ", and is the baseline"
    difference = leader.difference
    if difference is None:
        return ""
    text = f", {signed(difference.mean, metric)} against {study.baseline}"
    if difference.low is None or difference.high is None:
        return f"{text} on one seed, which says nothing about the next"
    ends = f"{signed(difference.low, metric)} to {signed(difference.high, metric)}"
    if difference.excludes_zero:
        return f"{text} (95% interval {ends})"
    return f"{text}, no difference beyond the interval ({ends})"


def _sentence(study: Study, leader: Leader, name: str) -> str:
    text = _led(study, leader, name)
    if name != study.task and study.task is not None:
        text += _at_what_cost(study, leader, study.task)
    return f"{text}."


def _at_what_cost(study: Study, leader: Leader, task: str) -> str:
    """Say so where the method that keeps most has learned less: who learns nothing keeps all."""
    metric = shown(task)
    difference = study.difference(leader.condition, leader.method, task)
    if difference is None or metric.higher_is_better is None:
        return ""
    if metric.gain(difference.mean) >= 0:
        return ""
    sure = "" if difference.excludes_zero else ", not beyond the interval"
    return f"; its {metric.title} differs by {signed(difference.mean, metric)}{sure}"
