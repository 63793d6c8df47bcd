"""A comparison as it was asked for: the recipe of its cells, `compare:` and `lab:`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from balora.compare.bench_settings import BENCH, merged
from balora.compare.config import CompareConfig
from balora.config.values import dump_mapping
from balora.recipes.kinds import Kind
from balora.recipes.load import replace_fields
from balora.rows import COMPARE, model_of, place_of, places

LAB = "lab"
EVALUATION = ("retention_file", "num_rows", "max_new_tokens", "eval_batch_size")
"""Settings of the evaluation of text generation."""


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

    def choosing_condition(self, condition: str) -> str:
        """Return the condition that a sweep chooses the values of another under: its model's first.

        What is chosen with one model need not suit another.
        """
        return next(c for c in self.conditions if self._model_of(c) == self._model_of(condition))

    def choice(self, condition: str, method: str) -> str:
        """Return the name of what a sweep chooses: the method's, ``MODEL/METHOD`` of models."""
        return place_of(self._model_of(condition), method)

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
        names = EVALUATION if self.lab is None else EVALUATION[2:]
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
        model = self._model_of(name)
        condition = name.removeprefix(f"{model}/") if model else name
        return dict(models.get(model) or {}), dict(conditions.get(condition) or {})

    def _model_of(self, condition: str) -> str:
        return model_of(condition, self.config.models)
