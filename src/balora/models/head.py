"""From hidden states to logits, in the model's own order: linear map, scale, soft cap.

Models differ in what follows the linear map: Granite divides, Cohere multiplies, Gemma-2 squashes.
The names under which their configs say so are here, and :func:`check_head` compares the result with
the model's own logits, so that a model that does something else is refused rather than mistrained.

Shapes: ``M`` rows, ``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.errors import ConfigError

if TYPE_CHECKING:  # the objective, which needs a head alone, does without transformers
    from transformers import PreTrainedModel

_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Config fields that multiply the logits (Cohere; Falcon-H1)."""


@dataclass(frozen=True)
class LMHead:
    """A frozen or trained output layer: ``softcap(scale * (weight @ h + bias))``."""

    weight: Tensor
    """Shape ``(V, D)``."""
    bias: Tensor | None = None
    """Shape ``(V,)``."""
    scale: float = 1.0
    """Multiplies the logits before the soft cap."""
    softcap: float | None = None
    """The logits become ``softcap * tanh(logits / softcap)``."""

    @property
    def max_rank(self) -> int:
        """The largest rank that logits of this head can have: D, or D + 1 with a bias."""
        return self.weight.shape[1] + (self.bias is not None)

    @property
    def is_trained(self) -> bool:
        """True when the weight or the bias requires a gradient."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def linear(self, hidden: Tensor) -> Tensor:
        """Return the scaled logits before any soft cap, ``(M, D)`` to ``(M, V)``, in float32.

        Half-precision logits would destroy the KL where training lives, near the reference.
        """
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.to(dtype), self.weight.to(dtype), bias)
        return logits if self.scale == 1.0 else logits * self.scale

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the model's logits, ``(M, D)`` to ``(M, V)``, in float32 or better."""
        logits = self.linear(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def finish_(self, product: Tensor) -> Tensor:
        """Turn ``hidden @ weight.T`` into the logits in place, without a graph, ``(M, V)``."""
        if self.bias is not None:
            product.add_(self.bias)
        if self.scale != 1.0:
            product.mul_(self.scale)
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        return product

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return the derivative of the logits by the product, from the logits, ``(M, V)``.

        That of ``c tanh(z / c)`` is ``1 - (logits / c)^2``.
        """
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (logits / self.softcap).square())


def let_compute_in_head(model: Any) -> None:
    """Let :func:`in_head` compute inside the forward of the output layer; patched in place."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    original_forward = layer.forward

    @wraps(type(layer).forward)
    def forward(self: Any, *args: Any, compute: Callable[..., Any] | None = None) -> Any:
        return original_forward(*args) if compute is None else compute(_head(config, self), *args)

    layer.forward = MethodType(forward, layer)


def in_head(model: Any, compute: Callable[..., Any], hidden: Tensor) -> Any:
    """Return ``compute(head, hidden)``, computed while the head is whole.

    What splits weights over processes gathers those of a module around its forward, and reduces
    their gradients behind it. So whatever multiplies with the head is called in there, with the
    hidden states as an input of the module.

    Args:
        model: From :func:`let_compute_in_head`.
        compute: From an :class:`LMHead` and hidden states to tensors, tuples of them or ``None``.
        hidden: Shape ``(M, D)``; every process calls, also one with ``M == 0``.
    """
    return model.get_output_embeddings()(hidden, compute=compute)


def head_of(model: Any) -> LMHead:
    """Return the output layer of a transformers causal language model."""
    return _head(model.config.get_text_config(), model.get_output_embeddings())


def _head(config: Any, layer: Any) -> LMHead:
    return LMHead(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        scale=_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _scale(config: Any) -> float:
    for name in _MULTIPLIERS:
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)  # Granite
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)


@torch.no_grad()
def check_head(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    multiply: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Refuse a model whose logits are not what :func:`head_of` makes of its hidden states.

    Args:
        model: A transformers causal language model, in eval mode.
        input_ids: A few real tokens, shape ``(1, S)``.
        multiply: From hidden states to logits; ``None``: what :func:`head_of` returns.

    Raises:
        ConfigError: If the two differ by more than rounding.
    """
    multiply = multiply or head_of(model)
    # not called as a module: the model may be inside its own forward
    expected = model.forward(input_ids=input_ids, use_cache=False).logits
    body = model.base_model(input_ids=input_ids, use_cache=False)
    hidden = getattr(body, "last_hidden_state", None)
    if hidden is None or not agree(multiply(hidden), expected):
        raise ConfigError(
            f"`{type(model).__name__}` makes its logits in a way that balora does not know, so its "
            "objective cannot be computed from hidden states. Please report the model."
        )


def agree(actual: Tensor, expected: Tensor) -> bool:
    """Return whether two results of one model differ by no more than its rounding.

    Shapes are equal and arbitrary. Half precision counts, also that of an active autocast.
    """
    exact = torch.float32, torch.float64
    is_half = expected.dtype not in exact or torch.is_autocast_enabled(expected.device.type)
    tolerance = 5e-2 if is_half else 1e-3
    scale = expected.float().abs().max().clamp(min=1e-6)
    # written so that NaN is not agreement
    return bool((actual.float() - expected.float()).abs().max() <= tolerance * scale)
