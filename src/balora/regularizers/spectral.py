r"""Differentiable singular values, and what the SVD terms make of them.

The singular values come from the eigenvalues of a float64 Gram matrix of the smaller side. That
is faster than ``torch.linalg.svdvals``, and its gradient is the minimum-norm one, where
``svdvals`` differentiates through an arbitrary basis of the null space (repeated rows, zero rows).

Shapes: ``M`` rows, ``N`` columns, ``L`` number of singular values, ``min(M, N)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from balora.regularizers.checks import at_least_float32, check_floating, check_matrix

Denominator = Literal["nuclear", "frobenius"]
"""What the sum of the leading singular values is divided by."""

_BLOCK_ELEMENTS = 2**22
"""Matrix elements held in float64 at a time (32 MiB)."""


def singular_values(matrix: Tensor) -> Tensor:
    r"""Return all singular values, largest first, with the minimum-norm gradient.

    .. math::
        G = Z Z^\top = U \Lambda U^\top, \qquad \sigma_i = \sqrt{\lambda_i}, \qquad
        \frac{\partial \ell}{\partial Z} =
            U \, \mathrm{diag}\left(\frac{\partial \ell}{\partial \sigma_i} / \sigma_i\right)
            U^\top Z

    with the Gram matrix :math:`G` of the smaller side, in float64 (float32 would square the
    condition number beyond its range) and by column blocks (no float64 copy of a wide matrix).
    An eigenvalue of at most ``max(M, N) * eps * lambda_1`` cannot be told from rounding: its
    singular value is exactly 0 and contributes no gradient. Of all subgradients at a
    rank-deficient matrix this is the one of minimum norm; it is finite for repeated, zero and
    rank-deficient spectra.

    Once differentiable only. A matrix with NaN or infinity gives NaN, as the other terms do.

    Args:
        matrix: Shape ``(M, N)``.

    Returns:
        Shape ``(min(M, N),)``, descending, 0 or greater; float64 for float64 input, float32
        otherwise. Empty, and still in the graph, for an empty matrix.

    Raises:
        TypeError: If ``matrix`` is no tensor of floating-point numbers.
        ValueError: If it is not 2-D.
    """
    check_matrix(matrix, "matrix")
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    if wide.shape[0] == 0:
        return at_least_float32(wide).sum(dim=1)
    if not torch.is_grad_enabled():
        wide = wide.detach()  # a function's own inputs do not say so
    values: Tensor = _GramSingularValues.apply(wide)  # type: ignore[no-untyped-call]
    return values


def resolve_k(k: int | float, max_rank: int) -> int:
    r"""Return the number of leading singular values that the setting ``k`` stands for.

    An ``int`` is a count, capped at ``max_rank``. A ``float`` is a fraction,
    :math:`\lceil k \cdot \mathrm{max\_rank} \rceil`, of the decimal number as it was typed: 0.07
    of 100 is 7, although ``0.07 * 100`` is 7.000000000000001. So ``1`` is the first singular
    value alone and ``1.0`` is all of them.

    Args:
        k: A count of 1 or greater, or a fraction in (0, 1].
        max_rank: The largest rank that the matrix can have, 1 or greater.

    Returns:
        From 1 to ``max_rank``.

    Raises:
        ValueError: If ``k`` is neither, or ``max_rank`` is less than 1.
    """
    if max_rank < 1:
        raise ValueError(f"`max_rank` must be 1 or greater, got {max_rank}.")
    if isinstance(k, int) and not isinstance(k, bool) and k >= 1:
        return min(k, max_rank)
    if isinstance(k, float) and 0 < k <= 1:
        return math.ceil(Fraction(str(float(k))) * max_rank)
    raise ValueError(
        f"`k` must be a count (an int of 1 or greater) or a fraction (a float greater than 0 and "
        f"at most 1), got {k!r}."
    )


def ratio_is_constant(
    k: int | float, max_rank: int, *, denominator: Denominator = "nuclear"
) -> bool:
    """Return whether :func:`top_k_ratio` is 1 for every matrix of ``max_rank``: it has no gradient.

    The nuclear ratio is when ``k`` reaches the rank; the Frobenius one for a single value only.

    Args:
        k: As in :func:`resolve_k`.
        max_rank: The largest rank that the matrix can have, 1 or greater.
        denominator: As in :func:`top_k_ratio`.

    Raises:
        ValueError: As :func:`resolve_k`.
    """
    return resolve_k(k, max_rank) == max_rank and (denominator == "nuclear" or max_rank == 1)


def top_k_ratio(sigma: Tensor, k: int, *, denominator: Denominator = "nuclear") -> Tensor:
    r"""Return the share of the leading singular values, the ratio of BA-LoRA's Eq. 8 and 12.

    .. math::
        \sum_{i=1}^{k} \sigma_i \Big/ \sum_{i=1}^{L} \sigma_i
        \qquad \text{or, for "frobenius",} \qquad
        \sum_{i=1}^{k} \sigma_i \Big/ \sqrt{\sum_{i=1}^{L} \sigma_i^2}

    The first is the paper's. The second, with :math:`\|Z\|_F` below the same sum, is the
    denominator of the authors' ICLR code. Both are unchanged when the matrix is scaled.

    Args:
        sigma: Singular values, largest first, shape ``(L,)``.
        k: How many lead, 1 or greater; beyond ``L`` it takes all. See :func:`resolve_k`.
        denominator: ``"nuclear"`` (the sum of all) or ``"frobenius"``.

    Returns:
        Scalar: for "nuclear" from ``k / L`` to 1, for "frobenius" from ``k / sqrt(L)`` to
        ``sqrt(k)``. When all values are 0, or there are none, a 0 still in the graph.

    Raises:
        ValueError: If ``sigma`` is not 1-D, ``k`` is less than 1 or ``denominator`` is unknown.
    """
    top = _leading(sigma, k).sum()
    if denominator == "nuclear":
        total = sigma.sum()
    elif denominator == "frobenius":
        total = torch.linalg.vector_norm(sigma)
    else:
        raise ValueError(f"`denominator` must be 'nuclear' or 'frobenius', got {denominator!r}.")
    return top / torch.where(total == 0, 1.0, total)


def top_k_variance(sigma: Tensor, k: int) -> Tensor:
    r"""Return the population variance of the leading singular values, in Eq. 12 of BA-LoRA.

    .. math:: \frac{1}{k} \sum_{i=1}^{k} \left(\sigma_i - \bar\sigma\right)^2, \qquad
        \bar\sigma = \frac{1}{k} \sum_{i=1}^{k} \sigma_i

    Args:
        sigma: Singular values, largest first, shape ``(L,)``.
        k: How many lead, 1 or greater; beyond ``L`` it takes all. See :func:`resolve_k`.

    Returns:
        Scalar, 0 or greater, in squared units of the logits. 0 for ``k = 1``; when there are no
        values, a 0 still in the graph.

    Raises:
        ValueError: If ``sigma`` is not 1-D or ``k`` is less than 1.
    """
    top = _leading(sigma, k)
    # Not top.var(correction=0), which is NaN, with a warning, when there are no values.
    return (top - top.mean()).square().sum() / max(len(top), 1)


def evenly_spaced_rows(
    num_rows: int, max_rows: int, *, device: torch.device | None = None
) -> Tensor:
    """Return the indices of at most ``max_rows`` rows, evenly spaced from the first on.

    Row ``i`` of the ``max_rows`` kept is ``i * num_rows // max_rows``: no randomness, so a
    resumed run keeps the same rows, and neighbours differ in distance by at most one.

    Args:
        num_rows: Rows that there are, 0 or greater.
        max_rows: Rows to keep, 1 or greater.
        device: Where the indices are put.

    Returns:
        Strictly increasing, int64, shape ``(min(num_rows, max_rows),)``.

    Raises:
        ValueError: If ``num_rows`` is negative or ``max_rows`` is less than 1.
    """
    if num_rows < 0:
        raise ValueError(f"`num_rows` must be 0 or greater, got {num_rows}.")
    if max_rows < 1:
        raise ValueError(f"`max_rows` must be 1 or greater, got {max_rows}.")
    kept = min(num_rows, max_rows)
    return torch.arange(kept, device=device) * num_rows // max(kept, 1)


def _leading(sigma: Tensor, k: int) -> Tensor:
    """Return the first ``k`` values of a 1-D ``sigma``, or all if there are fewer."""
    check_floating(sigma, "sigma")
    if sigma.dim() != 1:
        raise ValueError(f"`sigma` must be 1-D, got shape {tuple(sigma.shape)}.")
    if k < 1:
        raise ValueError(f"`k` must be 1 or greater, got {k}.")
    return sigma[:k]


class _GramSingularValues(torch.autograd.Function):
    """Singular values of a matrix with at least one row and at least as many columns as rows."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        gram = _gram(matrix)
        # without a gradient nobody asks for the vectors, which cost more than the values
        eigenvalues, *vectors = _spectrum(gram, with_vectors=ctx.needs_input_grad[0])
        tolerance = max(matrix.shape) * torch.finfo(torch.float64).eps * eigenvalues[0]
        # Written so that NaN is kept: NaN <= tolerance is false.
        sigma = torch.where(eigenvalues <= tolerance, 0.0, eigenvalues.sqrt())
        ctx.save_for_backward(matrix, *vectors, sigma)
        return sigma.to(torch.promote_types(matrix.dtype, torch.float32))

    @staticmethod
    @once_differentiable  # U counts as a constant below: a second derivative would be wrong
    def backward(ctx: Any, grad_sigma: Tensor) -> Tensor:
        matrix, vectors, sigma = ctx.saved_tensors
        scale = torch.where(sigma == 0, 0.0, grad_sigma.double() / sigma)
        weight = (vectors * scale) @ vectors.mT
        grad_matrix = torch.empty_like(matrix)
        for columns in _column_blocks(matrix):
            grad_matrix[:, columns] = weight @ matrix[:, columns].double()
        return grad_matrix


