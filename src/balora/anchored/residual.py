r"""PiSSA under a quantised base: only the residual is quantised (QPiSSA, ``pissa_residual``).

With :math:`Q` the quantised :math:`W - s B_0 A_0`, the base layer of an adapted layer becomes

.. math:: x \mapsto Q x + s B_0 A_0 x

so that the principal components, which the adapter starts from, are not rounded at all. Everything
else is as on any base (:mod:`balora.anchored.layer`): the start and adapters off are this base bit
for bit, which is the reference, and what is saved is the difference from the start, a plain LoRA
for the whole :math:`W`.

The whole weights are read once more from the checkpoint, layer by layer on the CPU. What training
goes on from is :math:`Q`, which is made anew from them and the anchor, the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.anchored.layer import (
    ANCHOR_BUFFERS,
    anchored_adapters,
    configured_scaling,
    initialise_layer,
    set_start,
    start_of,
)
from balora.models.digests import frozen_weights
from balora.models.load import whole_copy
from balora.models.quantization import is_quantised, quantised

Place = tuple[str, Any, str]
"""A layer by its name in the base model, the layer, and an anchored adapter of it."""

_HOOK = "balora_residual"


def is_residual(layer: Any, adapter: str) -> bool:
    """Say whether the base of ``layer`` is to be a quantised residual under ``adapter``."""
    variant = layer.lora_variant[adapter]
    return bool(variant.config.pissa_residual) and is_quantised(layer.get_base_layer().weight)


@torch.no_grad()
def start_layers(
    base: nn.Module,
    places: Sequence[Place],
    full: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Compute the starts that are missing, and quantise the residuals that belong to them.

    Args:
        base: The base model, inside PEFT's.
        places: Of its layers; an anchor that is there already stays as it is.
        full: As for :func:`balora.anchored.layer.base_weight`; ZeRO-3 splits the whole weights
            while they are read.
    """
    whole = None
    if any(is_residual(layer, adapter) for _, layer, adapter in places):
        whole = whole_copy(base)
    for name, layer, adapter in places:
        if whole is None or not is_residual(layer, adapter):
            initialise_layer(layer, adapter)
            continue
        module: Any = whole.get_submodule(name)
        weight = full(module.weight)
        weight = weight.mT if isinstance(module, Conv1D) else weight
        own = layer.get_base_layer()
        weight = weight.to(own.weight.device, torch.float32)
        if not layer.lora_variant[adapter].is_initialised:
            set_start(layer, adapter, start_of(layer, adapter, weight))
        down, up = (getattr(layer, buffer)[adapter] for buffer in ANCHOR_BUFFERS)
        residual = weight - configured_scaling(layer, adapter) * (up.float() @ down.float())
        own.weight = quantised(own, residual)
        if not hasattr(own, _HOOK):
            add_start = partial(_with_start, layer, adapter)
            setattr(own, _HOOK, own.register_forward_hook(add_start))


def _with_start(
    layer: Any, adapter: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """Return the output of a base layer with the start of its adapter, which is always on."""
    down, up = (getattr(layer, buffer)[adapter] for buffer in ANCHOR_BUFFERS)
    x = args[0].to(down.dtype)
    start = F.linear(F.linear(x, down) * configured_scaling(layer, adapter), up)
    return output + start.to(output.dtype)


def comparable_weights(base: nn.Module) -> dict[str, Tensor]:
    """Return the frozen weights of a base model that do not depend on the start of its adapters."""
    residuals = tuple(
        f"{name}."
        for name, layer in base.named_modules()
        if any(is_residual(layer, adapter) for adapter in anchored_adapters(layer))
    )
    found = frozen_weights(base)
    return {k: v for k, v in found.items() if not (residuals and k.startswith(residuals))}
