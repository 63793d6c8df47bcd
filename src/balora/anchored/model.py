"""An anchored adapter on a whole PEFT model: attach, check, initialise.

What of PEFT's public interface an anchored adapter changes lies in :mod:`balora.anchored.beside`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from tqdm.auto import tqdm

from balora.anchored.beside import anchored_model_class, anchored_tuner_class, is_anchored_model
from balora.anchored.layer import (
    anchored_adapters,
    attach,
    base_weight,
    keep_in_state_dict,
    misfit,
    set_start,
    start_of,
)
from balora.anchored.residual import is_residual, start_layers
from balora.anchored.starts import Factors, lacks_statistics, take_statistics
from balora.config import BALoraConfig
from balora.config.objective import AdapterInit
from balora.distributed import rank_and_world, take_from
from balora.environment import is_silent
from balora.errors import ConfigError
from balora.models.blank import reads_no_weights
from balora.models.quantization import quantised_by

_NEUTRAL = {
    "lora_dropout": 0.0,
    "bias": "none",
    "init_lora_weights": True,
    "use_dora": False,
    "lora_bias": False,
    "layer_replication": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "alora_invocation_tokens": None,
    "velora_config": None,
    "monteclora_config": None,
    "kasa_config": None,
    "megatron_config": None,
}
"""Settings of ``LoraConfig`` that another initialisation or another layer would act on."""


def anchor_adapter(model: PeftModel, config: BALoraConfig) -> PeftModel:
    """Turn the one LoRA adapter of ``model`` into an anchored adapter, in place.

    The start is computed by :func:`initialise`, or never, where a checkpoint is loaded first.
    Until then the model gives what its base gives, and does not train.

    Args:
        model: From ``peft.get_peft_model`` with a plain ``LoraConfig``.
        config: With an anchored ``adapter_init``; its ``pissa_*`` fields say how singular vectors
            are found.

    Returns:
        ``model`` itself.

    Raises:
        ConfigError: If the adapter's settings do not go with the start (each is named), or if
            it is anchored already.
    """
    adapter = only_adapter(model)
    if not isinstance(config, BALoraConfig):
        raise ConfigError(
            f"`config` is a {type(config).__name__}, not a `BALoraConfig`. Pass `BALoraConfig()`."
        )
    if is_anchored_model(model):
        raise ConfigError(
            "the adapter is anchored already, and anchoring it again would drop its start. Use the "
            "model as it is, or pass the base model and a `LoraConfig`."
        )
    check_adapter(model, config)
    for _, layer in lora_layers(model):
        attach(layer, adapter, config)
    tuner: Any = model.base_model
    tuner_class: Any = type(tuner)
    model_class: Any = type(model)
    tuner.__class__ = anchored_tuner_class(tuner_class)
    model.__class__ = anchored_model_class(model_class)
    return model


def check_adapter(model: PeftModel, config: BALoraConfig) -> None:
    """Refuse settings of the adapter that cannot work, before anything is computed.

    Raises:
        ConfigError: For a setting that does not go with the start, or a rank above a matrix.
    """
    adapter = only_adapter(model)
    peft_config, start = model.peft_config[adapter], f"`adapter_init: {config.adapter_init}`"
    if config.pissa_residual and not reads_no_weights() and quantised_by(model) is None:
        raise ConfigError(
            "`pissa_residual` is true, but the model is not quantised, so there is no residual to "
            "quantise. Load it with a `quantization_config`, or leave `pissa_residual` out."
        )
    if config.is_anchored:
        problems = [
            f"`{name}` is {getattr(peft_config, name)!r}, which does not go with the start "
            f"({start}): leave it at {neutral!r}{_start_named(name, getattr(peft_config, name))}"
            for name, neutral in _NEUTRAL.items()
            if (getattr(peft_config, name, neutral) or None) != (neutral or None)
        ]
        if peft_config.target_parameters:
            problems.append(
                f"`target_parameters` is {sorted(peft_config.target_parameters)}, tensors that "
                "are no linear layers and so have no singular vectors (with `all-linear`, PEFT "
                "adds the experts of a mixture itself): leave it at None"
                + _named(model, adapter, config, " and set")
            )
        if problems:
            raise ConfigError("; ".join(problems) + ".")
    for name, layer in lora_layers(model):
        problem = misfit(name, layer, adapter, config)
        if problem:
            raise ConfigError(f"{problem}{_named(model, adapter, config, ', or set')}.")


def _start_named(name: str, value: Any) -> str:
    """Return how to have PEFT's own start all the same; "" where there is no such setting."""
    is_start = name == "init_lora_weights" and value in typing.get_args(AdapterInit)
    return f" and set `adapter_init: {value}`" if is_start else ""


def _named(model: PeftModel, adapter: str, config: BALoraConfig, before: str) -> str:
    """Return ``before`` and the setting with the layers that fit; "" where none does."""
    fits: dict[str, bool] = {}
    for name, layer in lora_layers(model):
        last = name.rpartition(".")[2]
        fits[last] = fits.get(last, True) and not misfit(name, layer, adapter, config)
    names = sorted(name for name, does_fit in fits.items() if does_fit)
    return f"{before} `lora_target_modules: [{', '.join(names)}]`" if names else ""


