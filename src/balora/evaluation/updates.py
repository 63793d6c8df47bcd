r"""How much fine-tuning changed each weight matrix, relative to the matrix itself.

Shapes: ``O`` and ``I`` output and input features of a layer, ``R`` rank of its update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from balora.anchored import difference_factors, lora_layers, only_adapter
from balora.anchored.layer import dequantised_weight, is_anchored

_BLOCK_ELEMENTS = 2**24
"""Entries of a weight held in float64 at a time (128 MiB)."""


@torch.no_grad()
def update_sizes(tuned: PreTrainedModel, base: PreTrainedModel) -> list[dict[str, Any]]:
    r"""Return how much fine-tuning changed each weight matrix, relative to the matrix itself.

    .. math:: \lVert W_{tuned} - W \rVert_F \, / \, \lVert W \rVert_F

    in float64. Of an adapter the difference is :math:`s B A` (anchored:
    :math:`s (B A - B_0 A_0)`), whose norm is found from the factors: with :math:`B = Q_B R_B` and
    :math:`A^\top = Q_A R_A` it is that of the small :math:`s R_B R_A^\top`.

    Args:
        tuned: A PEFT model with one LoRA adapter, anchored or not, or a whole model.
        base: The pre-trained model without adapters, of the same architecture.

    Returns:
        One mapping a layer, in the order of the model: ``layer``, its name in the base model, and
        ``relative``, 0 or greater. With an adapter every adapted layer and every matrix that was
        trained in full beside it; of a whole model the matrices (two dimensions or more) that
        changed at all. A matrix that the base does not have, or that is 0 there, is left out.

    Raises:
        ValueError: If a matrix has another shape in the base, or a layer has a LoRA of a kind
            whose update is not :math:`s B A` (DoRA).
        ConfigError: If ``tuned`` carries several adapters, or one that is no LoRA.
    """
    if isinstance(tuned, PeftModel):
        changes = _adapter_changes(tuned, base)
    else:
        ours, theirs = dict(tuned.named_parameters()), dict(base.named_parameters())
        changes = ((n, c, s) for n, c, s in _full_changes(ours, theirs) if c != 0)
    return [
        {"layer": name, "relative": change / size} for name, change, size in changes if size != 0
    ]


def _full_changes(
    tuned: dict[str, Tensor], base: dict[str, Tensor]
) -> Iterator[tuple[str, float, float]]:
    """Yield layer, norm of the difference and norm of the base for the matrices of both."""
    for name, weight in tuned.items():
        if weight.dim() < 2 or name not in base:
            continue
        if weight.shape != base[name].shape:
            raise ValueError(
                f"`{name}` has shape {tuple(weight.shape)} after fine-tuning and "
                f"{tuple(base[name].shape)} in the base, so they are not one model's."
            )
        change = _norm(weight, base[name])
        yield name.removesuffix(".weight"), change, _norm(base[name])


def _adapter_changes(tuned: PeftModel, base: PreTrainedModel) -> Iterator[tuple[str, float, float]]:
    adapter = only_adapter(tuned)
    for name, layer in lora_layers(tuned):
        weight = dequantised_weight(base.get_submodule(name))
        yield name, _update_norm(name, layer, adapter), _norm(weight)
    theirs = dict(base.named_parameters())
    for name, module in tuned.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            own = module.modules_to_save[adapter].named_parameters()
            yield from _full_changes({f"{name}.{key}": value for key, value in own}, theirs)


def _update_norm(name: str, layer: Any, adapter: str) -> float:
    """Return the Frobenius norm of what the adapter of one layer adds to its weight."""
    if is_anchored(layer, adapter):
        down, up = difference_factors(layer, adapter)
    elif (variant := layer.lora_variant.get(adapter)) is not None:
        raise ValueError(
            f"`{name}` has a LoRA of the kind {type(variant).__name__}, whose update is not the "
            "product of B and A. Merge it and compare the whole models."
        )
    elif adapter in layer.lora_embedding_A:
        down, up = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    else:
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    r_up = torch.linalg.qr(up.flatten(1).double(), mode="r").R
    r_down = torch.linalg.qr(down.flatten(1).double().mT, mode="r").R
    product = r_up @ r_down.mT * layer.scaling[adapter]
    return float(torch.linalg.matrix_norm(product))


def _norm(weight: Tensor, other: Tensor | None = None) -> float:
    """Return the Frobenius norm of a weight, less another one, without a float64 copy of it."""
    block = max(_BLOCK_ELEMENTS // max(weight[0].numel(), 1), 1)
    total = 0.0
    for start in range(0, len(weight), block):
        rows = slice(start, start + block)
        values = weight[rows].double()
        if other is not None:
            values = values - other[rows].to(weight.device).double()
        total += float(values.square().sum())
    return math.sqrt(total)
