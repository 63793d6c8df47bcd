"""Weights that are split over processes: how they become whole, and what of it cannot work.

FSDP2 and DeepSpeed split weights, gradients, optimizer and checkpoints over processes. Whatever
multiplies with the head runs in the head's own forward, around which they gather it
(:func:`balora.models.head.in_head`); everything else that looks at a weight takes it from here.
Nothing outside this file knows of either. What cannot work is one sentence before a weight is
loaded, wherever the arguments tell it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from balora.config import BALoraConfig
from balora.environment import launched
from balora.errors import ConfigError
from balora.trainers.sharding_settings import (
    GATHER,
    USE_ANOTHER,
    Sharding,
    deepspeed_config,
    is_on,
    refuse_reading_once,
    sharding_of,
    sharding_of_accelerator,
    size_of,
)


def full(tensor: Tensor) -> Tensor:
    """Return a tensor whole, a copy where it was split; every process of the run calls.

    Args:
        tensor: A parameter, or any other tensor, which is returned as it is.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if not hasattr(tensor, "ds_id"):
        return tensor
    with _gathered([tensor]):
        return tensor.detach().clone()


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole tensor."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Hold every weight whole while the body runs, on each process, for passes before training.

    FSDP2 splits them when training begins, ZeRO-3 while they are loaded.
    """
    with _gathered([parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]):
        yield


@contextmanager
def _gathered(parameters: list[Any]) -> Iterator[None]:
    if not parameters:
        yield
        return
    import deepspeed  # slow, and not there in most installations

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def check_layout(
    arguments: Any, start: BALoraConfig | None, quantised_by: str | None = None
) -> None:
    """Refuse every way to spread a run over processes that cannot work, before anything is loaded.

    Args:
        arguments: The fields of a recipe, or the trainer's arguments; what ``accelerate launch``
            has put into the environment counts as well.
        start: Of the adapter; ``None`` where every weight is trained.
        quantised_by: The field that quantises the base; ``None`` where none does.

    Raises:
        ConfigError: Naming the setting.
    """
    check_parallelism(arguments)
    sharding = sharding_of(arguments)
    check_sharding(sharding, has_adapter=start is not None)
    is_anchored = start is not None and start.is_anchored
    if quantised_by is not None:
        _check_quantised(sharding, quantised_by)
    if is_anchored and sharding is not None and sharding.kind == "DeepSpeed":
        _check_precision(sharding, arguments)


def check_classifier(arguments: Any) -> None:
    """Refuse for a classifier, which is looked at whole before training, what leaves it in parts.

    Args:
        arguments: As for :func:`check_layout`.

    Raises:
        ConfigError: Naming what switched it on.
    """
    sharding = sharding_of(arguments)
    if sharding is not None and sharding.stage == 3:
        raise ConfigError(
            f"{sharding.words} is switched on by {sharding.setting}, which splits the head of a "
            "classifier before its width and its start are known. Use ZeRO-1 or ZeRO-2, FSDP2 or "
            "plain data parallelism."
        )
    refuse_reading_once(
        sharding, "every process of a classifier computes the reference with them before"
    )


def check_trainer(trainer: Any) -> Sharding | None:
    """Return the sharding of a trainer that has been built, after the same checks.

    Raises:
        ConfigError: Naming the setting.
    """
    accelerator = trainer.accelerator
    check_parallelism({"parallelism_config": accelerator.parallelism_config})
    sharding = sharding_of_accelerator(accelerator, trainer.model)
    has_adapter = isinstance(trainer.model, PeftModel)
    check_sharding(sharding, has_adapter=has_adapter)
    if sharding is not None and sharding.kind == "FSDP":
        # would cast A and B, but not the anchor that they are compared with: see `computing`
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
        _keep_scales_aside(trainer.model)
    is_anchored = has_adapter and trainer.balora_config.is_anchored
    if sharding is not None and sharding.kind == "DeepSpeed" and is_anchored:
        _send_whole_digits(accelerator.state.deepspeed_plugin.deepspeed_config)
    return sharding


def _keep_scales_aside(model: nn.Module) -> None:
    """Leave the scales of 4-bit weights out of state dicts, as a checkpoint leaves the weights out.

    torch loads a checkpoint by the names of parameters and buffers, which scales are not.
    """

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
            del state[name]

    for module in model.modules():
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None:
            module.register_state_dict_post_hook(drop)  # type: ignore[no-untyped-call]


def _send_whole_digits(config: dict[str, Any]) -> None:
    """Let DeepSpeed's autocast round no weight on its way from one process to another.

    ZeRO-3 would round A and B wherever it gathers them, also to save them, but not the anchor that
    they are compared with.
    """
    if (autocast := config.get("torch_autocast")) is not None:
        autocast.setdefault(_ROUNDED, [])


def computing(trainer: Any) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: mixed precision as without sharding, by autocast.

    accelerate puts it around the forward of every model but one that is to be sharded, whose
    weights it would cast as they are gathered, those that are trained too.
    """
    is_fsdp = trainer._sharding is not None and trainer._sharding.kind == "FSDP"
    return trainer.accelerator.autocast() if is_fsdp else nullcontext()


