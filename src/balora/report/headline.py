"""What a comparison found, in sentences that are computed from its rows.

Nothing is announced of a comparison that is not finished, nor where no method has learned the task.
A leader was picked from many, so it is ahead of the baseline only at the 5% level after Holm's
correction for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from balora.report.statistics import Estimate, holm
from balora.report.study import Study, shown

LEVEL = 0.05
"""Of every claim, after the correction."""
_MOST_NAMES = 5
"""Missing cells that a sentence names."""


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
    p_value: float | None
    """Of the difference, corrected for all methods; None where it is none for the better."""


def headline(study: Study) -> str:
    """Return who has the best task score, who keeps most and whether it is sure; or why no one."""
    state = unfinished(study)
    if state is not None:
        return state
    idle = unlearned(study)
    clauses = []
    for name in (study.task, study.forgetting):
        leaders = [x for x in leaders_of(study, name) if x.condition not in idle] if name else []
        if name is not None and leaders:
            clauses.append(_clause(study, leaders, name))
    parts = [f"{'; '.join(clauses)}."] if clauses else []
    for reason in dict.fromkeys(idle.values()):
        where = _listed([c for c in idle if idle[c] == reason and c])
        parts.append(f"Under {where}, {reason}." if where else f"{reason}.")
    left_out = _left_out(study)
    if not parts:
        if left_out:
            return "No method has the figure of every seed, so none is named the best."
        return "No method that trains has a figure to compare."
    if clauses and left_out:
        parts.append(f"Not ranked where figures of a run are missing: {', '.join(left_out)}.")
    return " ".join(part[0].upper() + part[1:] for part in parts)


def unfinished(study: Study) -> str | None:
    """Return a sentence on a comparison that has no figures, or not all; None for a whole one."""
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
    """Return for each condition where no method has learned the task half a sentence that says so.

    Not above the majority class or, where that is unknown, not above what no answer gets.
    """
    if study.task is None:
        return {}
    metric, found = shown(study.task), {}
    for condition in study.conditions:
        estimates = (study.estimate(condition, m, study.task) for m in study.trained)
        means = [estimate.mean for estimate in estimates if estimate is not None]
        chance = study.chance(condition, study.task)
        if not means or not metric.is_nothing(best := max(means, key=metric.gain), chance):
            continue
        figure = metric.show(best)
        found[condition] = (
            f"no method learned the task: the best {metric.title} is {figure}"
            if chance is None
            else f"no method is above the majority class: the best {metric.title} is {figure}, "
            f"and that of the majority class {metric.show(chance)}"
        )
    return found


def findings(study: Study) -> dict[str, list[str]]:
    """Return for each condition one sentence on each of the two metrics, with the figures."""
    if unfinished(study) is not None:
        return {}
    idle, found = unlearned(study), dict[str, list[str]]()
    for name in (study.task, study.forgetting):
        for leader in leaders_of(study, name) if name is not None else ():
            if leader.condition not in idle:
                text = f"{_led(study, leader, str(name))}{_cost(study, leader, str(name))}."
                found.setdefault(leader.condition, []).append(text)
    found |= {condition: [f"{reason}."] for condition, reason in idle.items()}
    return {condition: found[condition] for condition in study.conditions if condition in found}


def matched(study: Study) -> dict[str, str]:
    """Return for each condition who is best in the task at no more forgetting than the baseline.

    More or less is the mean of the paired differences, whatever its interval. A condition in which
    no method can be held against the baseline, or none has learned, is left out; all are where the
    comparison is not finished or has no baseline.
    """
    if study.task is None or study.forgetting is None or study.baseline is None:
        return {}
    if unfinished(study) is not None:
        return {}
    keeps, found, idle = shown(study.forgetting), {}, unlearned(study)
    for condition in (name for name in study.conditions if name not in idle):
        kept = {m: study.difference(condition, m, study.forgetting) for m in study.trained}
        gains = {m: keeps.gain(d.mean) for m, d in kept.items() if d is not None}
        others = [method for method, gain in gains.items() if gain >= 0]
        if gains and not others:
            found[condition] = f"No method is as good as {study.baseline} in {keeps.title}."
            continue
        leader = _leader(study, condition, study.task, [study.baseline, *others])
        if gains and leader is not None:
            found[condition] = (
                f"Of the methods no worse than {study.baseline} in {keeps.title}: "
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
    if study.baseline in leading:
        return Leader(condition, leading, best, None, None)
    difference = study.difference(condition, leading[0], name)
    is_better = difference is not None and gain(difference.mean) > 0
    p_value = study.corrected(condition, name).get(leading[0]) if is_better else None
    return Leader(condition, leading, best, difference, p_value)


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
    """Return the clause of one metric: with its figures, or who leads under which conditions."""
    if len(study.conditions) == 1:
        return _led(study, leaders[0], name)
    who = {leader.condition: _listed(leader.methods) for leader in leaders}
    places = {w: _listed([c for c in who if who[c] == w]) for w in who.values()}
    text = f"{_title(study, name)}: {', '.join(f'{w} in {c}' for w, c in places.items())}"
    if all(leader.difference is None for leader in leaders):
        return text
    if study.num_seeds == 1:
        return f"{text} (held against {study.baseline} on one seed, which says nothing of the next)"
    corrected = holm({leader.condition: leader.p_value for leader in leaders})
    sure = [condition for condition, p in corrected.items() if p is not None and p <= LEVEL]
    where = f"in {_listed(sure)}" if sure else "nowhere"
    return f"{text} (ahead of {study.baseline} at the 5% level, by Holm's test: {where})"


def _listed(names: Sequence[str]) -> str:
    *others, last = names or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _title(study: Study, name: str) -> str:
    title = shown(name).title
    if name == study.task:
        return f"best {title}"
    return f"holding up best ({title})" if ":" in name else f"keeping most ({title})"


def _led(study: Study, leader: Leader, name: str) -> str:
    """Return who leads in a metric, with the figure and how it stands to the baseline."""
    metric, difference = shown(name), leader.difference
    text = f"{_title(study, name)}: {_listed(leader.methods)}, {metric.show(leader.mean)}"
    if leader.methods == (study.baseline,):
        return f"{text}, the baseline"
    if difference is None:
        return text
    mean, low, high = (metric.show(value, is_signed=True) for value in difference[:3])
    text = f"{text}, {mean} against {study.baseline}"
    if difference.is_constant:
        return f"{text} in every seed, from which no interval follows"
    if difference.low is None:
        return f"{text} on one seed, which says nothing of the next"
    is_sure = leader.p_value is not None and leader.p_value <= LEVEL
    verdict = "ahead" if is_sure else "not ahead"
    return f"{text} (95% interval {low} to {high}; {verdict} at the 5% level, by Holm's test)"


def _cost(study: Study, leader: Leader, name: str) -> str:
    """Say so where the method that keeps most has learned less: who learns nothing keeps all."""
    if study.task is None or name == study.task:
        return ""
    metric = shown(study.task)
    difference = study.difference(leader.condition, leader.methods[0], study.task)
    if difference is None or metric.higher_is_better is None:
        return ""
    if metric.gain(difference.mean) >= 0:
        return ""
    sure = "" if difference.excludes_zero else ", not beyond its interval"
    amount = metric.show(difference.mean, is_signed=True)
    return f"; its {metric.title} differs by {amount}{sure}"