def only_adapter(model: PeftModel) -> str:
    """Return the name of the model's single LoRA adapter.

    Raises:
        ConfigError: If there are several, if it is not a LoRA, or if ``model`` has none.
    """
    if not isinstance(model, PeftModel):
        raise ConfigError(
            f"`model` is a {type(model).__name__}, not a `PeftModel`. Pass "
            "`peft.get_peft_model(model, LoraConfig(...))`."
        )
    names = list(model.peft_config)
    if len(names) != 1 or model.peft_config[names[0]].peft_type != PeftType.LORA:
        raise ConfigError(
            f"the model carries the adapters {names}, but balora trains exactly one LoRA adapter. "
            "Pass the base model and a `LoraConfig`."
        )
    return str(names[0])


def lora_layers(model: PeftModel) -> list[tuple[str, Any]]:
    """Return the LoRA layers with the names they have in the base model."""
    base = model.get_base_model()
    return [(name, m) for name, m in base.named_modules() if isinstance(m, LoraLayer)]


def initialise(
    model: PeftModel,
    *,
    device: torch.device | None = None,
    full: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Compute the start of every anchored adapter that has none yet.

    Several processes share the layers: each computes the starts of some and sends them to the
    others, so that all have the same bits.

    Args:
        model: Every process has it.
        device: Where to compute; ``None``: where each weight is.
        full: As for :func:`balora.anchored.layer.base_weight`.

    Raises:
        ConfigError: If the weights of such an adapter were set before: they would be overwritten;
            or if the start needs statistics of sample data that are not there.
    """
    missing = [
        (name, layer, adapter)
        for name, layer in lora_layers(model)
        for adapter in anchored_adapters(layer)
        if not layer.lora_variant[adapter].is_initialised
    ]
    for name, layer, adapter in missing:
        if lacks_statistics(layer.get_base_layer(), layer.lora_variant[adapter].config):
            raise ConfigError(
                f"`adapter_init` is corda, which is computed from sample data, and `{name}` has "
                "no statistics of any. Call PEFT's `preprocess_corda` on the base model first, "
                "with the same `LoraConfig`, or set `adapter_init: pissa`, which needs no data."
            )
        if bool(layer.lora_B[adapter].weight.any()):
            raise ConfigError(
                f"the adapter `{adapter}` holds weights in `{name}` that its start would "
                "overwrite. Load a checkpoint of this method with `model.load_adapter(folder, "
                f"{adapter!r})`, or merge what it holds into the base model first."
            )
    residual = [place for place in missing if is_residual(*place[1:])]
    start_layers(model.get_base_model(), residual, full)
    missing = [place for place in missing if place not in residual]
    rank, world = rank_and_world()
    disable = is_silent(rank > 0 or len(missing) < 2)
    progress = tqdm(missing, desc="Start", unit="layer", disable=disable)
    with progress:
        for first in range(0, len(missing), world):
            round_ = [(layer, adapter) for _, layer, adapter in missing[first : first + world]]
            for (layer, adapter), start in zip(round_, _starts(round_, device, full), strict=True):
                set_start(layer, adapter, start)
                progress.update()


@contextmanager
def anchors_aside(model: nn.Module) -> Iterator[None]:
    """Leave the anchors out of the state dict of ``model`` while the body runs.

    For what takes every tensor of it for a weight that is to be split.
    """
    places = [layer for layer in model.modules() if anchored_adapters(layer)]
    try:
        for layer in places:
            keep_in_state_dict(layer, is_kept=False)
        yield
    finally:
        for layer in places:
            keep_in_state_dict(layer, is_kept=True)


def _starts(
    layers: list[tuple[Any, str]], device: torch.device | None, full: Callable[[Tensor], Tensor]
) -> list[Factors]:
    """Return the starts of as many layers as there are processes, or fewer: each computes one."""
    rank, _ = rank_and_world()
    starts = []
    for number, (layer, adapter) in enumerate(layers):
        matrix = base_weight(layer, full)  # every process takes part in gathering it
        place, dtype = device or matrix.device, torch.promote_types(matrix.dtype, torch.float32)
        (rows, columns), size = matrix.shape, layer.r[adapter]
        shapes = ((size, columns), (rows, size))
        starts.append(Factors(*(torch.empty(s, dtype=dtype, device=place) for s in shapes)))
        if number == rank:
            own = matrix.detach().to(place)
    for number, (layer, adapter) in enumerate(layers):
        if number != rank:
            take_statistics(layer.get_base_layer())
            continue
        for target, factor in zip(starts[number], start_of(layer, adapter, own), strict=True):
            target.copy_(factor)
    for number, start in enumerate(starts):
        for factor in start:
            take_from(factor, number)
    return starts


__all__ = [
    "anchor_adapter",
    "anchors_aside",
    "check_adapter",
    "initialise",
    "lora_layers",
    "only_adapter",
]
