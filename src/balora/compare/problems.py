"""What cannot work of a comparison, apart from the recipes of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from balora.compare.bench_settings import BENCH, part_problems, settings_problem
from balora.compare.comparison import EVALUATION, LAB, Comparison
from balora.compare.summary_settings import summary_problems
from balora.config import DataConfig
from balora.config.classification import ClassificationConfig
from balora.config.words import suggestion
from balora.evaluation.metrics import measured_by, metric_of
from balora.recipes.kinds import kind_of
from balora.rows import BASE

_ELSEWHERE = {
    "seed": "the seeds of a comparison are `seeds` under `compare`",
    "overwrite": "a comparison starts again with `--overwrite` on the command line",
    "dry_run": "`--dry_run` on the command line lists the cells",
    "resume_from_checkpoint": "a comparison always resumes with the cells that are missing",
}
"""Fields of a recipe that have no place in a comparison."""
_Place = Literal["recipe", "model", "condition", "method"]
OF_A_SWEEP = ("held_out_fraction", "sweep_tolerance")
_OF_THE_LAB = (
    "model_name_or_path",
    "model_revision",
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "dataset_test_split",
    "eval_dataset_name",
    "prompt_column",
    "input_column",
    "response_column",
    "prompt_template",
)
"""Fields that the lab sets."""
_NEEDED = {
    "memorised_noise": "label_noise",
    "corrupted_repeat": "noise_rate",
    "corrupted_truth": "noise_rate",
}
"""From a metric of the lab to what must be planted for it."""
_ALIKE = {
    *("model_name_or_path", "model_revision"),
    *(field.name for data in (DataConfig, ClassificationConfig) for field in fields(data)),
} - {"overlong_rows", "max_length"}
"""Fields that no method can have for itself."""


def comparison_problems(comparison: Comparison) -> list[str]:
    """Say what cannot work, apart from the recipes of the cells."""
    problems = []
    output_dir = comparison.recipe.get("output_dir")
    if not isinstance(output_dir, str) or not output_dir.strip():
        problems.append("`output_dir` is missing: add it to the recipe or pass `--output_dir`")
    problems += [
        f"{where}`{name}` is set{why}"
        for place, where, own in _fields_by_place(comparison)
        for name in own
        if (why := _why_not(comparison, place, name)) is not None
    ]
    problems += [*_lab_problems(comparison), *_kind_problems(comparison)]
    return problems + _bench_problems(comparison) + summary_problems(comparison)


def _fields_by_place(comparison: Comparison) -> list[tuple[_Place, str, Mapping[str, Any]]]:
    """Return every place that gives fields, the words for it, and the fields."""
    config = comparison.config
    return [
        ("recipe", "", comparison.recipe),
        *(("model", f"`models`, `{name}`: ", own) for name, own in (config.models or {}).items()),
        *(
            ("condition", f"`conditions`, `{name}`: ", own or {})
            for name, own in (config.conditions or {}).items()
        ),
        *(
            ("method", f"`settings` of `{name}`: ", config.settings_of(name))
            for name in config.settings or {}
        ),
        *(
            ("method", f"`sweep` of `{name}`: ", entry)
            for name, entry in (config.sweep or {}).items()
        ),
    ]


def _why_not(comparison: Comparison, place: _Place, name: str) -> str | None:
    """Return why a field cannot be set in a place, to follow "is set"; None where it can."""
    if name in _ELSEWHERE:
        return f", but {_ELSEWHERE[name]}"
    if name in _OF_THE_LAB and comparison.lab is not None:
        return ", but model and data are the lab's; leave out it or `lab`"
    if place != "recipe" and name == "output_dir":
        return "; it holds for all cells and stands in the recipe itself"
    if name == "model_name_or_path" and place != "model" and comparison.config.models:
        return ", but each of `models` names its own; keep one of them"
    if name == LAB and place == "model":
        return ", but the lab brings a model of its own"
    if place in ("model", "condition"):
        return "; methods are named in `methods`" if name == "method" else None
    if place == "method" and name in _ALIKE:
        return (
            ", but all methods have the same model and data, or a difference would say nothing of "
            "the method; set it in the recipe or in `conditions`"
        )
    config = comparison.config
    for where, entries in (("models", config.models), ("conditions", config.conditions)):
        setting = [key for key, own in (entries or {}).items() if name in (own or {})]
        if place == "method" and setting:
            return (
                f", which `{where}`, `{setting[0]}` sets as well and could not change; keep one of "
                "them"
            )
    return None


def _lab_problems(comparison: Comparison) -> list[str]:
    problems = []
    for name, fields_of_it in (comparison.config.conditions or {}).items():
        entry = fields_of_it or {}
        if LAB not in entry:
            continue
        if comparison.lab is None:
            problems.append(
                f"`conditions`, `{name}` has `lab`, but the recipe has none; add `lab: {{}}` to it"
            )
        elif entry[LAB] is not None and not isinstance(entry[LAB], Mapping):
            problems.append(f"`conditions`, `{name}`: `lab` must be a mapping of fields")
    return problems


def _bench_problems(comparison: Comparison) -> list[str]:
    config, problems = comparison.config, list[str]()
    for place, entries in (("models", config.models), ("conditions", config.conditions)):
        for name, own in (entries or {}).items():
            if own and BENCH in own:
                problems += part_problems(f"`{place}`, `{name}`: `{BENCH}`", own[BENCH])
    if problems:
        return problems
    asked = {name: comparison.bench_of(name) for name in comparison.conditions}
    if not any(asked.values()):
        return [] if config.bench is None else [f"`{BENCH}` names no `benchmarks`; add some"]
    if comparison.kind.evaluates_itself:
        return [f"`{BENCH}` is set, but this is classification, whose models write no answers"]
    for place, settings in asked.items():
        problem = settings_problem(settings) if settings else None
        if problem is not None:
            where = f"`conditions`, `{place}`: " if place else ""
            problems.append(f"{where}`{BENCH}`: {problem}")
    idle = (config.bench or {}).keys() - {name for one in asked.values() for name in one}
    return [*dict.fromkeys(problems)] + [
        f"`{BENCH}`: `{name}` is set, but changes nothing of the benchmarks that are named; leave "
        "it out"
        for name in sorted(idle)
    ]


def _kind_problems(comparison: Comparison) -> list[str]:
    kind, config, problems = comparison.kind, comparison.config, []
    for name in comparison.conditions:
        if kind_of({**comparison.recipe, **comparison.condition(name)}) is not kind:
            problems.append(
                f"`conditions`, `{name}` makes the run one of {kind.other.words}, and others are "
                f"{kind.words}; compare them apart"
            )
    if comparison.lab is not None and not kind.has_lab:
        problems.append(f"`task` and `lab` are set, but the lab's task is {kind.other.words}")
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


def inert_problems(comparison: Comparison, asked: frozenset[str]) -> list[str]:
    """Say which settings of `compare` were given and cannot act."""
    problems = [
        f"`{name}` is set, but there is no `sweep`; leave it out"
        for name in OF_A_SWEEP
        if name in asked and not comparison.config.sweep
    ]
    acting = comparison.evaluation
    if comparison.kind.evaluates_itself:
        why = (
            f"this is {comparison.kind.words}, which is evaluated by its own settings; leave it out"
        )
    else:
        why = (
            "the lab has its own; leave it out (`lab: {num_test: N}` sets how many rows there are)"
        )
    return problems + [
        f"`{name}` is set, but {why}" for name in EVALUATION if name in asked - acting.keys()
    ]
