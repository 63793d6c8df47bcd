"""Models without weights: the shape of one, for everything that can be checked without reading it.

Every weight is a zero that is seen in the shape of the weight, so that a model of any size takes
no memory; what is put on it, an adapter or a trainer, is the real thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

_IS_BLANK: ContextVar[bool] = ContextVar("_IS_BLANK", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Load every model without its weights while this is entered."""
    token = _IS_BLANK.set(True)
    try:
        yield
    finally:
        _IS_BLANK.reset(token)


def reads_no_weights() -> bool:
    """Say whether models are loaded without their weights."""
    return _IS_BLANK.get()


def blank_model(
    auto: Any, config: PretrainedConfig, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model of a config in eval mode, and what loading it would find missing: its head.

    Args:
        auto: transformers' class that knows the model by its config.
        config: Of the model.
        arguments: As for ``from_pretrained``; the type of the weights and the attention kernel act.
    """
    taken = ("attn_implementation", "trust_remote_code", "code_revision")
    own = {name: arguments[name] for name in taken if arguments.get(name) is not None}
    dtype = arguments.get("dtype")
    with torch.device("meta"):
        model = auto.from_config(config, **own)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    _give_zeros(model, dtype or getattr(config, "dtype", None) or torch.float32)
    # a trainer then leaves it where it is: on an accelerator it would take its full size
    model.is_parallelizable = model.model_parallel = True
    body = {id(parameter) for parameter in model.base_model.parameters()}
    missing = [name for name, p in model.named_parameters() if id(p) not in body]
    info = {"missing_keys": set(missing), "mismatched_keys": set(), "unexpected_keys": set()}
    return model.eval(), info


def _give_zeros(model: nn.Module, dtype: torch.dtype) -> None:
    seen: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                kind = dtype if parameter.is_floating_point() else parameter.dtype
                zeros = torch.zeros((), dtype=kind).expand(parameter.shape)
                own = seen.setdefault(
                    id(parameter), nn.Parameter(zeros, requires_grad=parameter.requires_grad)
                )
                module._parameters[name] = own  # what was tied stays tied
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape)
