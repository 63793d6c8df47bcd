"""From a comparison to its cells, each with a recipe that was checked before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from balora.compare.benchmarks import benchmark_files, check_benchmarks
from balora.compare.cells import Cell
from balora.compare.comparison import Comparison
from balora.compare.fingerprints import data_files, fingerprint
from balora.compare.methods import method_fields, recipe_without
from balora.config import DataConfig
from balora.config.classification import ClassificationConfig
from balora.config.words import suggestion
from balora.errors import ConfigError
from balora.files import read_filled_text
from balora.models.names import check_model_name
from balora.recipes.load import check_recipe
from balora.recipes.recipe import Recipe
from balora.rows import BASE

_TO_BE_BUILT = "(to be written)"
_ROWS = ("dataset_name", "dataset_config", "dataset_train_split")


class Parts(NamedTuple):
    """The training rows in two: what is trained on, and what a sweep chooses by."""

    fit: Path
    held_out: Path

    @classmethod
    def of(cls, folder: Path) -> Parts:
        """Return both files of a folder."""
        return cls(folder / "fit.jsonl", folder / "held_out.jsonl")


class LabFiles(NamedTuple):
    """Where the lab's model and data are, as the recipe of a cell names them."""

    model: Path
    train_file: Path
    test_file: Path


class Plan:
    """The cells of a comparison; a recipe that cannot work fails here, before anything runs."""

    def __init__(self, comparison: Comparison, labs: Mapping[str, LabFiles] | None = None) -> None:
        """Take a comparison.

        Args:
            comparison: What was asked for.
            labs: The lab by condition, where it is built already.
        """
        self.comparison = comparison
        self.labs = labs or {}
        self._lab_settings = {name: self._lab(name) for name in comparison.conditions}
        self._known_contents: dict[str, dict[str, str]] = {}
        self._known_benchmarks: dict[str, dict[str, str]] = {}

    def check(self) -> None:
        """Check the recipe of every method under every condition, with every value of a sweep.

        Raises:
            ConfigError: With every problem, each once, and whose it is.
        """
        text = self.comparison.evaluation.get("retention_file")
        if text is not None:  # each cell would find out when it has trained
            read_filled_text(Path(text), "`retention_file`")
        found: dict[str, list[str]] = {}
        cells = itertools.product(self.comparison.conditions, self._methods)
        for condition, method in cells:
            for values in combinations(self.comparison.config.swept(method)):
                try:
                    self._check(condition, method, values)
                except ConfigError as error:
                    places = found.setdefault(str(error), [])
                    name = f"{condition}/{method}" if condition else method
                    if name not in places:
                        places.append(name)
        number = len(self.comparison.conditions) * len(self._methods)
        if found:
            raise ConfigError(
                " ".join(
                    message if len(places) == number else f"{', '.join(places)}: {message}"
                    for message, places in found.items()
                )
            )

    def check_files(self) -> None:
        """Check that model and data are there, as far as they must be on disk.

        Raises:
            ConfigError: If the folder of the model is missing, a benchmark cannot be judged, or
                two methods are the same run.
            DataError: If rows are missing.
        """
        for condition in self.comparison.conditions:
            recipe = self._any_recipe(condition)
            if self.comparison.lab is None:
                check_model_name(recipe.model.model_name_or_path, "`model_name_or_path`")
                data_files(recipe.data)
            if bench := self.comparison.bench_of(condition):
                check_benchmarks(bench, recipe)
        self._check_distinct()

    def _check_distinct(self) -> None:
        """Refuse two methods whose runs are equal in everything: their difference says nothing."""
        seed = (self.comparison.config.seeds or [0])[0]
        cells = {
            method: [
                self._cell("final", condition, method, seed, self._first_values(method)).identity()
                for condition in self.comparison.conditions
            ]
            for method in self._methods
            if method != BASE
        }
        for (one, mine), (other, theirs) in itertools.combinations(cells.items(), 2):
            if mine == theirs:
                raise ConfigError(
                    f"`{one}` and `{other}` are the same run with this recipe; leave one of them "
                    "out, or change what it sets."
                )

    @property
    def choosing_conditions(self) -> list[str]:
        """The conditions that a sweep chooses under: the first one of every model."""
        found = map(self.comparison.choosing_condition, self.comparison.conditions)
        return list(dict.fromkeys(found))

    def choosing(self, parts: Mapping[str, Parts] | None = None) -> list[Cell]:
        """Return the cells of the sweep: every value under a model's first condition, one seed.

        Args:
            parts: The two parts of the training rows by condition; None before they are written.
        """
        config = self.comparison.config
        first_seed = (config.seeds or [0])[0]
        tried = {method: combinations(config.swept(method)) for method in self._methods}
        several = [
            [
                self._cell("choose", condition, method, first_seed, v, (parts or {}).get(condition))
                for v in values
            ]
            for condition in self.choosing_conditions
            for method, values in tried.items()
            if len(values) > 1  # one value leaves no choice
        ]
        # the first value of every method, then the second
        return [c for row in itertools.zip_longest(*several) for c in row if c is not None]

    def final(self, chosen: Mapping[str, Mapping[str, Any] | None] | None = None) -> list[Cell]:
        """Return the cells that are reported: the first seed of every method, then the next.

        Args:
            chosen: The values that a sweep chose, by the name of the choice, None where none could
                be; a method without a sweep needs none. Before the choice, the first values.
        """
        config, cells = self.comparison.config, []
        for seed in config.seeds or ():
            for condition, method in itertools.product(self.comparison.conditions, self._methods):
                if method == BASE:
                    if seed == (config.seeds or [0])[0]:
                        cells.append(self._cell("final", condition, method, None, {}))
                    continue
                choice = self.comparison.choice(condition, method)
                values = (chosen or {}).get(choice) or self._first_values(method)
                cells.append(self._cell("final", condition, method, seed, values))
        return cells

    def data_of(self, condition: str) -> DataConfig | ClassificationConfig:
        """Return the data of a condition, the same for every method."""
        return self._any_recipe(condition).data

    def _first_values(self, method: str) -> dict[str, Any]:
        """Return the values of a sweep before one is chosen, empty for a method without."""
        return combinations(self.comparison.config.swept(method))[0]

    @property
    def _methods(self) -> list[str]:
        return self.comparison.config.methods or []

    def _any_recipe(self, condition: str) -> Recipe:
        """Return the recipe of one method, for what it shares with all others."""
        config, method = self.comparison.config, self._methods[-1]
        own = {**config.settings_of(method), **self._first_values(method)}
        return self._recipe(condition, method, {**own, "output_dir": "unused"})

    def _contents(self, condition: str) -> dict[str, str]:
        """Return what tells the contents of the files that the cells of a condition read."""
        if self.comparison.lab is not None:
            return {}
        if condition not in self._known_contents:
            files = data_files(self.data_of(condition))
            text = self.comparison.evaluation.get("retention_file")
            if text is not None:
                files["retention_file"] = {"": [Path(text)]}
            found = {name: fingerprint(paths) for name, paths in files.items()}
            self._known_contents[condition] = found
        return self._known_contents[condition]

    def _benchmarks(self, condition: str) -> dict[str, str]:
        """Return what tells the contents of the files of a condition's benchmarks."""
        if condition not in self._known_benchmarks:
            files = benchmark_files(self.comparison.bench_of(condition))
            found = {name: fingerprint(paths) for name, paths in files.items()}
            self._known_benchmarks[condition] = found
        return self._known_benchmarks[condition]

    def _lab(self, condition: str) -> dict[str, Any] | None:
        settings = self.comparison.lab_of(condition)
        if settings is None:
            return None
        from balora.lab.config import lab_config

        return asdict(lab_config(settings))

    def _cell(
        self,
        stage: Any,
        condition: str,
        method: str,
        seed: int | None,
        values: Mapping[str, Any],
        parts: Parts | None = None,
    ) -> Cell:
        config = self.comparison.config
        own = {**config.settings_of(method), **values}
        places = _part_fields(self.comparison, parts) if stage == "choose" else {}
        # the problems of a benchmark take no part in a choice
        bench = self.comparison.bench_of(condition) if stage == "final" else {}
        cell = Cell(
            stage=stage,
            condition=condition,
            method=method,
            seed=seed,
            fields=own,
            recipe={},
            evaluation=self.comparison.evaluation,
            lab=self._lab_settings[condition],
            sweep=self._sweep(stage, condition, method, values),
            bench=bench,
            contents={
                **self._contents(condition),
                **(self._benchmarks(condition) if bench else {}),
            },
            launcher=None if method == BASE else config.launcher,
        )
        folder = self.comparison.folder / "cells" / cell.slug / "run"
        run: dict[str, Any] = {"output_dir": str(folder)}
        if seed is not None:
            run["seed"] = seed
        recipe = self._recipe(condition, method, {**own, **places, **run})
        return replace(cell, recipe=recipe.to_dict())

    def _sweep(
        self, stage: str, condition: str, method: str, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what decides a choice: in a run that chooses its values, then all of them.

        And, of a run that is reported, under which condition and with which seed they were tried.
        """
        config = self.comparison.config
        swept = config.swept(method)
        if not swept:
            return {}
        how = {"held_out_fraction": config.held_out_fraction, "metric": config.metric}
        if stage == "choose":
            recipe = self.comparison.recipe_of(condition)
            return {"values": dict(values), **how, "rows": {n: recipe.get(n) for n in _ROWS}}
        first = self.comparison.choosing_condition(condition)
        where = {"condition": first, "seed": (config.seeds or [0])[0]}
        return {"values": swept, **how, "tolerance": config.sweep_tolerance, **where}

    def _check(self, condition: str, method: str, values: Mapping[str, Any]) -> None:
        own = self.comparison.config.settings_of(method)
        recipe = self._recipe(condition, method, {**own, **values, "output_dir": "unused"})
        if not recipe.data.is_evaluated:
            raise ConfigError(
                "there is nothing to evaluate on: set `eval_dataset_name` or `dataset_test_split`."
            )
        if recipe.training.get("load_best_model_at_end"):
            raise ConfigError(
                "`load_best_model_at_end` is true, which would choose an epoch on the very rows "
                "that are reported; remove it: the last epoch is compared."
            )
        self._check_metric(recipe)

    def _check_metric(self, recipe: Recipe) -> None:
        """Refuse a metric that the task of a classification has not."""
        metric = self.comparison.config.metric
        if metric is None or ":" in metric or recipe.task is None:
            return
        from balora.evaluation.classification import metric_names

        names = metric_names(recipe.task)
        if metric not in names:
            raise ConfigError(
                f"`metric` is {metric}, which is not computed for {recipe.task}"
                f"{suggestion(metric, names)}; choose one of {', '.join(names)}."
            )

    def _recipe(self, condition: str, name: str, own: Mapping[str, Any]) -> Recipe:
        """Return the checked recipe of a method, its `own` fields over all others.

        Raises:
            ConfigError: Naming the part of `compare` that the wrong field stands in.
        """
        try:
            return self._checked_recipe(condition, name, own)
        except ConfigError as error:
            places = {
                f"`conditions`, `{condition}`": self.comparison.condition(condition),
                f"`settings` or `sweep` of `{name}`": {**own},
            }
            for place, given in places.items():
                if any(f"`{field}`" in str(error) for field in given):
                    raise ConfigError(f"{place}: {error}") from error
            raise

    def _checked_recipe(self, condition: str, name: str, own: Mapping[str, Any]) -> Recipe:
        recipe = self.comparison.recipe_of(condition) | self._lab_fields(condition)
        method = self.comparison.config.method(name)
        if method.start == BASE:
            return check_recipe(recipe, own, dashes="")
        given = method_fields(method, recipe, self.comparison.kind)
        return check_recipe(recipe_without(method, recipe), {**given, **own}, dashes="")

    def _lab_fields(self, condition: str) -> dict[str, Any]:
        if self.comparison.lab is None:
            return {}
        built = self.labs.get(condition)
        names = {
            "model_name_or_path": built.model if built else _TO_BE_BUILT,
            "dataset_name": built.train_file if built else _TO_BE_BUILT,
            "eval_dataset_name": built.test_file if built else _TO_BE_BUILT,
        }
        return {**{k: str(v) for k, v in names.items()}, "prompt_template": "alpaca"}


def combinations(swept: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the values of a sweep; one without fields for none."""
    return [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]


def _part_fields(comparison: Comparison, parts: Parts | None) -> dict[str, Any]:
    """Return the fields that name the two parts of the training rows."""
    fit, held_out = parts or (_TO_BE_BUILT, _TO_BE_BUILT)
    fields: dict[str, Any] = {
        "dataset_name": str(fit),
        "eval_dataset_name": str(held_out),
        "dataset_config": None,
        "dataset_train_split": "train",
        "dataset_test_split": "train",
    }
    # the data sets of another origin take no part in a choice
    return {**fields, **comparison.kind.without_other_sets}
