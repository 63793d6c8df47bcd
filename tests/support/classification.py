"""A trainer of a tiny classifier on a few rows, for the tests of classification."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.models.auto.configuration_auto import AutoConfig

from balora.config import BALoraConfig
from balora.models.classifier import LoadedClassifier
from balora.trainers import BALoraTrainer
from support.models import CAUSAL, CLASSIFIERS, make_tokenizer
from support.training import LARGE, OFF, QUICK_STEPS

ARCHITECTURES = ("bert", "roberta", "deberta-v3", "gpt2", "llama")
NEW_MODULES = {"deberta-v3": ("classifier", "pooler"), "gpt2": ("score",), "llama": ("score",)}
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop"), 0.0
) | {"attn_pdrop": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "full": OFF,
    "lora": {**OFF, "adapter_init": "lora"},
    "pissa": OFF,
    "balora": LARGE,
}


def _config(architecture: str, **settings: Any) -> Any:
    own = {**CAUSAL, **CLASSIFIERS}[architecture]
    return AutoConfig.for_model(architecture.replace("-v3", "-v2"), **{**own, **settings})


@torch.no_grad()
def make_classifier(
    architecture: str = "bert",
    *,
    num_labels: int = 3,
    head_seed: int = 0,
    dropout: bool = False,
    dtype: torch.dtype = torch.float32,
) -> LoadedClassifier:
    """Return a tiny classifier; models with another ``head_seed`` share the encoder."""
    settings = {} if dropout else NO_DROPOUT
    config = _config(architecture, num_labels=num_labels, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        model = AutoModelForSequenceClassification.from_config(config)
    body = {id(p) for p in model.base_model.parameters()}
    for parameter in model.base_model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.15, generator=generator)
    generator.manual_seed(100 + head_seed)
    for parameter in (p for p in model.parameters() if id(p) not in body):
        parameter.normal_(std=0.3, generator=generator)
    return LoadedClassifier(model.to(dtype).eval(), NEW_MODULES.get(architecture, ("classifier",)))


def save_body(folder: Path, architecture: str) -> str:
    """Write a tiny pre-trained encoder or decoder without any head and return its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(_config(architecture, **NO_DROPOUT))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    return str(folder)


@cache  # nothing changes a data set
def make_rows(number: int = 8, *, num_labels: int = 3) -> Dataset:
    """Return tokenized rows of different lengths; the labels fit ``num_labels``."""
    tokenizer = make_tokenizer()
    texts = [f"{i}+{i * 7 % 5} {'abcdefghij'[: 1 + i * 3 % 7]}" for i in range(number)]
    rows = [
        {
            **{k: v for k, v in tokenizer(text).items() if k != "token_type_ids"},
            "labels": i * 3 % 7 / 2 - 1 if num_labels == 1 else i * 5 % num_labels,
        }
        for i, text in enumerate(texts)
    ]
    return Dataset.from_list(rows)


def arguments(output_dir: Path, **settings: Any) -> TrainingArguments:
    """Return arguments for a few quick steps on the CPU, every step in the log."""
    defaults = {"output_dir": str(output_dir), **QUICK_STEPS}
    return TrainingArguments(**(defaults | settings))


def lora_config(architecture: str = "bert", **settings: Any) -> LoraConfig:
    """Return a LoRA of rank 2 on every linear layer of the encoder."""
    defaults = {
        "task_type": "SEQ_CLS",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": "all-linear",
        "fan_in_fan_out": architecture == "gpt2",
    }
    return LoraConfig(**(defaults | settings))


def make_trainer(
    output_dir: Path,
    *,
    model: Any = None,
    method: str = "balora",
    objective: dict[str, Any] | None = None,
    num_labels: int = 3,
    rows: Any = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> BALoraTrainer:
    """Return a trainer of a tiny BERT; ``options`` go to it, ``settings`` to its arguments."""
    model = make_classifier(num_labels=num_labels) if model is None else model
    base = model.model if isinstance(model, LoadedClassifier) else model
    peft_config = None if method == "full" else lora_config(base.config.model_type)
    defaults: dict[str, Any] = {
        "peft_config": peft_config,
        "processing_class": make_tokenizer(),
        "train_dataset": make_rows(num_labels=num_labels) if rows is None else rows,
    }
    return BALoraTrainer(
        model,
        arguments(output_dir, **settings),
        balora_config=BALoraConfig(**{**METHODS[method], **(objective or {})}),
        **(defaults | (options or {})),
    )


def logits_of(model: PreTrainedModel, rows: Dataset | None = None) -> torch.Tensor:
    """Return the logits of some rows in one batch, in eval mode."""
    rows = make_rows() if rows is None else rows
    kept = [{k: row[k] for k in ("input_ids", "attention_mask")} for row in rows]
    batch = make_tokenizer().pad(kept, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**batch).logits
    return logits
