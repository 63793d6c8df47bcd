r"""The principal singular triplets of a weight, exactly or by a seeded randomised range finder.

PiSSA starts from :math:`W \approx U_r S_r V_r^\top` (BA-LoRA, arXiv 2408.04556, Eq. 2). The best
rank-r approximation is the truncated SVD (Eckart and Young); the randomised one follows Halko,
Martinsson and Tropp (2011), Algorithm 4.4: a Gaussian test matrix with ``oversampling`` more
columns than the rank, and power iterations with a QR after every product.

Shapes: ``O`` output features, ``I`` input features, ``r`` rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from balora.config import BALoraConfig


class PrincipalComponents(NamedTuple):
    """The leading singular triplets of an ``(O, I)`` weight, largest first."""

    u: Tensor
    """Left singular vectors, shape ``(O, r)``."""
    s: Tensor
    """Singular values, shape ``(r,)``."""
    vh: Tensor
    """Right singular vectors as rows, shape ``(r, I)``."""


def principal_components(weight: Tensor, rank: int, config: BALoraConfig) -> PrincipalComponents:
    """Return the ``rank`` leading singular triplets of ``weight``, by the method of ``config``.

    Args:
        weight: Shape ``(O, I)``; computed in float32, in float64 for float64 weights.
        rank: From 1 to ``min(O, I)``.
        config: ``pissa_svd`` picks the method; other ``pissa_*`` fields tune the randomised one.

    Raises:
        ValueError: If ``rank`` is not in that range or ``weight`` holds a NaN or an infinity.
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"`rank` must be 1 to {min(weight.shape)}, got {rank}")
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    # one pass; `isfinite(weight).all()` costs as much as two products with the test matrix
    if not all(torch.isfinite(bound) for bound in torch.aminmax(weight)):
        raise ValueError("the weight holds a NaN or an infinity, so it has no singular values")
    # the first forward pass may be the one that asks, and autocast would run the products in bf16
    with torch.autocast(weight.device.type, enabled=False):
        if config.pissa_svd == "exact":
            return _exact(weight, rank)
        return randomized_svd(
            weight,
            rank,
            oversampling=config.pissa_oversampling,
            power_iterations=config.pissa_power_iterations,
            seed=config.pissa_seed,
        )


def randomized_svd(
    weight: Tensor, rank: int, *, oversampling: int, power_iterations: int, seed: int
) -> PrincipalComponents:
    r"""Approximate the leading triplets from the range of :math:`(W W^\top)^q W \Omega`.

    The same weight, arguments and device give the same bits; the global generators are not
    touched. With ``rank + oversampling >= min(O, I)`` the result is exact up to rounding.

    Args:
        weight: Shape ``(O, I)``, floating point.
        rank: Triplets to return.
        oversampling: Extra columns of the Gaussian test matrix.
        power_iterations: The exponent q. Each costs two products with the weight and two QRs.
        seed: Of the test matrix.
    """
    if weight.shape[0] > weight.shape[1]:  # the QRs then act on the shorter side last
        u, s, vh = randomized_svd(
            weight.mT,
            rank,
            oversampling=oversampling,
            power_iterations=power_iterations,
            seed=seed,
        )
        return PrincipalComponents(vh.mT, s, u.mT)
    num_columns = min(rank + oversampling, *weight.shape)
    # drawn on the CPU so that every device starts from the same test matrix
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randn(weight.shape[1], num_columns, generator=generator, dtype=weight.dtype)
    basis = _orthonormal(weight @ omega.to(weight.device))
    for _ in range(power_iterations):
        basis = _orthonormal(weight @ _orthonormal(weight.mT @ basis))
    u, s, vh = torch.linalg.svd(basis.mT @ weight, full_matrices=False)
    return PrincipalComponents(basis @ u[:, :rank], s[:rank], vh[:rank])


def _exact(weight: Tensor, rank: int) -> PrincipalComponents:
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return PrincipalComponents(u[:, :rank], s[:rank], vh[:rank])


def _orthonormal(matrix: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(matrix).Q
    return q
