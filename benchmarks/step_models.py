"""Random models of published shapes with adapters on all linear layers, for `bench_step`.

Dropout is 0: GPT-2's own would slow the student down, in every variant, and not the reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.anchored import anchor_adapter, initialise
from balora.config import BALoraConfig

_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _NO_DROPOUT),  # the defaults are those of GPT-2 small
    "llama": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    ),
    "llama2_7b": ("llama", {}),  # the defaults are those of LLaMA-2-7B
    "tiny_gpt2": (
        "gpt2",
        {**_NO_DROPOUT, "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4},
    ),
    "tiny_llama": (
        "llama",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    ),
}
"""Architecture and what differs from its defaults in transformers."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one step trains: the model, the adapter and the batch."""

    shape: str = "gpt2"
    rank: int = 16
    batch: int = 4
    length: int = 256
    valid: float = 1.0
    """Share of each sequence that is scored; the start of it is the prompt."""
    dtype: str = "float32"
    device: str = "cpu"
    checkpointing: bool = False
    authors_svd_rows: int = 1024
    """At most this many rows enter the SVD of `authors`."""
    threads: int = os.cpu_count() or 1
    seed: int = 0

    @property
    def prompt(self) -> int:
        """Positions of each sequence that are not scored."""
        return round((1 - self.valid) * self.length)

    def facts(self) -> dict[str, Any]:
        """Return the fields for a row of results."""
        return asdict(self)

    def precision(self) -> AbstractContextManager[Any]:
        """Return what a step runs in: autocast for half precision, as trl does."""
        dtype = getattr(torch, self.dtype)
        if dtype.itemsize >= torch.float32.itemsize:
            return nullcontext()
        return torch.autocast(self.device, dtype=dtype)


class Student(NamedTuple):
    """A model with an adapter, and the optimizer of the adapter."""

    model: PeftModel
    optimizer: torch.optim.Optimizer


class Models:
    """The models of a workload, each made when a variant first asks for it.

    Variants that train the same function share its model: times do not depend on the values, and
    at the shape of LLaMA-2-7B there is no room for one each.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    @cached_property
    def anchored(self) -> Student:
        """Anchored PiSSA: the base weights are untouched."""
        model = anchor_adapter(self._adapted(init_lora_weights=True), BALoraConfig())
        initialise(model)
        return self._student(model)

    @cached_property
    def in_place(self) -> Student:
        """PiSSA as PEFT does it: the residual in place of the weights."""
        return self._student(self._adapted(init_lora_weights="pissa_niter_8"))

    @cached_property
    def plain(self) -> Student:
        """LoRA as PEFT does it."""
        return self._student(self._adapted(init_lora_weights=True))

    @cached_property
    def reference(self) -> PreTrainedModel:
        """A second full copy of the pre-trained model."""
        return make_model(self.workload).eval().requires_grad_(False)

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """Random tokens; the labels of the prompt are -100."""
        size = (self.workload.batch, self.workload.length)
        generator = torch.Generator().manual_seed(self.workload.seed)
        vocab_size = model_config(self.workload).vocab_size
        input_ids = torch.randint(vocab_size, size, generator=generator)
        labels = input_ids.clone()
        labels[:, : self.workload.prompt] = -100
        device = self.workload.device
        return {"input_ids": input_ids.to(device), "labels": labels.to(device)}

    def _adapted(self, *, init_lora_weights: bool | str) -> PeftModel:
        base = make_model(self.workload)
        if self.workload.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.workload.rank,
            lora_alpha=self.workload.rank,
            target_modules="all-linear",
            init_lora_weights=init_lora_weights,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        )
        return get_peft_model(base, lora)

    def _student(self, model: PeftModel) -> Student:
        trained = [p for p in model.parameters() if p.requires_grad]
        return Student(model.train(), torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.0))


def model_config(workload: Workload) -> Any:
    """Return the transformers config of the shape."""
    architecture, settings = SHAPES[workload.shape]
    return AutoConfig.for_model(architecture, **settings)


def make_model(workload: Workload) -> PreTrainedModel:
    """Return the model with random weights, made on its device; always the same ones."""
    torch.manual_seed(workload.seed)
    with torch.device(workload.device):
        return AutoModelForCausalLM.from_config(
            model_config(workload), dtype=getattr(torch, workload.dtype)
        )


def linear_shapes(workload: Workload) -> Iterator[tuple[int, int]]:
    """Yield inputs and outputs of each linear layer of the body."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(workload))
    for module in model.base_model.modules():
        if isinstance(module, nn.Linear):
            yield module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            yield tuple(module.weight.shape)


def num_parameters(workload: Workload) -> int:
    """Return the size of the model without an adapter; a tied head counts once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config(workload))
    return sum(parameter.numel() for parameter in model.parameters())
