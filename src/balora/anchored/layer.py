r"""An anchored adapter in one layer: what touches PEFT's semi-private interface.

PiSSA trains :math:`A, B` from the :math:`A_0, B_0` of :mod:`balora.anchored.starts` on the residual
:math:`W - s B_0 A_0` (BA-LoRA, arXiv 2408.04556, Eq. 2-4). The anchored form computes the same
function with the weight untouched:

.. math:: y = W x + s \left[ B (A - A_0) x + (B - B_0) A_0 x \right]

Both terms are exactly zero at the start, so the start is the base model bit for bit in every
dtype, and adapters off is the base model at any time. A layer may hold other adapters beside an
anchored one: everything here is said of one adapter of one layer. The anchor is part of the state
dict, under names that PEFT takes for its own, so that all four matrices travel together.

Used from PEFT: ``LoraVariant`` (forward, merge, unmerge of one layer), ``layer.lora_variant``,
``layer.other_param_names``, ``layer._disable_adapters``, ``layer._cache_store``,
``layer._cache_pop``, ``BufferDict``, ``dequantize_module_weight`` and ``dequantize_bnb_weight``.

Shapes: ``O`` output features, ``I`` input features, ``r`` rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora.layer import LoraLayer, LoraVariant, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from balora.anchored.starts import STARTS, Factors, Weight, take_statistics
from balora.config import BALoraConfig
from balora.errors import ConfigError
from balora.models.quantization import is_quantised

ANCHOR_BUFFERS = ("lora_anchor_A", "lora_anchor_B")
"""Attributes of a layer that hold the frozen copies, by the name of the adapter."""


class AnchoredVariant(LoraVariant):  # type: ignore[misc]
    """PEFT's hook into one adapter of one LoRA layer: how its anchor is made, and whether it is."""

    def __init__(self, config: BALoraConfig) -> None:
        self.config = config
        self.is_initialised = False

    def supports_lora_conversion(self) -> bool:
        """Refuse PEFT's own conversion: what is saved is a plain LoRA already."""
        return False

    def forward(
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        """Return ``result`` plus the anchored update of ``x``; before the start it is zero.

        Raises:
            ConfigError: In training, if the start was neither computed nor loaded.
        """
        is_trained = module.lora_B[active_adapter].weight.requires_grad
        if is_trained and torch.is_grad_enabled() and not self.is_initialised:
            raise ConfigError(
                f"the adapter `{active_adapter}` has no start yet, so training would begin "
                "elsewhere. Call `balora.anchored.initialise(model)` first, or load a checkpoint "
                "with `model.load_adapter`; to look at the model, use `torch.no_grad()`."
            )
        matrices = _matrices(module, active_adapter)
        update: Tensor = _Update.apply(x, module.scaling[active_adapter], *matrices)  # type: ignore[no-untyped-call]
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


class _Update(torch.autograd.Function):
    r"""The update of ``x``, ``(..., I)`` to ``(..., O)``: see :func:`difference_factors`.

    What autograd would keep of the factors for the backward pass is as large as the adapter and
    its anchor together; here they are put together again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scaling: float, *matrices: Tensor) -> Tensor:
        down, up = difference(*matrices)
        # scaled where it is narrow: PEFT scales all output features, there and in backward
        narrow = F.linear(x, down) * scaling
        ctx.save_for_backward(x, narrow, *matrices)
        ctx.scaling = scaling
        return F.linear(narrow, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow, *matrices = ctx.saved_tensors
        down, up = (factor.to(grad.dtype) for factor in difference(*matrices))
        rank, rows = len(matrices[0]), grad.reshape(-1, grad.shape[-1])
        of_narrow = rows @ up * ctx.scaling
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = (of_narrow @ down).view_as(x).to(x.dtype)
        if ctx.needs_input_grad[2]:
            # [A - A0; A0]: only the first half has a gradient
            of_a = of_narrow[:, :rank].mT @ x.reshape(-1, x.shape[-1]).to(grad.dtype)
            of_a = of_a.to(matrices[0].dtype)
        if ctx.needs_input_grad[3]:
            # [B, B - B0]: both have
            of_up = rows.mT @ narrow.reshape(-1, narrow.shape[-1]).to(grad.dtype)
            of_b = (of_up[:, :rank] + of_up[:, rank:]).to(matrices[1].dtype)
        return of_x, None, of_a, of_b, None, None


class _AnchoredLayer:
    """What a LoRA layer does otherwise for its anchored adapters; the others are PEFT's."""

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return what merging adds; for an anchored adapter in float32 or better."""
        layer: Any = self
        if not is_anchored(layer, adapter):
            delta: Tensor = super().get_delta_weight(adapter)  # type: ignore[misc]
            return delta
        down, up = difference_factors(layer, adapter)
        dtype = torch.promote_types(down.dtype, torch.float32)
        delta = up.to(dtype) @ down.to(dtype) * layer.scaling[adapter]
        return delta.mT if layer.fan_in_fan_out else delta

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load all four matrices of an anchored adapter or none: half of them is no function."""
        layer: Any = self
        inside = [name for name in anchored_adapters(layer) if layer.lora_anchor_A.persistent]
        for adapter in inside:
            matrices = [state_dict.get(prefix + key) for key in state_keys(adapter)]
            found = [matrix for matrix in matrices if matrix is not None]
            if 0 < len(found) < len(matrices):
                raise ConfigError(
                    f"the weights for `{prefix.removesuffix('.')}` are {len(found)} of the four "
                    f"matrices of the anchored adapter `{adapter}`: A and B mean nothing without "
                    "the start they moved from. Load a checkpoint with `model.load_adapter(folder, "
                    f"{adapter!r})`, or a whole `state_dict()` of such a model."
                )
            if found:
                layer.lora_variant[adapter].is_initialised = _is_start(*found)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]


