"""Weights that the first process of a machine reads alone: FSDP's `cpu_ram_efficient_loading`.

The other processes have the model on the meta device, without numbers, until it is split and
accelerate sends each its part. What is to look at a weight before (the start, the factor of the
head, the digest of the base) is sent that weight alone, and lets it go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from balora.anchored import anchors_aside
from balora.distributed import rank_and_world, take_from
from balora.trainers.sharding import full
from balora.trainers.sharding_settings import Sharding, refuse_reading_once, sharding_of


@contextmanager
def loading(arguments: Any) -> Iterator[None]:
    """Have the first process of each machine alone read weights, where the arguments ask for it.

    Args:
        arguments: The trainer's.
    """
    sharding = sharding_of(arguments)
    if sharding is None or not sharding.reads_once:
        yield
        return
    assert arguments.device is not None  # from here on the processes know one another
    name = "ACCELERATE_USE_FSDP"  # a launcher sets it, `fsdp` of the arguments does not
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def reader(sharding: Sharding | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function that reads a weight whole before training begins; all processes call it.

    It is :func:`full`, unless the first process alone has loaded the weights: then it sends each
    to the others, which hold it as long as they look at it.

    Args:
        sharding: Of the run.
        device: Where what is sent lies.
    """
    if sharding is None or not sharding.reads_once or rank_and_world()[1] == 1:
        return full
    return partial(_from_first, device=device)


def _from_first(tensor: Tensor, device: torch.device) -> Tensor:
    if isinstance(tensor, DTensor):  # training has begun
        return full(tensor)
    is_first = rank_and_world()[0] == 0
    own = (
        tensor.detach().to(device).contiguous()
        if is_first
        else torch.empty_like(tensor, device=device)
    )
    take_from(own)
    return own


def prepare_to_split(trainer: Any) -> None:
    """Make a trainer whose weights are read once ready to be split; others stay as they are.

    Raises:
        ConfigError: If the model has what cannot be sent.
    """
    sharding, model = trainer._sharding, trainer.model
    if sharding is None or not sharding.reads_once:
        return
    _check_buffers(model, sharding)
    if isinstance(model, PeftModel):
        _receive_adapter(model, reader(sharding, trainer.args.device))
        _split_without_anchors(trainer)


def _check_buffers(model: nn.Module, sharding: Sharding) -> None:
    saved = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
    if saved:
        why = f"accelerate cannot send `{min(saved)}`, which is saved with them, to the others"
        refuse_reading_once(sharding, why)


@torch.no_grad()
def _receive_adapter(model: nn.Module, read: Callable[[Tensor], Tensor]) -> None:
    """Give the adapter, which lies on the meta device beside its base, its numbers everywhere."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            numbers = read(parameter)
            if parameter.is_meta:
                module._parameters[name] = nn.Parameter(numbers.cpu())


def _split_without_anchors(trainer: Any) -> None:
    """Have accelerate split the model without the anchors, which every process has whole.

    What the first process alone has loaded it sends to the others by the state dict, of which it
    takes every tensor for a part of a split weight.
    """
    prepare = trainer.accelerator.prepare

    @wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        with anchors_aside(trainer.model):
            return prepare(*args, **kwargs)

    trainer.accelerator.prepare = prepared


def make_room(model: nn.Module) -> None:
    """Give trained weights that lie on the meta device an address each, and no numbers yet.

    By it accelerate finds the weights of an optimizer again when it has split them.
    """
    made: dict[int, nn.Parameter] = {}  # what is tied stays tied
    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None and own.is_meta and own.requires_grad:
                room = nn.Parameter(torch.empty_like(own, device="cpu"))
                module._parameters[name] = made.setdefault(id(own), room)
