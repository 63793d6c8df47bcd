"""The laboratory's settings: what stands under `lab:` in a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from balora.config.fields import field_problems
from balora.config.parts import Count, Seed, read_part, refuse
from balora.config.rules import Interval
from balora.lab.corpus import TRAIN_REPEATS
from balora.lab.planted import mention_weights
from balora.lab.problems import MAX_PROBLEMS
from balora.lab.settings import (
    CorpusSettings,
    NoiseRate,
    PretrainSettings,
    TaskSettings,
    TrainingSettings,
    WorldSettings,
)
from balora.lab.world import MOST_PEOPLE


@dataclass(frozen=True, kw_only=True)
class LabConfig(TaskSettings, TrainingSettings, WorldSettings):
    """A world with planted defects, a model pre-trained on it, and a task to fine-tune that on.

    Raises:
        ConfigError: If a value has the wrong type or cannot work; all problems in one message.
    """

    num_people: Annotated[int, Interval(ge=4, le=MOST_PEOPLE)] = 400
    """People of the world (4 to 9600), each with a home, a profession, a pet and a hobby."""

    zipf_exponent: Annotated[float, Interval(ge=0)] = 1.0
    """How steeply people are spoken of less often, rank by rank (Zipf); 0 is equally often."""

    noise_rate: NoiseRate = 0.2

    stereotype_rate: Annotated[float, Interval(ge=0.5, le=1)] = 0.9
    """Part of the text in which a profession has the pronoun of its stereotype; 0.5 is balanced."""

    num_passes: Count = 14
    """Passes through text, composed anew; at least 3 for 400 people, 17 at `zipf_exponent` 1.5."""

    world_seed: Seed = 0
    """Draws the world, its defects and texts, the first weights and the order of pre-training."""

    num_train: Count = 1500

    num_test: Count = 200

    def __post_init__(self) -> None:
        problems = field_problems(self, self._model_problems, self._task_problems)
        if not problems:
            problems = self._mention_problems()
        refuse("lab", problems)

    def pretraining(self) -> PretrainSettings:
        """Return what decides the model."""
        corpus = CorpusSettings(seed=self.world_seed, **self._fields_of(WorldSettings))
        return PretrainSettings(
            seed=self.world_seed, corpus=corpus, **self._fields_of(TrainingSettings)
        )

    def task(self) -> TaskSettings:
        """Return what decides the task."""
        return TaskSettings(**self._fields_of(TaskSettings))

    def _fields_of(self, part: type[Any]) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(part)}

    def _mention_problems(self) -> list[str]:
        """Refuse a tail that the model is never told of: it could not be forgotten either."""
        least = TRAIN_REPEATS.statements * mention_weights(self.num_people, self.zipf_exponent)[-1]
        if self.num_passes * least >= 1:
            return []
        if self.num_passes * least < 1e-9:
            return [
                f"`zipf_exponent` is {self.zipf_exponent}, which leaves most people unspoken of"
            ]
        return [
            f"`num_passes` is {self.num_passes}, in which the least mentioned of `num_people` "
            f"{self.num_people} is spoken of {self.num_passes * least:.2g} times at "
            f"`zipf_exponent` {self.zipf_exponent}; set it to {math.ceil(1 / least)} or more"
        ]

    def _model_problems(self) -> list[str]:
        problems = []
        if self.num_heads > 0 and self.hidden_size % (2 * self.num_heads):
            problems.append(
                f"`hidden_size` is {self.hidden_size}, but must be a multiple of "
                f"{2 * self.num_heads}, twice `num_heads`: rotary positions turn pairs of a head's "
                "dimensions"
            )
        return problems

    def _task_problems(self) -> list[str]:
        problems = []
        if self.num_train + self.num_test > MAX_PROBLEMS:
            problems.append(
                f"`num_train` and `num_test` are {self.num_train} and {self.num_test}, but there "
                f"are not more than {MAX_PROBLEMS} different problems to draw from; lower them"
            )
        return problems


def lab_config(mapping: Mapping[str, Any]) -> LabConfig:
    """Return the settings that a recipe gives under `lab:`; what it leaves out has its default.

    Raises:
        ConfigError: If a key is no field, or as `LabConfig`.
    """
    return read_part(LabConfig, mapping, part="lab", of="the lab")