def _gram(matrix: Tensor) -> Tensor:
    """Return ``matrix @ matrix.T`` in float64, shape ``(M, M)``, summed over column blocks."""
    gram = matrix.new_zeros((matrix.shape[0], matrix.shape[0]), dtype=torch.float64)
    for columns in _column_blocks(matrix):
        block = matrix[:, columns].double()
        gram.addmm_(block, block.mT)
    return gram


def _column_blocks(matrix: Tensor) -> Iterator[slice]:
    """Yield the column ranges of ``matrix`` that are held in float64 one at a time."""
    width = max(1, _BLOCK_ELEMENTS // matrix.shape[0])
    for start in range(0, matrix.shape[1], width):
        yield slice(start, start + width)


def _spectrum(gram: Tensor, *, with_vectors: bool) -> tuple[Tensor, ...]:
    """Return eigenvalues, largest first, and their vectors as columns; NaN for a non-finite Gram.

    There ``eigh`` alone raises, or gives partly finite values, depending on the size; a run that a
    loss scaler (fp16) is about to rescue must see NaN.
    """
    if not bool(gram.isfinite().all()):
        return torch.full_like(gram[0], torch.nan), torch.full_like(gram, torch.nan)
    if not with_vectors:
        return (torch.linalg.eigvalsh(gram).flip(0),)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    return eigenvalues.flip(0), vectors.flip(1)