def check_sharding(sharding: Sharding | None, *, has_adapter: bool) -> None:
    """Refuse what a sharded run cannot do, or would do wrong without a word.

    Raises:
        ConfigError: For FSDP 1, and for ZeRO-3 without a whole model.
    """
    if sharding is None:
        return
    asked = f"{sharding.words} is switched on by {sharding.setting}"
    if sharding.kind == "FSDP" and sharding.version != 2:
        raise ConfigError(
            f"{asked}, but a start that is computed from whole weights needs FSDP2. Set "
            "`fsdp_version: 2` in the config of `accelerate` (`version: 2` in `fsdp_config`)."
        )
    if sharding.stage == 3 and not has_adapter and not sharding.gathers_on_save:
        raise ConfigError(
            f"{asked} without `{GATHER}`, which leaves no model in `output_dir`. Set it to true "
            "(`zero3_save_16bit_model: true` in the config of `accelerate`)."
        )


def _check_quantised(sharding: Sharding | None, field: str) -> None:
    """Refuse quantised weights with processes that would end in an error of a library.

    Raises:
        ConfigError: Naming the field.
    """
    if field == "torchao" and (sharding is not None or launched()[1] > 1):
        raise ConfigError(
            "the base is quantised by `torchao`, whose weights can neither be split nor sent from "
            "one process to another. Set `load_in_8bit: true` instead, or start one process, "
            "without FSDP and DeepSpeed."
        )
    if sharding is not None and sharding.kind == "FSDP" and field != "load_in_4bit":
        raise ConfigError(
            f"the base is quantised by `{field}` and {sharding.words} is switched on by "
            f"{sharding.setting}, which cannot split its weights. Use DeepSpeed or plain data "
            "parallelism (`accelerate launch --multi_gpu`), or set `load_in_4bit: true`."
        )
    refuse_reading_once(sharding, f"a base that is quantised by `{field}` is read by each process")


def _check_precision(sharding: Sharding, arguments: Any) -> None:
    """Refuse DeepSpeed's own mixed precision, which keeps no weight that is trained in float32.

    Raises:
        ConfigError: Naming the type, or the list of what it rounds.
    """
    given = arguments if isinstance(arguments, Mapping) else vars(arguments)
    config = deepspeed_config(given)
    rounded = dict(config.get("torch_autocast") or {}).get(_ROUNDED) or []
    if any(str(name).endswith(".Linear") for name in rounded):
        raise ConfigError(
            f"`{_ROUNDED}` of DeepSpeed's `torch_autocast` names {', '.join(map(str, rounded))}, "
            "so A and B would be rounded to 16 bits on their way from one process to another, and "
            "the start that they are compared with would not. Leave it out."
        )
    for name in ("bf16", "fp16"):
        wish = dict(config.get(name) or {}).get("enabled", "auto")
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION") == name
        if is_on(given.get(name)) or launched or (wish != "auto" and is_on(wish)):
            raise ConfigError(
                f"`{name}` is on and {sharding.words} is switched on by {sharding.setting}, which "
                "casts the adapter to 16 bits, where the steps away from its start are rounded "
                f"away. Set `{name}: false` and, in the config of DeepSpeed, `torch_autocast: "
                "{enabled: true, dtype: bfloat16}`, which keeps the adapter in float32."
            )


_ROUNDED = "lower_precision_safe_modules"
"""Of DeepSpeed's autocast: the modules of which it sends weights and gradients in 16 bits."""
_SPLITS = {
    "tp_size": "PARALLELISM_CONFIG_TP_SIZE",
    "cp_size": "PARALLELISM_CONFIG_CP_SIZE",
    "sp_size": "PARALLELISM_CONFIG_SP_SIZE",
}
"""What splits a matrix or a sequence, by the variable in which a launcher passes it on."""


def check_parallelism(arguments: Any) -> None:
    """Refuse to split a sequence, a matrix or a layer over processes: rows would be missing.

    Args:
        arguments: As for :func:`sharding_of`.

    Raises:
        ConfigError: Naming the setting.
    """
    given = arguments if isinstance(arguments, Mapping) else vars(arguments)
    for name, variable in _SPLITS.items():
        size = size_of(given, name, variable)
        if size not in (None, 1):
            raise ConfigError(
                f"`{name}` is {size}, but the objective needs whole sequences and matrices on each "
                f"process. Set it to 1. {USE_ANOTHER}."
            )
    if is_on(os.environ.get("ACCELERATE_USE_MEGATRON_LM")):
        raise ConfigError(
            "Megatron-LM is switched on by `ACCELERATE_USE_MEGATRON_LM`, which splits layers and "
            f"matrices over processes, but the objective needs them whole. {USE_ANOTHER}."
        )
    config = deepspeed_config(given)
    split = dict(config.get("tensor_parallel") or {}).get("autotp_size", 1)
    for name, size in (
        ("autotp_size", split),
        ("sequence_parallel_size", config.get("sequence_parallel_size", 1)),
    ):
        if size not in (0, 1):
            raise ConfigError(
                f"`{name}` of DeepSpeed is {size}, but the objective needs whole sequences and "
                f"matrices on each process. Set it to 1. {USE_ANOTHER}."
            )
