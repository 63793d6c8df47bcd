"""A trainer of a tiny model on a few rows, for the tests of the trainers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer

from balora.config import BALoraConfig
from balora.trainers import BALoraSFTTrainer
from support.models import make_model, make_tokenizer

CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in SFTConfig.__dataclass_fields__
    else "gradient_checkpointing"
)
OFF = {"consistency_coef": 0.0, "diversity_coef": 0.0, "svd_coef": 0.0}
LARGE = {"consistency_coef": 0.7, "diversity_coef": 0.3, "svd_coef": 0.5}
REGULARIZERS = ("consistency", "diversity", "svd")


@cache  # nothing changes a data set
def make_rows(number: int = 8) -> Dataset:
    """Return prompt/completion rows of clearly different lengths."""
    rows = [
        {"prompt": f"{i}+{i * 7 % 5}=", "completion": "abcdefghij"[: 1 + i * 3 % 7] + str(i)}
        for i in range(number)
    ]
    return Dataset.from_list(rows)


QUICK_STEPS: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_steps": 3,
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
}
"""Arguments of either trainer for a few quick steps on the CPU, every step in the log."""


def sft_config(output_dir: Path, **settings: Any) -> SFTConfig:
    """Return arguments for a few quick steps on the CPU, every step in the log."""
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "bf16": False,
        CHECKPOINTING: False,
        **QUICK_STEPS,
    }
    return SFTConfig(**(defaults | settings))


def lora_config(**settings: Any) -> LoraConfig:
    """Return a LoRA of rank 2 on every linear layer."""
    defaults = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": "all-linear"}
    return LoraConfig(**(defaults | settings))


def make_trainer(
    output_dir: Path,
    *,
    model: PreTrainedModel | str | None = None,
    objective: BALoraConfig | dict[str, Any] | None = None,
    rows: Any = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> BALoraSFTTrainer:
    """Return a trainer of a tiny Llama; ``options`` go to it, ``settings`` to ``SFTConfig``.

    A model may be named by its folder.
    """
    model = make_model("llama") if model is None else model
    is_conv1d = getattr(getattr(model, "config", None), "model_type", None) == "gpt2"
    defaults: dict[str, Any] = {
        "peft_config": lora_config(fan_in_fan_out=is_conv1d),
        "processing_class": make_tokenizer(),
        "train_dataset": make_rows() if rows is None else rows,
    }
    if not isinstance(objective, BALoraConfig):
        objective = BALoraConfig(**(objective or {}))
    return BALoraSFTTrainer(
        model,
        sft_config(output_dir, **settings),
        balora_config=objective,
        **(defaults | (options or {})),
    )


def make_plain_trainer(
    output_dir: Path, *, options: dict[str, Any] | None = None, **settings: Any
) -> SFTTrainer:
    """Return trl's own trainer with the same model, rows and adapter."""
    defaults: dict[str, Any] = {
        "model": make_model("llama"),
        "peft_config": lora_config(),
        "processing_class": make_tokenizer(),
        "train_dataset": make_rows(),
    }
    return SFTTrainer(args=sft_config(output_dir, **settings), **(defaults | (options or {})))


def run(trainer: SFTTrainer, **arguments: Any) -> list[dict[str, float]]:
    """Train and return the log rows that have a training loss."""
    trainer.train(**arguments)
    return loss_rows(trainer)


def loss_rows(trainer: SFTTrainer) -> list[dict[str, float]]:
    """Return the log rows that have a training loss."""
    return [row for row in trainer.state.log_history if "loss" in row]


def recomposed(row: dict[str, float]) -> float:
    """Return what the loss of a log row should be: the task loss plus coefficient times term."""
    terms = [name for name in (*REGULARIZERS, "replay") if f"{name}_loss" in row]
    return row["task_loss"] + sum(row[f"{n}_coef"] * row[f"{n}_loss"] for n in terms)


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the parameters that are trained, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of tensors are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of every optimizer step as they were before the step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        trained_parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.steps.append({n: p.grad.detach().clone() for n, p in trained_parameters})
