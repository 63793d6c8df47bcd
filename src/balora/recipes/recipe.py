"""A checked recipe: the settings of one run, by part, and the flat file they came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balora.config import (
    AdapterConfig,
    BALoraConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    StoppingConfig,
)
from balora.config.classification import ClassificationConfig
from balora.config.quantization import Quantization
from balora.config.replay import ReplayConfig
from balora.config.replay import acting_fields as replay_fields
from balora.config.values import dump_mapping
from balora.recipes.kinds import Kind, kind_of_data
from balora.recipes.methods import METHODS, Resolved, acting_fields

_OF_ONE_CALL = ("resume_from_checkpoint",)
"""Fields of the trainer's that say, as those of `RunConfig` do, what a call does with a folder."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe: the settings of one run, by part."""

    model: ModelConfig
    adapter: AdapterConfig
    data: DataConfig | ClassificationConfig
    run: RunConfig
    stopping: StoppingConfig
    objective: BALoraConfig
    training: dict[str, Any]
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    quantization: Quantization = field(default_factory=Quantization)
    source: Path | None = field(default=None, compare=False)

    @property
    def kind(self) -> Kind:
        """Text generation or classification."""
        return kind_of_data(self.data)

    @property
    def task(self) -> str | None:
        """The task of a classification, None in text generation."""
        return getattr(self.data, "task", None)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, or every weight."""
        return METHODS[self.adapter.method].has_adapter

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved flat recipe: every field that acts, with its value.

        Loaded again, it gives the same run. Fields that cannot act under the other settings are
        left out, because a recipe that sets one is refused; so is what the call was to do with an
        output that is there (`overwrite`, `dry_run`, `resume_from_checkpoint`), because the next
        call would do it unasked.
        """
        flat: dict[str, Any] = {}
        for part in (self.model, self.data):
            flat |= {k: v for k, v in dataclasses.asdict(part).items() if v is not None}
        flat |= self.quantization.acting
        if self.stopping.early_stopping_patience is not None:
            flat |= dataclasses.asdict(self.stopping)
        acting = acting_fields(Resolved(self.adapter, self.objective))
        acting = {name: value for name, value in acting.items() if name not in self.kind.foreign}
        training = {k: v for k, v in self.training.items() if k not in _OF_ONE_CALL}
        return flat | acting | replay_fields(self.replay) | training

    def to_yaml(self) -> str:
        """Return `to_dict` as YAML, which `load_recipe` reads."""
        return dump_mapping(self.to_dict())
