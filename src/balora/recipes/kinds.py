"""The two kinds of recipe, text generation and classification, and what each may hold.

A recipe that sets `task` is one of classification. What differs between the two is listed here and
nowhere else: the data part, the class of the training arguments, the numbers of the preset, and
the fields of the objective that act in the other kind only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
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
from balora.config.objective import GENERATION_FIELDS
from balora.config.replay import ReplayConfig

_QUIET = {"report_to": "none", "gradient_checkpointing": False}


@dataclass(frozen=True, eq=False, kw_only=True)
class Kind:
    """What a recipe of one kind may hold."""

    words: str
    """The kind as a message names it."""
    preset_task: str
    """Which numbers a preset stands for: nlg or nlu."""
    data: type
    """The dataclass of the data part."""
    arguments: str
    """Module and class of the training arguments, imported when they are needed."""
    required: tuple[str, ...]
    """Fields without which there is no run."""
    foreign: tuple[str, ...]
    """Fields of `BALoraConfig` that act in the other kind only."""
    own_parts: Mapping[str, type] = field(default_factory=dict)
    """Parts that the other kind does not have."""
    adapter_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the adapter where the recipe is silent, other than `AdapterConfig`'s own."""
    adapter_learning_rate: float
    """Where the recipe is silent: the libraries' own defaults are those of full fine-tuning, at
    which an adapter hardly moves."""
    argument_defaults: Mapping[str, Any] = field(default_factory=lambda: dict(_QUIET))
    """Training arguments where the recipe is silent."""
    instruments: tuple[str, ...]
    """What measures a run where nothing else is asked for, by name."""
    metrics_need: Mapping[str, bool] = field(default_factory=dict)
    """Training arguments with the value without which evaluation has no metrics."""

    @property
    def parts(self) -> dict[str, type]:
        """The dataclasses of a recipe by the name of their part, training arguments left out."""
        return {
            "model": ModelConfig,
            "adapter": AdapterConfig,
            "data": self.data,
            "run": RunConfig,
            "stopping": StoppingConfig,
            "objective": BALoraConfig,
            **self.own_parts,
        }

    @property
    def other(self) -> Kind:
        """The other of the two kinds."""
        return GENERATION if self is CLASSIFICATION else CLASSIFICATION

    def arguments_class(self) -> Any:
        """Return the class of the training arguments: `SFTConfig` or `TrainingArguments`."""
        module, _, name = self.arguments.rpartition(".")
        return getattr(import_module(module), name)


GENERATION = Kind(
    words="text generation",
    preset_task="nlg",
    data=DataConfig,
    arguments="trl.SFTConfig",
    required=("model_name_or_path", "dataset_name", "output_dir"),
    foreign=("space",),
    adapter_learning_rate=2e-4,  # ten times trl's own, as its documentation advises for LoRA
    own_parts={"replay": ReplayConfig},
    instruments=("answers", "responses", "retention"),
)
CLASSIFICATION = Kind(
    words="classification",
    preset_task="nlu",
    data=ClassificationConfig,
    arguments="transformers.TrainingArguments",
    required=("model_name_or_path", "output_dir"),
    foreign=GENERATION_FIELDS,
    adapter_learning_rate=5e-4,  # within the paper's Table 1, 1e-4 to 6e-4
    adapter_defaults={"lora_r": 8, "lora_alpha": 8},  # the paper's rank, and half of its alphas
    argument_defaults={**_QUIET, "eval_strategy": "epoch"},
    instruments=("classification",),
    metrics_need={
        "prediction_loss_only": False,
        "batch_eval_metrics": False,
        "eval_do_concat_batches": True,
    },
)


def kind_of(values: Mapping[str, Any]) -> Kind:
    """Return the kind of a recipe by its fields: classification where `task` is set."""
    return GENERATION if values.get("task") is None else CLASSIFICATION
