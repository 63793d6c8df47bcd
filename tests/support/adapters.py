"""A tiny anchored model, a batch for it and a few steps, for the tests of `balora.anchored`."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from balora.anchored import ANCHOR_BUFFERS, anchor_adapter, initialise, lora_layers
from balora.config import BALoraConfig
from support.models import CAUSAL, VOCAB, make_model

EXACT = BALoraConfig(pissa_svd="exact")


def lora_config(architecture: str, **settings: Any) -> LoraConfig:
    """Return a LoRA of rank 4 on every linear layer, with a scaling that is not 1."""
    defaults = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM" if architecture in CAUSAL else "SEQ_CLS",
        "fan_in_fan_out": architecture == "gpt2",
    }
    return LoraConfig(**(defaults | settings))


def adapted_model(
    architecture: str,
    *,
    dtype: torch.dtype = torch.float32,
    autocast_adapter_dtype: bool = True,
    **settings: Any,
) -> PeftModel:
    """Return a tiny model in eval mode with a plain LoRA; the same arguments give the same bits."""
    base = make_model(architecture, dtype=dtype)
    config = lora_config(architecture, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter_dtype).eval()


def anchored_model(architecture: str, config: BALoraConfig = EXACT, **arguments: Any) -> PeftModel:
    """Return the model of `adapted_model` as an anchored one, not initialised yet."""
    return anchor_adapter(adapted_model(architecture, **arguments), config)


def make_batch(architecture: str, rng: torch.Generator) -> dict[str, Tensor]:
    """Return token ids and the labels that fit the head."""
    ids = torch.randint(3, VOCAB, (3, 7), generator=rng)
    classes = torch.randint(3, (3,), generator=rng)
    return {"input_ids": ids, "labels": ids if architecture in CAUSAL else classes}


def logits_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of `batch`, without a gradient."""
    with torch.no_grad():
        return model(input_ids=batch["input_ids"]).logits


def train(
    model: Any,
    batch: dict[str, Tensor],
    *,
    num_steps: int = 4,
    learning_rate: float = 0.01,
) -> list[float]:
    """Take AdamW steps on one batch, from the start that belongs to it, and return the losses."""
    if isinstance(model, PeftModel):
        initialise(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    losses = []
    for _ in range(num_steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def factors_of(layer: Any, adapter: str | None = None) -> tuple[Tensor, Tensor, float]:
    """Return A, B and the scaling of a LoRA layer; of its first adapter, if none is named."""
    adapter = adapter or next(iter(layer.r))
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return a.detach(), b.detach(), layer.scaling[adapter]


def start_of(layer: Any, adapter: str | None = None) -> tuple[Tensor, Tensor]:
    """Return the frozen A0 and B0 of an anchored layer."""
    name = adapter or next(iter(layer.r))
    anchor_a, anchor_b = (getattr(layer, buffer)[name] for buffer in ANCHOR_BUFFERS)
    return anchor_a, anchor_b


def dense_updates(model: PeftModel, adapter: str | None = None) -> dict[str, Tensor]:
    """Return s (B A - B0 A0) of every layer in float64, by the definition."""
    updates = {}
    for name, layer in lora_layers(model):
        a, b, scaling = factors_of(layer, adapter)
        anchor_a, anchor_b = start_of(layer, adapter)
        start = anchor_b.double() @ anchor_a.double()
        updates[name] = scaling * (b.double() @ a.double() - start)
    return updates


def anchors_of(model: PeftModel) -> dict[str, Tensor]:
    """Return copies of A, B, A0 and B0 of every layer by name."""
    state = {}
    for name, layer in lora_layers(model):
        a, b, _ = factors_of(layer)
        anchors = {"A": a, "B": b, **dict(zip(("A0", "B0"), start_of(layer), strict=True))}
        state |= {f"{name}.{key}": value.clone() for key, value in anchors.items()}
    return state


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that two sets of tensors have the same names, dtypes and bits."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value."""
    difference = (actual.detach().double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())
