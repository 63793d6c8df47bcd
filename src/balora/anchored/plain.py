r"""A LoRA that every reader understands alike: one rank and one scale for all layers.

Servers (vLLM, llama.cpp) drop ``rank_pattern`` and ``alpha_pattern`` without a word, and some
``use_rslora`` too, and then scale layers wrongly. So none of the three is written: a layer of
smaller rank is filled up with zeros, and where scales differ they move into the factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import NamedTuple

import torch.nn.functional as F
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

_FACTOR_KEYS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_embedding_A", ".lora_embedding_B"),
)
"""What follows the name of a layer in PEFT's file: of a linear layer, of an embedding."""


class Update(NamedTuple):
    r"""A scaled low-rank update :math:`s B A` of one layer."""

    down: Tensor
    """A, the rank first."""
    up: Tensor
    """B, the rank second."""
    scaling: float


class UniformLora(NamedTuple):
    """The same updates with one rank, and alpha over rank as the one scale."""

    rank: int
    alpha: float
    factors: dict[str, tuple[Tensor, Tensor]]
    """A and B by layer."""


def uniform(updates: Mapping[str, Update]) -> UniformLora:
    """Return ``updates`` with one rank, the largest, and one scale; at least one update."""
    rank = max(len(update.down) for update in updates.values())
    scalings = {update.scaling for update in updates.values()}
    is_folded = len(scalings) > 1
    factors = {
        name: (
            _padded(down, rank, dim=0),
            _padded(up * scaling if is_folded else up, rank, dim=1),
        )
        for name, (down, up, scaling) in updates.items()
    }
    alpha = float(rank) if is_folded else scalings.pop() * rank
    # 2.0000000000000004 is a rounding of 2, and an integer is what readers expect
    return UniformLora(rank, round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha, factors)


def uniform_config(config: LoraConfig, rank: int, alpha: float) -> LoraConfig:
    """Return a copy of ``config`` that describes a :class:`UniformLora`."""
    plain = deepcopy(config)
    plain.r, plain.lora_alpha, plain.use_rslora = rank, alpha, False
    plain.rank_pattern, plain.alpha_pattern = {}, {}
    plain.init_lora_weights = True
    return plain


def updates_of(config: LoraConfig, tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """Return the update of every layer in the tensors of PEFT's file, by its key without a suffix.

    Embeddings are layers as well; what is no factor of an update is left out.
    """
    updates = {}
    for key, down in tensors.items():
        for suffix, other in _FACTOR_KEYS:
            if key.endswith(suffix):
                layer = key.removesuffix(suffix)
                up = tensors[layer + other]
                scaling = scaling_of(config, layer.removeprefix("base_model.model."))
                updates[layer] = Update(down, up, scaling)
    return updates


def with_factors(
    tensors: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Return ``tensors`` of PEFT's file with other factors in the layers of ``factors``."""
    changed = dict(tensors)
    for layer, pair in factors.items():
        suffixes = next(s for s in _FACTOR_KEYS if layer + s[0] in tensors)
        for suffix, factor in zip(suffixes, pair, strict=True):
            changed[layer + suffix] = factor.contiguous()
    return changed


def rank_of(config: LoraConfig, layer: str) -> int:
    """Return the rank that ``config`` gives a layer, by PEFT's own rule for the patterns."""
    return int(config.rank_pattern.get(get_pattern_key(config.rank_pattern, layer), config.r))


def scaling_of(config: LoraConfig, layer: str) -> float:
    """Return the scale that ``config`` gives a layer, by PEFT's own rule for the patterns."""
    rank = rank_of(config, layer)
    alpha_key = get_pattern_key(config.alpha_pattern, layer)
    alpha = config.alpha_pattern.get(alpha_key, config.lora_alpha)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


def _padded(factor: Tensor, rank: int, *, dim: int) -> Tensor:
    missing = rank - factor.shape[dim]
    if not missing:
        return factor
    widths = [0, 0] * (factor.ndim - 1 - dim) + [0, missing]
    return F.pad(factor, widths)


__all__ = [
    "UniformLora",
    "Update",
    "rank_of",
    "scaling_of",
    "uniform",
    "uniform_config",
    "updates_of",
    "with_factors",
]
