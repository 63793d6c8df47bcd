r"""Anchored PiSSA in one layer: the only file that touches PEFT's semi-private interface.

PiSSA trains :math:`A, B` from :math:`A_0 = \sqrt{S_r} V_r^\top / \sqrt{s}`,
:math:`B_0 = U_r \sqrt{S_r} / \sqrt{s}` on the residual :math:`W - s B_0 A_0` (BA-LoRA, arXiv
2408.04556, Eq. 2-4). The anchored form computes the same function with the weight untouched:

.. math:: y = W x + s \left[ B (A - A_0) x + (B - B_0) A_0 x \right]

Both terms are exactly zero at the start, so the start is the base model bit for bit in every
dtype, and adapters off is the base model at any time. Used from PEFT: ``LoraVariant`` (forward,
merge, unmerge of one layer), ``layer.lora_variant``, ``layer._disable_adapters``,
``layer._cache_store``, ``layer._cache_pop`` and ``dequantize_module_weight``.

Shapes: ``O`` output features, ``I`` input features, ``r`` rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from balora.anchored.svd import principal_components
from balora.config import BALoraConfig
from balora.errors import ConfigError

ANCHOR_BUFFERS = ("anchor_A", "anchor_B")
"""Names of the frozen copies in a layer."""


class Factors(NamedTuple):
    """A low-rank update ``up @ down``: shapes ``(O, R)`` and ``(R, I)``."""

    down: Tensor
    up: Tensor


class AnchoredVariant(LoraVariant):  # type: ignore[misc]
    """PEFT's hook into one LoRA layer, holding how its anchor is to be made."""

    def __init__(self, config: BALoraConfig) -> None:
        self.config = config

    def supports_lora_conversion(self) -> bool:
        """Refuse PEFT's own conversion: what is saved is a plain LoRA already."""
        return False

    def forward(
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        """Return ``result`` plus the anchored update of ``x``."""
        initialise_layer(module, active_adapter)
        down, up = difference_factors(module, active_adapter)
        # scaled where it is narrow: PEFT scales all output features, there and in backward
        update: Tensor = F.linear(F.linear(x, down) * module.scaling[active_adapter], up)
        return result + update

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the merged weight: added in float32, cast last."""
        # unmerging by subtraction would not give the base back bit for bit
        module._cache_store(f"{active_adapter}-unmerged", orig_weight.detach().clone())
        delta = module.get_delta_weight(active_adapter)
        merged: Tensor = orig_weight.to(delta.dtype) + delta
        return merged.to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Write the merged weight in place."""
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight as it was before merging."""
        unmerged: Tensor = module._cache_pop(f"{active_adapter}-unmerged")
        return unmerged


def attach(layer: LoraLayer, adapter: str, config: BALoraConfig) -> None:
    """Make ``layer`` an anchored one; its singular vectors are computed when first needed."""
    layer.lora_variant[adapter] = AnchoredVariant(config)
    # not persistent: checkpoints carry the anchor in a file of its own, exactly
    for name in ANCHOR_BUFFERS:
        layer.register_buffer(name, None, persistent=False)
    layer.get_delta_weight = MethodType(_delta_weight, layer)


def is_anchored(layer: nn.Module) -> bool:
    """Return whether ``layer`` is an anchored LoRA layer."""
    variants = getattr(layer, "lora_variant", {})
    return any(isinstance(variant, AnchoredVariant) for variant in variants.values())


def is_initialised(layer: nn.Module) -> bool:
    """Return whether the anchor of ``layer`` has been computed or loaded."""
    return layer.anchor_A is not None


@torch.no_grad()
def initialise_layer(layer: Any, adapter: str) -> None:
    r"""Set :math:`A, B` to the principal components of the base weight and keep a copy as anchor.

    Does nothing where the anchor is there already. The anchor is copied from the parameters
    after their cast, so that the two agree bit for bit whatever the adapter's dtype.
    """
    if is_initialised(layer):
        return
    lora_a, lora_b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    config = layer.lora_variant[adapter].config
    u, s, vh = principal_components(base_weight(layer), len(lora_a), config)
    root = (s / layer.scaling[adapter]).sqrt()
    lora_a.copy_(root[:, None] * vh)
    lora_b.copy_(u * root)
    set_anchor(layer, lora_a, lora_b)


def set_anchor(layer: Any, anchor_a: Tensor, anchor_b: Tensor) -> None:
    """Keep copies of ``anchor_a`` ``(r, I)`` and ``anchor_b`` ``(O, r)`` as the frozen anchor."""
    layer.anchor_A = anchor_a.detach().clone()
    layer.anchor_B = anchor_b.detach().clone()


def base_weight(layer: Any) -> Tensor:
    """Return the pre-trained weight as ``(O, I)``, dequantised; Conv1D stores its transpose."""
    weight: Tensor = dequantize_module_weight(layer.get_base_layer())
    return weight.mT if layer.fan_in_fan_out else weight


def difference_factors(layer: Any, adapter: str) -> Factors:
    r"""Return :math:`[A - A_0; A_0]` and :math:`[B, B - B_0]`: the update as a LoRA of rank 2r.

    This is what the forward pass multiplies with and what is saved. Stacking :math:`[A; A_0]`
    and :math:`[B, -B_0]` would give the same product and cancel badly in low precision.
    """
    lora_a, lora_b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return Factors(
        down=torch.cat([lora_a - layer.anchor_A, layer.anchor_A]),
        up=torch.cat([lora_b, lora_b - layer.anchor_B], dim=1),
    )


def _delta_weight(self: Any, adapter: str) -> Tensor:
    """Stand in for PEFT's ``get_delta_weight``: what merging adds, in float32 or better."""
    initialise_layer(self, adapter)
    down, up = difference_factors(self, adapter)
    dtype = torch.promote_types(down.dtype, torch.float32)
    delta: Tensor = up.to(dtype) @ down.to(dtype) * self.scaling[adapter]
    return delta.mT if self.fan_in_fan_out else delta


def check_layer(name: str, layer: Any, adapter: str, *, anchored: bool) -> None:
    """Refuse a rank above the matrix and, for PiSSA, a layer that has no weight matrix.

    Raises:
        ConfigError: Naming the layer, the limit and the fix.
    """
    rank = layer.r[adapter]
    shape = tuple(base_weight(layer).shape) if hasattr(layer, "fan_in_fan_out") else ()
    if anchored and (adapter not in layer.lora_A or len(shape) != 2):
        raise ConfigError(
            f"`{name}` is a {type(layer.get_base_layer()).__name__}, but PiSSA starts from the "
            "singular vectors of a linear layer. Take it out of `lora_target_modules`."
        )
    if len(shape) == 2 and rank > min(shape):
        raise ConfigError(
            f"`lora_r` is {rank}, but `{name}` has shape {shape} and so only {min(shape)} "
            f"singular values. Lower the rank to {min(shape)}, or take the layer out of "
            "`lora_target_modules`."
        )


@contextmanager
def reference_mode(model: nn.Module) -> Iterator[None]:
    """Run ``model`` as the pre-trained one: adapters off, eval mode, no gradient.

    PEFT's own ``disable_adapter()`` sets ``requires_grad`` on every adapter parameter when it
    leaves; here only the switches are turned, and each is put back as it was.
    """
    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    switches = [m for m in model.modules() if isinstance(m, wrappers) and not m.disable_adapters]
    training = [m for m in model.modules() if m.training]
    try:
        for module in switches:
            module._disable_adapters = True
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module in switches:
            module._disable_adapters = False
        for module in training:
            module.training = True