def _refused_for_anchored(name: str) -> Any:
    """Return the public method ``name`` of a LoRA layer, refused for an anchored adapter."""

    def method(self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        if is_anchored(self, adapter_name):
            raise ConfigError(
                f"`{name}` would give the anchored adapter `{adapter_name}` another A and B than "
                "the ones its start belongs to. Start again from the base model, or name another "
                "adapter."
            )
        return getattr(super(_AnchoredLayer, self), name)(adapter_name, *args, **kwargs)

    method.__doc__ = f"Call PEFT's ``{name}``, but not for an anchored adapter."
    return method


_STARTS = (
    "update_layer",
    "reset_lora_parameters",
    *(name for name in vars(LoraLayer) if name.endswith("_init") and not name.startswith("_")),
)
"""Public methods of a LoRA layer that give an adapter new factors."""

for _name in _STARTS:
    setattr(_AnchoredLayer, _name, _refused_for_anchored(_name))


def _is_start(lora_a: Tensor, _: Tensor, *anchor: Tensor) -> bool:
    """Return whether the anchor was computed; that of a weight of zeros is zero, and so is A."""
    return any(bool(part.any()) for part in anchor) or not bool(lora_a.any())


@lru_cache
def _anchored_layer_class(cls: Any) -> Any:
    return type(cls.__name__, (_AnchoredLayer, cls), {"__doc__": cls.__doc__})


def attach(layer: Any, adapter: str, config: BALoraConfig) -> None:
    """Make ``adapter`` of ``layer`` an anchored one; :func:`initialise_layer` computes its start.

    Until then the anchor is zero and B as well, so the layer gives what its base gives.
    """
    layer.lora_variant[adapter] = AnchoredVariant(config)
    for name in ANCHOR_BUFFERS:
        setattr(layer, name, BufferDict(persistent=True))
    # PEFT then deletes them with the adapter
    layer.other_param_names = (*layer.other_param_names, *ANCHOR_BUFFERS)
    cls: Any = type(layer)
    layer.__class__ = _anchored_layer_class(cls)
    clear_anchor(layer, adapter)


def keep_in_state_dict(layer: Any, *, is_kept: bool) -> None:
    """Let the anchors of ``layer`` be part of its state dict, or not for the moment."""
    for name in ANCHOR_BUFFERS:
        anchors = getattr(layer, name)
        anchors.persistent = is_kept
        for adapter, anchor in [*anchors.items()]:
            anchors[adapter] = anchor


def anchored_adapters(layer: nn.Module) -> list[str]:
    """Return the names of the anchored adapters of ``layer``."""
    variants = getattr(layer, "lora_variant", {})
    return [name for name, variant in variants.items() if isinstance(variant, AnchoredVariant)]


def is_anchored(layer: nn.Module, adapter: str) -> bool:
    """Return whether ``adapter`` is an anchored adapter of ``layer``."""
    return adapter in anchored_adapters(layer)


def state_keys(adapter: str) -> tuple[str, str, str, str]:
    """Return the names of A, B, A0 and B0 in the state dict of a layer."""
    factors = (f"lora_{factor}.{adapter}.weight" for factor in "AB")
    return (*factors, *(f"{name}.{adapter}" for name in ANCHOR_BUFFERS))  # type: ignore[return-value]


@torch.no_grad()
def initialise_layer(layer: Any, adapter: str) -> None:
    r"""Set :math:`A, B` to the start that ``adapter_init`` names and keep a copy as anchor.

    Does nothing where the anchor is there already.
    """
    if not layer.lora_variant[adapter].is_initialised:
        set_start(layer, adapter, start_of(layer, adapter, base_weight(layer)))


@torch.no_grad()
def start_of(layer: Any, adapter: str, matrix: Tensor) -> Factors:
    """Return the start of an adapter: ``(r, I)`` and ``(O, r)``, where the weight is.

    Args:
        layer: Of the adapter.
        adapter: Its name.
        matrix: The pre-trained weight, from :func:`base_weight`.
    """
    config = layer.lora_variant[adapter].config
    statistics = take_statistics(layer.get_base_layer())
    scaling = configured_scaling(layer, adapter)
    return STARTS[config.adapter_init](
        Weight(matrix, layer.r[adapter], scaling, statistics), config
    )


@torch.no_grad()
def set_start(layer: Any, adapter: str, start: Factors) -> None:
    """Set A and B to their start and keep a copy as anchor.

    It is copied from the parameters after their cast, so that the two agree bit for bit whatever
    the adapter's dtype.
    """
    variant = layer.lora_variant[adapter]
    lora_a, lora_b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    lora_a.copy_(start.down)
    lora_b.copy_(start.up)
    layer.lora_anchor_A[adapter] = lora_a.detach().clone()
    layer.lora_anchor_B[adapter] = lora_b.detach().clone()
    variant.is_initialised = True


@torch.no_grad()
def clear_anchor(layer: Any, adapter: str) -> None:
    """Make the anchor zero: where, and in the dtype, that A and B are."""
    layer.lora_anchor_A[adapter] = torch.zeros_like(layer.lora_A[adapter].weight)
    layer.lora_anchor_B[adapter] = torch.zeros_like(layer.lora_B[adapter].weight)
    layer.lora_variant[adapter].is_initialised = False


def configured_scaling(layer: Any, adapter: str) -> float:
    """Return s as the settings give it; ``layer.scaling`` may be another one for the moment."""
    rank = layer.r[adapter]
    return float(layer.lora_alpha[adapter] / (rank**0.5 if layer.use_rslora[adapter] else rank))


def base_weight(layer: Any, full: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
    """Return the pre-trained weight as ``(O, I)``, dequantised; Conv1D stores its transpose.

    Args:
        layer: A LoRA layer.
        full: From a tensor that is split over processes to the whole one; all of them call.
    """
    weight = full(dequantised_weight(layer.get_base_layer()))
    return weight.mT if layer.fan_in_fan_out else weight


def dequantised_weight(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer in full, as it is stored; the layer stays as it is.

    PEFT's own function gives an 8-bit layer on a CPU another parameter, without the scales that
    its next forward reads.
    """
    own: Any = module
    if type(own.weight).__name__ in ("Int8Params", "Params4bit"):
        weight: Tensor = dequantize_bnb_weight(own.weight, state=getattr(own, "state", None))
        return weight
    return torch.as_tensor(dequantize_module_weight(module))


@torch.no_grad()
def take_weights(model: nn.Module, quantised: nn.Module) -> None:
    """Give ``model`` the weights that those of its quantised copy stand for, layer by layer.

    Args:
        model: A base model whose weights are not quantised; its adapters stay as they are.
        quantised: The same with quantised weights.
    """
    for name, module in quantised.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, BaseTunerLayer) or weight is None or not is_quantised(weight):
            continue
        own: Any = model.get_submodule(name)
        full = dequantised_weight(module)
        own.weight.copy_(full.mT if isinstance(own, Conv1D) else full)


def difference_factors(layer: Any, adapter: str) -> Factors:
    r"""Return :math:`[A - A_0; A_0]` and :math:`[B, B - B_0]`: the update as a LoRA of rank 2r.

    This is what the forward pass multiplies with and what is saved.

    Raises:
        ConfigError: If A or B was replaced by a matrix of another shape.
    """
    return difference(*_matrices(layer, adapter))


def _matrices(layer: Any, adapter: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return A, B, A0 and B0, see :func:`difference_factors`."""
    lora_a, lora_b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    anchor_a, anchor_b = (getattr(layer, name)[adapter] for name in ANCHOR_BUFFERS)
    if (lora_a.shape, lora_b.shape) != (anchor_a.shape, anchor_b.shape):
        raise ConfigError(
            f"A and B of the anchored adapter `{adapter}` were given other shapes, "
            f"{tuple(lora_a.shape)} and {tuple(lora_b.shape)}, than their start has, "
            f"{tuple(anchor_a.shape)} and {tuple(anchor_b.shape)}. Load the other adapter under a "
            "name of its own."
        )
    return lora_a, lora_b, anchor_a, anchor_b


def difference(lora_a: Tensor, lora_b: Tensor, anchor_a: Tensor, anchor_b: Tensor) -> Factors:
    r"""Return :math:`[A - A_0; A_0]` and :math:`[B, B - B_0]` of the four matrices.

    Stacking :math:`[A; A_0]` and :math:`[B, -B_0]` would give the same product and cancel badly in
    low precision.
    """
    return Factors(
        down=torch.cat([lora_a - anchor_a, anchor_a]),
        up=torch.cat([lora_b, lora_b - anchor_b], dim=1),
    )


def misfit(name: str, layer: Any, adapter: str, config: BALoraConfig) -> str | None:
    """Return why ``adapter`` cannot work in ``layer``, without a full stop; None where it can.

    A rank above the matrix is refused for every start; an anchored one needs a matrix and a
    positive scale.
    """
    start = f"the start (`adapter_init: {config.adapter_init}`)"
    rank, shape = layer.r[adapter], _matrix_shape(layer)
    if config.is_anchored and (adapter not in layer.lora_A or not shape):
        return (
            f"`{name}` is a {type(layer.get_base_layer()).__name__}, but {start} is computed from "
            "the weight of a linear layer. Leave it out"
        )
    if shape and rank > min(shape):
        values = "value" if min(shape) == 1 else "values"
        return (
            f"`lora_r` is {rank}, but `{name}` has shape {shape} and so only {min(shape)} "
            f"singular {values}. Lower the rank to {min(shape)}"
        )
    if config.is_anchored and not layer.lora_alpha[adapter] > 0:
        return (
            f"`lora_alpha` is {layer.lora_alpha[adapter]} for `{name}`, but {start} is "
            "divided by the scale it gives. Set it above 0"
        )
    return None


def _matrix_shape(layer: Any) -> tuple[int, ...]:
    """Return the shape of the matrix that ``layer`` adapts; () where it is none."""
    is_linear = hasattr(layer, "fan_in_fan_out") and not isinstance(layer, ParamWrapper)
    # not of the weight, which may be quantised, or split over processes
    return (layer.out_features, layer.in_features) if is_linear else ()


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
