"""From a recipe and the command line to a comparison, or to every problem that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from balora.compare.bench_settings import BENCH, parse_bench
from balora.compare.comparison import LAB, Comparison
from balora.compare.config import CompareConfig, compare_config
from balora.compare.methods import DEFAULT_METHODS
from balora.compare.places import OF_A_SWEEP
from balora.compare.problems import comparison_problems
from balora.config.fields import field_hints
from balora.config.parts import refuse
from balora.config.values import parse_texts, read_mapping
from balora.errors import ConfigError
from balora.recipes.kinds import Kind, kind_of
from balora.recipes.load import parse_overrides, replace_fields
from balora.recipes.table import ROWS, without_fields
from balora.rows import BASE, COMPARE


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
    problems = comparison_problems(comparison, asked_for)
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
        asked = {name: value for name, value in asked.items() if name not in OF_A_SWEEP}
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
