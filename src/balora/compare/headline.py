"""What a comparison found, in sentences that are computed from its rows.

A difference counts only where its 95% interval excludes 0; where none does, the sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from balora.compare.statistics import Estimate
from balora.compare.study import Study, shown


class Leader(NamedTuple):
    """Who has the best mean of a metric under a condition."""

    condition: str
    """Name of the condition."""
    methods: tuple[str, ...]
    """Almost always one; several whose means are equal, in the order of the recipe."""
    mean: float
    """Over its seeds."""
    difference: Estimate | None
    """Of the first to the baseline; None where that leads too, or nothing can be paired."""
    is_beyond: bool
    """Whether the difference is for the better, and its interval excludes 0."""


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
    left_out = _left_out(study)
    if parts:
        missing = f" Not ranked where figures of a run are missing: {', '.join(left_out)}."
        told = "; ".join(parts)
        if not told.startswith(tuple(study.trained)):  # whose names stay as they are
            told = told[0].upper() + told[1:]
        return f"{told}.{missing if left_out else ''}"
    if left_out:
        return "No method has the figure of every seed, so none is named the best."
    return "No method that trains has a figure to compare."


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
        if gains and not others:
            found[condition] = f"No method is as good as {study.baseline} in {keeps.title}."
            continue
        leader = _leader(study, condition, study.task, [study.baseline, *others])
        if gains and leader is not None:
            found[condition] = (
                f"Of the methods no worse than {study.baseline} in {keeps.title}, "
                f"{_led(study, leader, study.task)}."
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

    A method of which a run failed or has no figure is left out: a mean over the runs that went well
    would win by what it does not count.
    """
    whole = [method for method in methods if study.is_whole(condition, method, name)]
    means = {method: study.estimate(condition, method, name) for method in whole}
    known = {method: estimate.mean for method, estimate in means.items() if estimate}
    if not known:
        return None
    gain = shown(name).gain
    best = max(known.values(), key=gain)
    leading = tuple(method for method, mean in known.items() if mean == best)
    leads_too = study.baseline in leading
    difference = None if leads_too else study.difference(condition, leading[0], name)
    is_beyond = difference is not None and difference.excludes_zero and gain(difference.mean) > 0
    return Leader(condition, leading, best, difference, is_beyond)


def _left_out(study: Study) -> list[str]:
    """Return the methods that have figures and are not ranked, under a condition at least."""
    names = [name for name in (study.task, study.forgetting) if name is not None]
    return [
        method
        for method in study.trained
        if any(
            study.of(condition, method) and not study.is_whole(condition, method, name)
            for condition in study.conditions
            for name in names
        )
    ]


def _clause(study: Study, leaders: Sequence[Leader], name: str) -> str:
    """Return the clause of one metric."""
    first = leaders[0]
    if len(leaders) == 1:
        return _led(study, first, name)
    names = list(dict.fromkeys(_who(study, leader) for leader in leaders))
    if len(names) == 1:
        claim = _claim(study, name, len(first.methods))
        who = f"{names[0]} {claim} in all {len(leaders)} conditions"
    else:
        places = (f"{who} in {_places(study, leaders, who)}" for who in names)
        who = f"{_title(study, name)}: {', '.join(places)}"
    if study.baseline is None:
        return who
    if names == [study.baseline]:
        return f"{who}, the baseline"
    sure = _how_sure(study, leaders)
    if not sure:
        return who
    return f"{who}, {sure}" if len(names) == 1 else f"{who} ({sure})"


def _who(study: Study, leader: Leader) -> str:
    if len(leader.methods) == len(study.trained) > 2:
        return f"all {len(study.trained)} methods"
    return _listed(leader.methods)


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _title(study: Study, name: str) -> str:
    """Return what stands before a list of who is best where."""
    title = shown(name).title
    if name == study.task:
        return f"best {title}"
    return f"holding up best ({title})" if ":" in name else f"keeping most ({title})"


def _claim(study: Study, name: str, number: int) -> str:
    """Return what one method, or several that are equal, can say of themselves."""
    title = shown(name).title
    if name == study.task:
        return f"has the best {title}" if number == 1 else f"share the best {title}"
    if ":" in name:
        return f"holds up best ({title})" if number == 1 else f"hold up alike ({title})"
    return f"keeps most ({title})" if number == 1 else f"keep equally much ({title})"


def _led(study: Study, leader: Leader, name: str) -> str:
    """Return who leads in a metric, with the figure and how sure it is."""
    figure = shown(name).show(leader.mean)
    claim = f"{_who(study, leader)} {_claim(study, name, len(leader.methods))}, {figure}"
    return claim + _against(study, leader, name)


def _places(study: Study, leaders: Sequence[Leader], who: str) -> str:
    return _listed([leader.condition for leader in leaders if _who(study, leader) == who])


def _how_sure(study: Study, leaders: Sequence[Leader]) -> str:
    """Return how the leaders stand to the baseline; nothing where none can be held against it."""
    if all(leader.difference is None for leader in leaders):
        return ""
    if study.num_seeds == 1:
        return f"held against {study.baseline} on one seed, which says nothing about the next"
    beyond = [leader.condition for leader in leaders if leader.is_beyond]
    if not beyond:
        return f"with no difference to {study.baseline} beyond the 95% interval"
    only = "" if len(beyond) == len(leaders) else f" in {_listed(beyond)} only"
    return f"ahead of {study.baseline} beyond the 95% interval{only}"


def _against(study: Study, leader: Leader, name: str) -> str:
    metric = shown(name)
    if leader.methods == (study.baseline,):
        return ", and is the baseline"
    difference = leader.difference
    if difference is None:
        return ""
    mean, low, high = (metric.show(value, is_signed=True) for value in difference[:3])
    text = f", {mean} against {study.baseline}"
    if difference.low is None:
        return f"{text} on one seed, which says nothing about the next"
    ends = f"{low} to {high}"
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
    difference = study.difference(leader.condition, leader.methods[0], task)
    if difference is None or metric.higher_is_better is None:
        return ""
    if metric.gain(difference.mean) >= 0:
        return ""
    sure = "" if difference.excludes_zero else ", not beyond the interval"
    amount = metric.show(difference.mean, is_signed=True)
    return f"; its {metric.title} differs by {amount}{sure}"
