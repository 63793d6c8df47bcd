"""The laboratory's settings: what stands under `lab:` in a recipe."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from balora.config import refuse
from balora.field_types import field_problems, suggestion
from balora.lab.corpus import TRAIN_REPEATS
from balora.lab.planted import mention_weights
from balora.lab.problems import MAX_PROBLEMS
from balora.lab.settings import (
    CorpusSettings,
    PretrainSettings,
    TaskSettings,
    TrainingSettings,
    WorldSettings,
)
from balora.lab.world import MOST_PEOPLE
from balora.recipes.values import parse_text

_LEAST = {
    "world_seed": 0,
    "num_people": 4,
    "num_stories": 1,
    "zipf_exponent": 0,
    "num_passes": 1,
    "vocab_size": 259,
    "hidden_size": 2,
    "intermediate_size": 1,
    "num_layers": 1,
    "num_heads": 1,
    "block_size": 2,
    "batch_size": 1,
    "task_seed": 0,
    "num_train": 1,
    "num_test": 1,
    "max_problem_steps": 1,
}


@dataclass(frozen=True, kw_only=True)
class LabConfig(TaskSettings, TrainingSettings, WorldSettings):
    """A world with planted defects, a model pre-trained on it, and a task to fine-tune that on.

    Raises:
        ConfigError: If a value has the wrong type or cannot work; all problems in one message.
    """

    num_people: int = 400
    """People of the world (4 to 9600), each with a home, a profession, a pet and a hobby."""

    zipf_exponent: float = 1.0
    """How steeply people are spoken of less often, rank by rank (Zipf); 0 is equally often."""

    noise_rate: float = 0.2
    """Part of the told statements that is corrupted: half wrong, the rest copied or scrambled."""

    stereotype_rate: float = 0.9
    """Part of the text in which a profession has the pronoun of its stereotype; 0.5 is balanced."""

    num_passes: int = 14
    """Passes through the training sentences, composed anew each time."""

    world_seed: int = 0
    """Draws the world, its defects and texts, the first weights and the order of pre-training."""

    num_train: int = 1500
    """Problems to train on."""

    num_test: int = 200
    """Problems held out, whose answers are all right."""

    def __post_init__(self) -> None:
        problems = field_problems(self)
        if not problems:
            problems = self._range_problems() + self._model_problems() + self._task_problems()
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

    def _range_problems(self) -> list[str]:
        problems = [
            f"`{name}` must be {least} or greater, got {value}"
            for name, least in _LEAST.items()
            if (value := getattr(self, name)) < least
        ]
        if self.num_people > MOST_PEOPLE:
            problems.append(
                f"`num_people` is {self.num_people}, but the word lists give only {MOST_PEOPLE} "
                "different full names"
            )
        if not 0 < self.held_out_fraction < 1:
            problems.append(
                "`held_out_fraction` must be greater than 0 and less than 1, got "
                f"{self.held_out_fraction}"
            )
        if not 0 <= self.noise_rate < 1:
            problems.append(
                f"`noise_rate` must be 0 or greater and less than 1, got {self.noise_rate}"
            )
        if not 0.5 <= self.stereotype_rate <= 1:
            problems.append(
                f"`stereotype_rate` must be from 0.5 (balanced) to 1, got {self.stereotype_rate}"
            )
        return problems

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
        if self.max_steps != -1 and self.max_steps < 1:
            problems.append(f"`max_steps` must be -1 or at least 1, got {self.max_steps}")
        if not self.learning_rate > 0:
            problems.append(f"`learning_rate` must be greater than 0, got {self.learning_rate}")
        return problems

    def _task_problems(self) -> list[str]:
        problems = []
        if not 0 <= self.label_noise <= 1:
            problems.append(f"`label_noise` must be from 0 to 1, got {self.label_noise}")
        if self.num_train + self.num_test > MAX_PROBLEMS:
            problems.append(
                f"`num_train` and `num_test` are {self.num_train} and {self.num_test}, but there "
                f"are not more than {MAX_PROBLEMS} different problems to draw from; lower them"
            )
        return problems


def parse_fields(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return fields of the command line with their values; of no field the text stays as it is.

    Raises:
        ConfigError: If a text is no value of its field.
    """
    hints = typing.get_type_hints(LabConfig)
    return {name: parse_text(text, hints.get(name, str)) for name, text in texts.items()}


def lab_config(mapping: Mapping[str, Any]) -> LabConfig:
    """Return the settings that a recipe gives under `lab:`; what it leaves out has its default.

    Raises:
        ConfigError: If a key is no field, or as `LabConfig`.
    """
    known = [field.name for field in fields(LabConfig)]
    refuse(
        "lab",
        [
            f"`{name}` is no field of the lab{suggestion(str(name), known)}"
            for name in mapping
            if name not in known
        ],
    )
    return LabConfig(**mapping)
