r"""A LoRA of smaller rank: the best approximation of every update, found without building it.

With :math:`B = Q_B R_B` and :math:`A^\top = Q_A R_A` the singular values of :math:`s B A` are those
of the small :math:`s R_B R_A^\top`; the leading ones are the best approximation (Eckart and Young).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from peft import LoraConfig
from torch import Tensor

from balora.anchored.plain import Update, uniform, uniform_config, updates_of, with_factors
from balora.errors import ConfigError
from balora.models.adapter import WEIGHTS_FILE, read_adapter
from balora.state import read_tensors


class Truncation(NamedTuple):
    """How much of the update a truncation lost."""

    rank: int
    relative_error: float
    """Frobenius norm of what was cut off over that of the whole update, all layers together."""
    worst_layer: str
    worst_error: float
    """The same for the layer that lost most."""


class Truncated(NamedTuple):
    """An adapter of smaller rank."""

    config: LoraConfig
    tensors: dict[str, Tensor]
    truncation: Truncation


def truncate(config: LoraConfig, tensors: Mapping[str, Tensor], rank: int) -> Truncated:
    """Return the best approximation of rank ``rank`` of every layer, embeddings included.

    Args:
        config: Of a plain LoRA.
        tensors: Of PEFT's file; what is no update (a head, a bias) is kept as it is.
        rank: From 1 to below the adapter's own. A layer with fewer singular values is filled up
            with zeros, so that every layer has this rank, and alpha equal to it.

    Raises:
        ConfigError: If ``rank`` is not in that range, or a layer is a convolution.
    """
    updates = updates_of(config, tensors)
    own_rank = max(len(update.down) for update in updates.values())
    if not 1 <= rank < own_rank:
        raise ConfigError(
            f"`--rank` is {rank}, but the adapter has rank {own_rank}. Give a rank from 1 to "
            f"{own_rank - 1}, or leave `--rank` out to keep it whole."
        )
    shorter, lost, whole = {}, {}, {}
    for layer, update in updates.items():
        name = layer.removeprefix("base_model.model.")
        if update.down.ndim != 2:
            raise ConfigError(
                f"`--rank` is {rank}, but `{name}` is a convolution, which is not truncated. Leave "
                "`--rank` out."
            )
        shorter[layer], s = _leading(update, rank)
        lost[name], whole[name] = float(s[rank:].square().sum()), float(s.square().sum())
    plain = uniform(shorter)
    errors = {name: (lost[name] / whole[name]) ** 0.5 if whole[name] else 0.0 for name in lost}
    worst = max(errors, key=lambda name: errors[name])
    total = sum(whole.values())
    overall = (sum(lost.values()) / total) ** 0.5 if total else 0.0
    return Truncated(
        uniform_config(config, plain.rank, plain.alpha),
        with_factors(tensors, plain.factors),
        Truncation(rank, overall, worst, errors[worst]),
    )


def error_at(folder: Path, rank: int) -> float:
    """Return what a truncation of the adapter in a folder loses of the update, from 0 to 1."""
    adapter = read_adapter(folder)
    tensors = read_tensors(folder / WEIGHTS_FILE, "Save it again, or take another checkpoint.")
    return truncate(cast(LoraConfig, adapter.config), tensors, rank).truncation.relative_error


def _leading(update: Update, rank: int) -> tuple[Update, Tensor]:
    """Return the update of rank ``rank``, with scale 1, and all singular values of the whole."""
    down, up, scaling = update
    u, s, vh = _svd_of_product(up, down * scaling)
    root = s[:rank].sqrt()
    shorter = Update(
        (root[:, None] * vh[:rank]).to(down.dtype), (u[:, :rank] * root).to(up.dtype), 1.0
    )
    return shorter, s


def _svd_of_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().mT)
    u, s, vh = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    return q_up @ u, s, vh @ q_down.mT
