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
    log_p, p = _log_softmax(logits, scratch[0], scratch[1])
    entropy = -_dot(p, log_p, scratch[2])
    consistency = diversity = torch.zeros_like(entropy)
    factor = coefficients.task
    if reference_logits is not None and settings.temperature == 1:
        factor += coefficients.consistency  # whose gradient has the same p
    if coefficients.diversity and settings.entropy_top_k is None:
        diversity = -entropy
        factors = (factor + coefficients.diversity * entropy)[:, None]
        torch.add(factors, log_p, alpha=coefficients.diversity, out=scratch[2])
        grad = torch.mul(p, scratch[2], out=logits)
    else:
        grad = torch.mul(p, factor, out=logits)
        if coefficients.diversity:
            diversity = _add_top_k(grad, log_p, settings)
    grad.scatter_add_(1, column, grad.new_full(column.shape, -coefficients.task))
    task = -log_p.gather(1, column).squeeze(1)
    if reference_logits is not None:  # last: it overwrites what is in the scratch
        consistency = _add_consistency(grad, reference_logits, settings, scratch)
    return RowValues(task, consistency, diversity, entropy, is_correct.to(task.dtype))


def _add_consistency(
    grad: Tensor, reference_logits: Tensor, settings: TokenSettings, scratch: Tensor
) -> Tensor:
    """Complete the gradient by that of the consistency in place; return the term of each row.

    At ``T = 1`` the part of ``p`` is in ``grad`` already.
    """
    temperature = settings.temperature
    scale = settings.coefficients.consistency * temperature
    log_p, free, log_q = scratch
    if temperature != 1:
        # a log-softmax is as good as the logits: they differ by a constant of the row
        log_q, (log_p, p) = log_p, _log_softmax(log_p.div_(temperature), log_q, free)
        grad.add_(p, alpha=scale)
        reference_logits.div_(temperature)
    log_q, q = _log_softmax(reference_logits, log_q, free)
    grad.sub_(q, alpha=scale)
    return temperature**2 * _dot(q, log_q.sub_(log_p), log_q)


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
