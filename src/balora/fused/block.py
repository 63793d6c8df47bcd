r"""The token terms of a few rows of logits, and their gradient: what lies between the products.

.. math::
    \frac{\partial}{\partial z} = c_0 (p - e_y) + c_1 T (p_T - q_T) + c_2\, p (\log p + H)

with :math:`p` the student's softmax, :math:`q` the reference's, both also at temperature :math:`T`,
:math:`e_y` the target and :math:`H` the entropy of the row. With the entropy of the top-K the last
part is :math:`c_2\, r (\log r + H_K)` on those K, with :math:`r` the softmax over them alone.

Everything is written into buffers that are there already: on a CPU, getting fresh memory from the
system costs more than these passes over it.

Shapes: ``b`` rows, ``V`` vocabulary, ``K`` kept candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class TokenCoefficients(NamedTuple):
    """The multipliers of the three sums over tokens. At 0 a term is off."""

    task: float = 1.0
    consistency: float = 0.0
    diversity: float = 0.0


@dataclass(frozen=True)
class TokenSettings:
    """Which token terms, and how they are meant."""

    coefficients: TokenCoefficients
    temperature: float = 1.0
    """Softmax temperature ``T`` of the consistency."""
    entropy_top_k: int | None = None
    """The diversity is that of the ``K`` largest logits alone, renormalised; ``None``: of all."""


class RowValues(NamedTuple):
    """What each row contributes, not multiplied by its coefficient, each of shape ``(b,)``."""

    task: Tensor
    consistency: Tensor
    diversity: Tensor
    entropy: Tensor
    is_correct: Tensor


NUM_SCRATCH = 3
"""Buffers of the size of a block that :func:`row_values` works in."""


def row_values(
    logits: Tensor,
    reference_logits: Tensor | None,
    targets: Tensor,
    settings: TokenSettings,
    scratch: Tensor,
) -> RowValues:
    """Return the terms of each row, and put the gradient of their weighted sum into ``logits``.

    Args:
        logits: The student's, in float32 or better, shape ``(b, V)``; become the gradient.
        reference_logits: The reference's, shape ``(b, V)``, overwritten; ``None`` while the
            consistency is off.
        targets: Shape ``(b,)``.
        settings: Coefficients, temperature and top-K.
        scratch: Shape ``(3, b, V)``, overwritten.

    Returns:
        The values, zeros for a term that is off. A target that shares the largest logit with
        others counts as correct.
    """
    coefficients, column = settings.coefficients, targets[:, None]
    is_correct = logits.gather(1, column).squeeze(1) >= logits.amax(dim=1)
    consistency, pull = None, None
    room = (*scratch,)
    if reference_logits is not None and settings.temperature != 1:
        consistency, pull = _tempered_consistency(logits, reference_logits, settings, scratch)
        room = (scratch[0], scratch[2], reference_logits)  # `pull` stays in the second
    log_p, p = _log_softmax(logits, room[0], room[1])
    entropy = -_dot(p, log_p, room[2])
    diversity = torch.zeros_like(entropy)
    factor = coefficients.task
    if reference_logits is not None and pull is None:
        factor += coefficients.consistency  # whose gradient has the same p
    if coefficients.diversity and settings.entropy_top_k is None:
        diversity = -entropy
        factors = (factor + coefficients.diversity * entropy)[:, None]
        torch.add(factors, log_p, alpha=coefficients.diversity, out=room[2])
        grad = torch.mul(p, room[2], out=logits)
    else:
        grad = torch.mul(p, factor, out=logits)
        if coefficients.diversity:
            diversity = _add_top_k(grad, log_p, settings)
    grad.scatter_add_(1, column, grad.new_full(column.shape, -coefficients.task))
    task = -log_p.gather(1, column).squeeze(1)
    if pull is not None:
        grad.add_(pull, alpha=coefficients.consistency * settings.temperature)
    elif reference_logits is not None:  # last: it overwrites what is in the scratch
        consistency = _add_consistency(grad, reference_logits, settings, scratch)
    if consistency is None:
        consistency = torch.zeros_like(entropy)
    return RowValues(task, consistency, diversity, entropy, is_correct.to(task.dtype))


def _tempered_consistency(
    logits: Tensor, reference_logits: Tensor, settings: TokenSettings, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the consistency of each row at ``T != 1`` and ``p_T - q_T``, in the second buffer.

    Both softmaxes are taken of the logits over ``T``, so that they are rounded alike: equal logits
    give exactly 0. Overwrites the reference and the scratch.
    """
    temperature = settings.temperature
    log_p, p = _log_softmax(torch.div(logits, temperature, out=scratch[0]), scratch[0], scratch[1])
    log_q, q = _log_softmax(reference_logits.div_(temperature), reference_logits, scratch[2])
    divergence = _divergence(q, log_q, log_p)
    return divergence.mul_(temperature**2), p.sub_(q)


def _add_consistency(
    grad: Tensor, reference_logits: Tensor, settings: TokenSettings, scratch: Tensor
) -> Tensor:
    """Complete the gradient by that of the consistency at ``T = 1``; return the term of each row.

    The part of ``p`` is in ``grad`` already.
    """
    log_p, free, log_q = scratch
    log_q, q = _log_softmax(reference_logits, log_q, free)
    grad.sub_(q, alpha=settings.coefficients.consistency)
    return _divergence(q, log_q, log_p)


def _divergence(q: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return ``KL(q || p)`` of each row; ``log_q`` is overwritten.

    It is 0 or greater. What rounding leaves below that is no further from the truth at 0.
    """
    return _dot(q, log_q.sub_(log_p), log_q).clamp_(min=0)


def _log_softmax(logits: Tensor, log_p: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Write the log-softmax and the softmax of each row into two buffers, and return these.

    The logarithm of the largest probability is that of the normaliser, so the second costs no
    further exponential: those are the larger part of what lies between the products.
    """
    torch.softmax(logits, dim=-1, out=p)
    torch.sub(logits, logits.amax(dim=-1, keepdim=True), out=log_p)
    return log_p.add_(p.amax(dim=-1, keepdim=True).log_()), p


def _add_top_k(grad: Tensor, log_p: Tensor, settings: TokenSettings) -> Tensor:
    """Add the gradient of the top-K term in place and return the term of each row."""
    assert settings.entropy_top_k is not None
    kept, columns = log_p.topk(settings.entropy_top_k, dim=-1)
    log_r = kept.log_softmax(dim=-1)
    r = log_r.exp()
    negative_entropy = (r * log_r).sum(dim=1)
    part = r * (log_r - negative_entropy[:, None])
    grad.scatter_add_(1, columns, settings.coefficients.diversity * part)
    return negative_entropy


def _dot(one: Tensor, other: Tensor, scratch: Tensor) -> Tensor:
    """Return the product of each row with the other's, shape ``(b,)``."""
    return torch.mul(one, other, out=scratch).sum(dim=1)
