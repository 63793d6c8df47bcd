r"""Where an anchored adapter starts: A0 and B0 of a weight, by the value of ``adapter_init``.

======  ====================================================================  ==============
value   the update s B0 A0                                                    computed by
======  ====================================================================  ==============
pissa   :math:`U_r S_r V_r^\top`, the principal components of W               :func:`pissa`
olora   s times the first r columns of Q and rows of R, where W = Q R         PEFT
corda   the principal components of W C, times the inverse of C, where C is   PEFT
        the covariance of the layer's inputs on sample data
======  ====================================================================  ==============

PEFT takes these updates out of the base weight. The anchored layer gives the same function with
the weight untouched (:mod:`balora.anchored.layer`), whatever A0 and B0 are. A start whose update
is zero needs no anchor: those of :data:`~balora.config.PLAIN_STARTS` are made by PEFT in a plain
LoRA.

Shapes: ``O`` output features, ``I`` input features, ``r`` rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from balora.anchored.svd import principal_components
from balora.config import BALoraConfig
from balora.errors import ConfigError

_STATISTICS = "eigens"
"""Attribute of a layer in which PEFT's ``preprocess_corda`` leaves what ``corda`` reads."""


class Factors(NamedTuple):
    """A low-rank update ``up @ down``: shapes ``(O, R)`` and ``(R, I)``."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class Weight:
    """A weight to adapt, and what is known of its adapter."""

    matrix: Tensor
    """Pre-trained, dequantised, shape ``(O, I)``."""
    rank: int
    """From 1 to ``min(O, I)``."""
    scaling: float
    """What the layer multiplies B A by: s, above 0."""
    statistics: Any = None
    """What :func:`take_statistics` has found on the layer."""


Start = Callable[[Weight, BALoraConfig], Factors]
"""Returns A0, shape ``(r, I)``, and B0, shape ``(O, r)``."""


def pissa(weight: Weight, config: BALoraConfig) -> Factors:
    r"""Return the principal components, found as the ``pissa_*`` fields say (BA-LoRA, Eq. 2-4).

    .. math:: A_0 = \sqrt{S_r} V_r^\top / \sqrt{s}, \qquad B_0 = U_r \sqrt{S_r} / \sqrt{s}
    """
    u, s, vh = principal_components(weight.matrix, weight.rank, config)
    root = (s / weight.scaling).sqrt()
    return Factors(root[:, None] * vh, u * root)


def of_peft(weight: Weight, _: BALoraConfig, *, init: str) -> Factors:
    """Return A and B as PEFT's own ``init_lora_weights`` gives them, in float32.

    PEFT changes the weight of the layer that it is given, so it is given a layer with a copy. The
    global generators are not touched.

    Raises:
        ConfigError: If there are statistics, and they are of another shape.
    """
    rows, columns = weight.matrix.shape
    base: Any = nn.Linear(columns, rows, bias=False, device="meta")
    base.weight = nn.Parameter(weight.matrix.float().clone(), requires_grad=False)
    if weight.statistics is not None:
        setattr(base, _STATISTICS, deepcopy(weight.statistics))  # PEFT scales them in place
    size = {"r": weight.rank, "lora_alpha": weight.scaling * weight.rank}
    device = weight.matrix.device.type
    with torch.random.fork_rng(devices=[]), torch.autocast(device, enabled=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings that only the statistics were made with
            config = LoraConfig(**size, init_lora_weights=init)
        try:
            layer = Linear(base, "start", config=config, **size)
        except ValueError as error:
            if weight.statistics is None:
                raise
            raise ConfigError(
                f"the statistics that `preprocess_corda` has left do not fit a weight of shape "
                f"{(rows, columns)} and rank {weight.rank}. Call it with the `LoraConfig` that the "
                "adapter has."
            ) from error
    down, up = (factor["start"].weight.detach() for factor in (layer.lora_A, layer.lora_B))
    return Factors(down, up)


STARTS: Mapping[str, Start] = {
    "pissa": pissa,
    "olora": partial(of_peft, init="olora"),
    "corda": partial(of_peft, init="corda"),
}
"""By the value of ``adapter_init``; each takes something out of the weight."""


def take_statistics(base_layer: nn.Module) -> Any:
    """Return what PEFT's ``preprocess_corda`` has left on a layer, and take it away from there."""
    return vars(base_layer).pop(_STATISTICS, None)


def lacks_statistics(base_layer: nn.Module, config: BALoraConfig) -> bool:
    """Return whether the start needs statistics that are not there."""
    return config.adapter_init == "corda" and not hasattr(base_layer, _STATISTICS)
