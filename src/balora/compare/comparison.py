"""A comparison as it was asked for: a recipe, `compare:` and `lab:`, the command line over both."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from balora.compare.bench_settings import (
    BENCH,
    merged,
    parse_bench,
    part_problems,
    settings_problem,
)
from balora.compare.config import CompareConfig, compare_config
from balora.compare.methods import DEFAULT_METHODS
from balora.compare.summary_settings import summary_problems
from balora.config import DataConfig
from balora.config.classification import ClassificationConfig
from balora.config.fields import field_hints, suggestion
from balora.config.parts import refuse
from balora.config.values import dump_mapping, parse_texts, read_mapping
from balora.errors import ConfigError
from balora.evaluation.metrics import measured_by, metric_of
from balora.recipes.kinds import Kind, kind_of
from balora.recipes.load import parse_overrides, replace_fields
from balora.recipes.table import ROWS, without_fields
from balora.rows import BASE, COMPARE, places

LAB = "lab"

_ELSEWHERE = {
    "seed": "the seeds of a comparison are `seeds` under `compare`",
    "overwrite": "a comparison starts again with `--overwrite` on the command line",
    "dry_run": "`--dry_run` on the command line lists the cells",
    "resume_from_checkpoint": "a comparison always resumes with the cells that are missing",
}
"""Fields of a recipe that have no place in a comparison."""
_Place = Literal["recipe", "model", "condition", "method"]
_OF_A_SWEEP = ("held_out_fraction", "sweep_tolerance")
_EVALUATION = ("retention_file", "num_rows", "max_new_tokens", "eval_batch_size")
"""Settings of the evaluation of text generation."""
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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was asked for, with the defaults of its kind filled in."""

    recipe: dict[str, Any]
    """The fields that hold for every cell."""
    config: CompareConfig
    """What stands under `compare`."""
    lab: dict[str, Any] | None
    """What stands under `lab`; None where model and data are the recipe's own."""
    kind: Kind
    """Text generation or classification."""

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.recipe["output_dir"])

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions by name, ``MODEL/condition`` of models; one without a name for none."""
        return places(self.config.models, self.config.conditions)

    def condition(self, name: str) -> dict[str, Any]:
        """Return the fields of a condition and its model, without the lab's and `bench`."""
        return {k: v for k, v in self._condition(name).items() if k not in (LAB, BENCH)}

    def bench_of(self, condition: str) -> dict[str, Any]:
        """Return the settings of a condition's benchmarks; nothing where it has none."""
        parts = (self.config.bench, *(own.get(BENCH) for own in self._parts(condition)))
        return merged([part if isinstance(part, Mapping) else {} for part in parts])

    def lab_of(self, condition: str) -> dict[str, Any] | None:
        """Return the lab's settings under a condition."""
        if self.lab is None:
            return None
        return {**self.lab, **(self._condition(condition).get(LAB) or {})}

    def recipe_of(self, condition: str) -> dict[str, Any]:
        """Return the recipe under a condition, before any method."""
        return replace_fields(self.recipe, self.condition(condition))

    @property
    def evaluation(self) -> dict[str, Any]:
        """Return how text generation is evaluated; nothing for classification."""
        if self.kind.evaluates_itself:
            return {}
        names = _EVALUATION if self.lab is None else _EVALUATION[2:]
        return {name: getattr(self.config, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a recipe that asks for the same."""
        defaults = {field.name: field.default for field in fields(CompareConfig)}
        asked = dataclasses.asdict(self.config)
        asked = {name: value for name, value in asked.items() if value != defaults[name]}
        own = {} if self.lab is None else {LAB: self.lab}
        return {**self.recipe, COMPARE: asked, **own}

    def to_yaml(self) -> str:
        """Return `to_dict` as YAML."""
        return dump_mapping(self.to_dict())

    def _condition(self, name: str) -> dict[str, Any]:
        return {field: value for own in self._parts(name) for field, value in own.items()}

    def _parts(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the model of a condition says, and what the condition says."""
        models, conditions = self.config.models or {}, self.config.conditions or {}
        model, _, condition = name.partition("/") if models else ("", "", name)
        return dict(models.get(model) or {}), dict(conditions.get(condition) or {})


def read_comparison(path: Path | str | None, given: Mapping[str, str]) -> Comparison:
    """Read the recipe of a comparison and put the fields of the command line in their place.

    Args:
        path: A YAML file: the fields of `balora train`, with `compare` and `lab`, or one without
            both. None when every field is given.
        given: Fields by name to their text: those of `CompareConfig`, ``lab.FIELD``, and of a
            recipe.

    Raises:
        ConfigError: With every problem of the file's own settings.
    """
    source = Path(path) if path is not None else None
    content = read_mapping(source) if source is not None else {}
    asked, lab = _section(content, COMPARE), _section(content, LAB)
    own = {name: value for name, value in content.items() if name not in (COMPARE, LAB)}
    if asked is None:
        own.pop("seed", None)  # a recipe of `balora train` can be compared as it stands
    first = _first(asked)
    options = _options(given, {**own, **first})
    if options.lab:
        lab = {**(lab or {}), **options.lab}
    asked = _with_bench(asked or {}, options.bench, options.compare)
    config, asked_for = _config(asked, options.compare)
    recipe = _recipe(own, options.recipe, config, source)
    kind = kind_of({**recipe, **first})
    comparison = Comparison(recipe=recipe, config=_with_defaults(config, kind), lab=lab, kind=kind)
    problems = _problems(comparison) + _inert(comparison, asked_for)
    refuse("compare" if source is None else str(source), problems)
    return comparison


def _recipe(
    own: Mapping[str, Any],
    given: Mapping[str, Any],
    config: CompareConfig,
    source: Path | None,
) -> dict[str, Any]:
    """Return the fields of every cell; rows stay in it where a model or a condition picks one."""
    picks = {"task", "model_name_or_path"} & {
        name
        for entries in (config.models, config.conditions)
        for entry in (entries or {}).values()
        for name in entry or {}
    }
    if ROWS not in own or not picks:
        return replace_fields(own, given, source=source)
    rows = own[ROWS]
    if isinstance(rows, str):
        rows = read_mapping((source or Path()).parent / rows).get(ROWS)
    rest = {name: value for name, value in own.items() if name != ROWS}
    return {**replace_fields(rest, given, source=source), ROWS: without_fields(rows, given)}


def _first(asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of the first condition, which say what kind of runs there are."""
    conditions = (asked or {}).get("conditions")
    first = next(iter(conditions.values()), None) if isinstance(conditions, Mapping) else None
    return dict(first) if isinstance(first, Mapping) else {}


class _Options(NamedTuple):
    """What the command line gives, by where it goes."""

    compare: dict[str, Any]
    lab: dict[str, Any]
    bench: dict[str, Any]
    recipe: dict[str, Any]


def _options(texts: Mapping[str, str], own: Mapping[str, Any]) -> _Options:
    """Return the values of the command line, by the place that each is of."""
    hints = field_hints(CompareConfig)
    own_place = {name: name for name in texts if name in hints}
    own_place |= {n: n.partition(".")[0] for n in texts if n.startswith((f"{LAB}.", f"{BENCH}."))}

    def of(place: str) -> dict[str, str]:
        return {n.partition(".")[2]: t for n, t in texts.items() if own_place.get(n) == place}

    lab: dict[str, Any] = {}
    if of_lab := of(LAB):
        from balora.lab.config import LabConfig

        lab = parse_texts(of_lab, field_hints(LabConfig))
    return _Options(
        parse_texts({name: text for name, text in texts.items() if name in hints}, hints),
        lab,
        parse_bench({name: text for name, text in of(BENCH).items() if name}),
        parse_overrides(own, {name: text for name, text in texts.items() if name not in own_place}),
    )


def _with_bench(
    asked: Mapping[str, Any], given: Mapping[str, Any], whole: Collection[str]
) -> dict[str, Any]:
    """Return `compare` with fields of `bench` replaced, wherever a recipe sets them."""
    if not given:
        return dict(asked)
    if BENCH in whole:
        raise ConfigError(f"`--{BENCH}` is given both whole and by its fields; keep one.")

    def without(entry: Any) -> Any:
        if not isinstance(entry, Mapping) or not isinstance(entry.get(BENCH), Mapping):
            return entry
        own = {name: value for name, value in entry[BENCH].items() if name not in given}
        return {**entry, BENCH: own}

    changed = {
        name: {key: without(entry) for key, entry in entries.items()}
        for name in ("models", "conditions")
        if isinstance(entries := asked.get(name), Mapping)
    }
    shared = asked.get(BENCH)
    return {**asked, **changed, BENCH: {**(shared if isinstance(shared, Mapping) else {}), **given}}


def _config(
    asked: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[CompareConfig, frozenset[str]]:
    """Return the settings of `compare`, and which of them were given."""
    if "sweep" in given and not given["sweep"]:
        # switched off on the command line, it takes the recipe's settings of it along
        asked = {name: value for name, value in asked.items() if name not in _OF_A_SWEEP}
    return compare_config(asked, given), frozenset({**asked, **given})


def _section(content: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    if name not in content:
        return None
    section = {} if content[name] is None else content[name]
    if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
        raise ConfigError(f"`{name}` must be a mapping of fields, got {section!r}.")
    return section


def _with_defaults(config: CompareConfig, kind: Kind) -> CompareConfig:
    """Return the settings with methods, seeds and baseline filled in."""
    methods = config.methods or [*([BASE] if kind.has_base else []), *DEFAULT_METHODS]
    trained = [name for name in methods if name != BASE]
    baseline = config.baseline
    if baseline is None and trained:
        baseline = "lora" if "lora" in trained else trained[0]
    seeds = [0, 1, 2] if config.seeds is None else config.seeds
    return dataclasses.replace(config, methods=methods, seeds=seeds, baseline=baseline)


def _problems(comparison: Comparison) -> list[str]:
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


def _inert(comparison: Comparison, asked: frozenset[str]) -> list[str]:
    """Say which settings of `compare` were given and cannot act."""
    problems = [
        f"`{name}` is set, but there is no `sweep`; leave it out"
        for name in _OF_A_SWEEP
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
        f"`{name}` is set, but {why}" for name in _EVALUATION if name in asked - acting.keys()
    ]
