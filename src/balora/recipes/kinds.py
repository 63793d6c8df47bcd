"""The two kinds of recipe, text generation and classification, and what each may hold.

A recipe that sets `task` is one of classification. What differs between the two stands in the table
here; everything else asks it, or the data part, and compares no kind with another.
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
from balora.config.quantization import Quantization
from balora.config.replay import ReplayConfig

_QUIET = {"report_to": "none", "gradient_checkpointing": False}


@dataclass(frozen=True, eq=False, kw_only=True)
class Kind:
    """What a recipe of one kind may hold."""

    words: str
    """The kind as a message names it."""
    chosen_by: str
    """What to do with a field of this kind in a recipe of the other."""
    preset_task: str
    """Which numbers a preset stands for: nlg or nlu."""
    data: type
    """The dataclass of the data part."""
    training_rows: str
    """Module and function that read the rows to train on, as they are stored."""
    prepare: str
    """Module and function that build a run: from recipe and arguments to trainer, recipe, end."""
    evaluate: str
    """Module and function behind `balora eval`."""
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
    evaluates_itself: bool
    """Whether a run leaves its metrics in its folder; of others the finished model is measured."""
    has_base: bool
    """Whether the pre-trained model can be measured too: a classifier's head is new."""
    has_lab: bool
    """Whether the lab has a task of this kind."""
    without_other_sets: Mapping[str, Any] = field(default_factory=dict)
    """The data fields of sets of another origin, with the values that name none."""
    metrics_need: Mapping[str, bool] = field(default_factory=dict)
    """Training arguments with the value without which evaluation has no metrics."""

    @property
    def parts(self) -> dict[str, type]:
        """The dataclasses of a recipe by the name of their part, training arguments left out."""
        return {
            "model": ModelConfig,
            "quantization": Quantization,
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
        return next(kind for kind in KINDS if kind is not self)

    def arguments_class(self) -> Any:
        """Return the class of the training arguments: `SFTConfig` or `TrainingArguments`."""
        return load(self.arguments)


GENERATION = Kind(
    words="text generation",
    preset_task="nlg",
    chosen_by="leave it out",
    data=DataConfig,
    arguments="trl.SFTConfig",
    training_rows="balora.data.examples.training_rows",
    prepare="balora.trainers.run_generation.prepare_generation",
    evaluate="balora.evaluation.run.evaluate",
    required=("model_name_or_path", "dataset_name", "output_dir"),
    foreign=("space",),
    adapter_learning_rate=2e-4,  # ten times trl's own, as its documentation advises for LoRA
    own_parts={"replay": ReplayConfig},
    instruments=("answers", "responses", "retention"),
    evaluates_itself=False,
    has_base=True,
    has_lab=True,
)
CLASSIFICATION = Kind(
    words="classification",
    preset_task="nlu",
    chosen_by="set `task`",
    data=ClassificationConfig,
    arguments="transformers.TrainingArguments",
    training_rows="balora.data.reading.training_rows",
    prepare="balora.trainers.run_classification.prepare_classification",
    evaluate="balora.evaluation.classification_run.evaluate",
    required=("model_name_or_path", "output_dir"),
    foreign=GENERATION_FIELDS,
    adapter_learning_rate=5e-4,  # "where the defaults come from" in docs/choosing.md
    adapter_defaults={"lora_r": 8, "lora_alpha": 8},  # the paper's rank, and half of its alphas
    argument_defaults={**_QUIET, "eval_strategy": "epoch"},
    instruments=("classification",),
    evaluates_itself=True,
    has_base=False,
    has_lab=False,
    without_other_sets={"out_of_domain": None, "glue_x_files": None, "glue_x_whole": False},
    metrics_need={
        "prediction_loss_only": False,
        "batch_eval_metrics": False,
        "eval_do_concat_batches": True,
    },
)
KINDS = (GENERATION, CLASSIFICATION)


def load(name: str) -> Any:
    """Return what a module and a name in it, with a point between, stand for."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def kind_of(values: Mapping[str, Any]) -> Kind:
    """Return the kind of a recipe by its fields: classification where `task` is set."""
    return GENERATION if values.get("task") is None else CLASSIFICATION


def kind_of_data(data: DataConfig | ClassificationConfig) -> Kind:
    """Return the kind of a recipe by its data part."""
    return next(kind for kind in KINDS if type(data) is kind.data)
