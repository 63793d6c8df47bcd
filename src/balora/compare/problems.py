"""What cannot work of a comparison, apart from the recipes of its cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from balora.compare.bench_settings import BENCH, part_problems, settings_problem
from balora.compare.comparison import LAB, Comparison
from balora.compare.config import CompareConfig
from balora.compare.places import place_problems
from balora.compare.summary_settings import summary_problems
from balora.config.words import suggestion
from balora.evaluation.metrics import measured_by, metric_of
from balora.recipes.kinds import kind_of
from balora.rows import BASE

_NEEDED = {
    "memorised_noise": "label_noise",
    "corrupted_repeat": "noise_rate",
    "corrupted_truth": "noise_rate",
}
"""From a metric of the lab to what must be planted for it."""


def comparison_problems(comparison: Comparison, asked: Collection[str]) -> list[str]:
    """Say what cannot work, apart from the recipes of the cells.

    Args:
        comparison: As it was asked for.
        asked: The fields of `compare` that were given.
    """
    problems = []
    output_dir = comparison.recipe.get("output_dir")
    if not isinstance(output_dir, str) or not output_dir.strip():
        problems.append("`output_dir` is missing: add it to the recipe or pass `--output_dir`")
    problems += place_problems(comparison, asked)
    problems += [*_lab_problems(comparison), *_kind_problems(comparison)]
    return problems + _bench_problems(comparison) + summary_problems(comparison)


def _lab_problems(comparison: Comparison) -> list[str]:
    return [
        f"`conditions`, `{name}`: `lab` must be a mapping of fields"
        for name, own in (comparison.config.conditions or {}).items()
        if not isinstance((own or {}).get(LAB), Mapping | None)
    ]


def _bench_problems(comparison: Comparison) -> list[str]:
    """Say what is wrong with the benchmarks of the places that have some."""
    config, parts = comparison.config, _bench_part_problems(comparison.config)
    if parts or comparison.kind.evaluates_itself:  # which has none
        return parts
    asked = {name: bench for name in comparison.conditions if (bench := comparison.bench_of(name))}
    if not asked:
        return [] if config.bench is None else [f"`{BENCH}` names no `benchmarks`; add some"]
    problems = [
        (f"`conditions`, `{place}`: " if place else "") + f"`{BENCH}`: {problem}"
        for place, settings in asked.items()
        if (problem := settings_problem(settings)) is not None
    ]
    idle = (config.bench or {}).keys() - {name for one in asked.values() for name in one}
    return [*dict.fromkeys(problems)] + [
        f"`{BENCH}`: `{name}` is set, but changes nothing of the benchmarks that are named; leave "
        "it out"
        for name in sorted(idle)
    ]


def _bench_part_problems(config: CompareConfig) -> list[str]:
    """Say what is wrong with the `bench` of each model and condition, whatever the others say."""
    return [
        problem
        for place, entries in (("models", config.models), ("conditions", config.conditions))
        for name, own in (entries or {}).items()
        if own and BENCH in own
        for problem in part_problems(f"`{place}`, `{name}`: `{BENCH}`", own[BENCH])
    ]


def _kind_problems(comparison: Comparison) -> list[str]:
    kind, config, problems = comparison.kind, comparison.config, []
    for name in comparison.conditions:
        if kind_of({**comparison.recipe, **comparison.condition(name)}) is not kind:
            problems.append(
                f"`conditions`, `{name}` makes the run one of {kind.other.words}, and others are "
                f"{kind.words}; compare them apart"
            )
    if BASE in (config.methods or ()) and not kind.has_base:
        problems.append(
            f"`methods` names {BASE}, but the head of a classifier is new, so there is "
            "nothing to measure before training; leave it out"
        )
    if config.metric is not None:
        problems += _metric_problems(comparison, config.metric)
    return problems


def _metric_problems(comparison: Comparison, metric: str) -> list[str]:
    lab = () if comparison.lab is None else ("lab",)
    measured = measured_by(*comparison.kind.instruments, *lab)
    asked = [b for c in comparison.conditions for b in comparison.bench_of(c).get("benchmarks", ())]
    measured += tuple(name for name in measured_by("benchmark") if name in asked)
    is_elsewhere = comparison.kind.evaluates_itself and ":" in metric
    if metric in measured or is_elsewhere:
        if comparison.config.sweep and not metric_of(metric).is_of_task_rows:
            return [_chosen_on_what_is_reported(metric, measured)]
        return _unmeasured(comparison, metric)
    where = comparison.kind.words + ("" if comparison.lab is None else " in the lab")
    return [
        f"`metric` is {metric}, which is not measured of {where}{suggestion(metric, measured)}; "
        f"there are {', '.join(measured)}"
    ]


def _chosen_on_what_is_reported(metric: str, measured: Sequence[str]) -> str:
    others = [name for name in measured if metric_of(name).is_of_task_rows]
    others = [name for name in others if metric_of(name).higher_is_better is not None]
    return (
        f"`metric` is {metric}, but `sweep` chooses on held-out training rows, and that metric is "
        "measured on the very rows or text that are reported; name one of "
        f"{', '.join(others)}, or leave `sweep` out"
    )


def _unmeasured(comparison: Comparison, metric: str) -> list[str]:
    """Say what a metric needs that is not there."""
    if comparison.kind.evaluates_itself:
        return []
    if metric == "retention_loss" and comparison.lab is None:
        if comparison.config.retention_file is None:
            return ["`metric` is retention_loss, but there is no `retention_file`; set it"]
    labs = [comparison.lab_of(name) or {} for name in comparison.conditions]
    needed = _NEEDED.get(metric)
    if needed is None:
        return []
    from balora.lab.config import LabConfig

    if any(lab.get(needed, getattr(LabConfig, needed)) for lab in labs):
        return []
    return [f"`metric` is {metric}, but `{needed}` of the lab is 0; set it"]
