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
        The values, zeros for a term that is off.
    """
    coefficients, column = settings.coefficients, targets[:, None]
    is_correct = logits.argmax(dim=1) == targets
    log_p = torch.log_softmax(logits, dim=-1, out=scratch[0])
    p = torch.exp(log_p, out=scratch[1])
    entropy = -_dot(p, log_p, scratch[2])
    consistency = diversity = torch.zeros_like(entropy)
    grad = torch.mul(p, coefficients.task, out=logits)
    grad.scatter_add_(1, column, grad.new_full(column.shape, -coefficients.task))
    if coefficients.diversity and settings.entropy_top_k is None:
        diversity = -entropy
        centred = torch.add(log_p, entropy[:, None], out=scratch[2])
        grad.addcmul_(p, centred, value=coefficients.diversity)
    elif coefficients.diversity:
        diversity = _add_top_k(grad, log_p, settings)
    task = -log_p.gather(1, column).squeeze(1)
    if reference_logits is not None:  # last: at a temperature it overwrites log_p and p
        consistency = _add_consistency(grad, reference_logits, settings, scratch)
    return RowValues(task, consistency, diversity, entropy, is_correct.to(task.dtype))


def _add_consistency(
    grad: Tensor, reference_logits: Tensor, settings: TokenSettings, scratch: Tensor
) -> Tensor:
    """Add the gradient of the consistency in place and return the term of each row."""
    temperature = settings.temperature
    log_p, p, log_q = scratch
    if temperature != 1:
        # a log-softmax is as good as the logits: they differ by a constant of the row
        log_p = torch.log_softmax(log_p.div_(temperature), dim=-1, out=p)
        p = torch.exp(log_p, out=scratch[0])
        reference_logits.div_(temperature)
    torch.log_softmax(reference_logits, dim=-1, out=log_q)
    q = torch.exp(log_q, out=reference_logits)
    scale = settings.coefficients.consistency * temperature
    grad.add_(p, alpha=scale).sub_(q, alpha=scale)
    log_q.sub_(log_p)
    return temperature**2 * _dot(q, log_q, log_q)


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
