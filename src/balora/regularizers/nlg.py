r"""The three terms for causal language models (NLG): consistency, diversity, SVD.

Equations are those of Chang, Chang and Wu, BA-LoRA, arXiv 2408.04556. The logits are those of the
tokens that count: shifting, and dropping prompt and padding, is the caller's job. They must be
finite. Half precision is computed in float32; float64 stays float64.

Shapes: ``M`` tokens that count, ``V`` vocabulary, ``K`` kept candidates, ``d`` hidden size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.regularizers.checks import (
    at_least_float32,
    check_matrix,
    check_pair,
    check_temperature,
    check_top_k,
)
from balora.regularizers.spectral import (
    Denominator,
    resolve_k,
    singular_values,
    top_k_ratio,
    top_k_variance,
)


def consistency_loss(
    logits: Tensor, reference_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    r"""Penalise drift from the pre-trained model: mean forward KL, reference to student (Eq. 10).

    .. math::
        \mathcal{L}_{CR} = \frac{T^2}{M} \sum_{i=1}^{M}
            \mathrm{KL}\left(p_i \,\|\, q_i\right), \qquad
            p_i = \mathrm{softmax}(t_i / T), \quad q_i = \mathrm{softmax}(s_i / T)

    with :math:`s_i, t_i` the rows of ``logits`` and ``reference_logits``. The factor :math:`T^2`
    keeps the gradient of one size as :math:`T` grows. The value is 0 when the two distributions
    agree on every token, positive otherwise, and unchanged when a constant is added to a row.

    Args:
        logits: Student logits, shape ``(M, V)``.
        reference_logits: Logits of the pre-trained model for the same tokens, shape ``(M, V)``;
            held constant: no gradient reaches them.
        temperature: Softmax temperature :math:`T`, finite and greater than 0.

    Returns:
        Scalar, in nats. With ``M == 0`` a zero still in the graph of ``logits``, so that a fully
        masked micro-batch does not stall DDP.

    Raises:
        ValueError: If the shapes differ or are not 2-D, or ``temperature`` is not positive.
    """
    check_pair(logits, reference_logits)
    check_temperature(temperature)
    student = F.log_softmax(at_least_float32(logits) / temperature, dim=-1)
    reference = F.log_softmax(at_least_float32(reference_logits.detach()) / temperature, dim=-1)
    # kl_div(input, target) is KL(target || input), and holds no M x V tensor but these two.
    kl = F.kl_div(student, reference, reduction="sum", log_target=True)
    return kl * (temperature**2 / max(len(logits), 1))


def balanced_logits(
    reference_logits: Tensor, counterfactual_logits: Tensor, swap: Tensor
) -> Tensor:
    r"""Return the logarithm of what a reference says in a text and in its counterfactual.

    .. math:: \tilde p_i = \tfrac12 \left( p_i + S\, p'_i \right)

    with :math:`p, p'` the softmax of the two and :math:`S` the swap of the tokens of every pair
    (our extension of Eq. 10). Half precision is computed in float32. The rows are normalised;
    swapped, they are those of the counterfactual with the text as its own counterfactual.

    Args:
        reference_logits: In the text, shape ``(M, V)``.
        counterfactual_logits: In the text with the words of every pair swapped, ``(M, V)``.
        swap: The two tokens of each of ``P`` pairs, no token twice, shape ``(2, P)``.

    Returns:
        Shape ``(M, V)``.

    Raises:
        ValueError: If the shapes differ or are not 2-D.
    """
    check_pair(reference_logits, counterfactual_logits)
    swapped = F.log_softmax(at_least_float32(counterfactual_logits), dim=-1)
    # a copy of its own: indexing on the right is one, so the two sides do not overlap
    swapped[:, swap.flatten()] = swapped[:, swap.flip(0).flatten()]
    own = F.log_softmax(at_least_float32(reference_logits), dim=-1)
    return torch.logaddexp(own, swapped) - math.log(2)


def diversity_loss(logits: Tensor, *, top_k: int | None = None) -> Tensor:
    r"""Reward spread-out predictions: the mean *negative* entropy of the student (Eq. 11).

    .. math::
        \mathcal{L}_{DR} = -\frac{1}{M} \sum_{i=1}^{M} H(q_i)
            = \frac{1}{M} \sum_{i=1}^{M} \sum_{j} q_{ij} \log q_{ij}, \qquad
            q_i = \mathrm{softmax}(s_i)

    The sign is a decision: the paper's text maximises the entropy, its printed formula, being
    minimised, would reduce it. The text is followed, so minimising this term raises the entropy.
    The value is unchanged when a constant is added to a row.

    With ``top_k`` the softmax runs over the :math:`K` largest logits of each row alone, so that
    their probabilities sum to 1. Which :math:`K` they are is held constant: the other logits get
    no gradient.

    Args:
        logits: Student logits, shape ``(M, V)``.
        top_k: Candidates :math:`K` kept per token, from 1 to ``V``; ``None`` keeps all.

    Returns:
        Scalar, in nats: from ``-log(V)`` (uniform; ``-log(K)`` with ``top_k``) to 0 (certain).
        With ``M == 0`` a zero still in the graph.

    Raises:
        ValueError: If ``logits`` is not 2-D, or ``top_k`` is not an int from 1 to ``V``.
    """
    check_matrix(logits, "logits")
    if top_k is not None:
        check_top_k(top_k, logits.shape[1])
        logits = logits.topk(top_k, dim=-1).values
    log_probabilities = F.log_softmax(at_least_float32(logits), dim=-1)
    negative_entropy = (log_probabilities.exp() * log_probabilities).sum()
    return negative_entropy / max(len(logits), 1)


def svd_loss(
    logits: Tensor,
    *,
    k: int | float = 0.3,
    variance_coef: float = 0.0,
    denominator: Denominator = "nuclear",
    max_rank: int | None = None,
) -> Tensor:
    r"""Reward logits whose spectrum is concentrated in its leading singular values (Eq. 12).

    .. math::
        \mathcal{L}_{SVDR} = -\left(
            \frac{\sum_{i=1}^{k} \sigma_i}{\sum_{i} \sigma_i}
            + \alpha \, \mathrm{Var}(\sigma_1, \ldots, \sigma_k)
        \right)

    with :math:`\sigma_i` the singular values of ``logits``. The minus is part of the term:
    minimising it raises the share of the leading singular values. It raises their (population)
    variance too: the paper's prose asks for "balanced" values and its formula rewards unequal
    ones; the formula is followed. The paper gives no :math:`\alpha`. The ratio is unchanged when
    the logits are scaled, the variance is not.

    When ``k`` reaches the rank, the nuclear ratio is the constant 1 and the term has no gradient.

    Args:
        logits: Student logits, shape ``(M, V)``.
        k: Leading singular values: an int is a count, a float in (0, 1] a fraction of the largest
            possible rank, rounded up. See :func:`~balora.regularizers.spectral.resolve_k`.
        variance_coef: :math:`\alpha`.
        denominator: ``"nuclear"``, the sum of all singular values as in the paper, or
            ``"frobenius"``, the norm :math:`\|Z\|_F` as in the authors' ICLR code.
        max_rank: A bound on the rank that the shape does not show: ``d``, the hidden size that
            the logits were computed from (``d + 1`` if the head has a bias). Bounds ``k`` beside
            ``min(M, V)``; ``None`` adds no bound.

    Returns:
        Scalar. Without variance from -1 to 0 for "nuclear" and from ``-sqrt(k)`` to 0 for
        "frobenius". For all-zero logits, and with ``M == 0``, a zero still in the graph.

    Raises:
        ValueError: If ``logits`` is not 2-D, ``k`` is neither a count nor a fraction,
            ``max_rank`` is less than 1 or ``denominator`` is unknown.
    """
    check_matrix(logits, "logits")
    return spectrum_loss(
        singular_values(logits),
        k=k,
        variance_coef=variance_coef,
        denominator=denominator,
        max_rank=max_rank,
    )


def spectrum_loss(
    sigma: Tensor,
    *,
    k: int | float = 0.3,
    variance_coef: float = 0.0,
    denominator: Denominator = "nuclear",
    max_rank: int | None = None,
) -> Tensor:
    """Return :func:`svd_loss` of logits whose singular values are known.

    Args:
        sigma: Singular values, largest first, shape ``(L,)``.
        k: As in :func:`svd_loss`.
        variance_coef: As in :func:`svd_loss`.
        denominator: As in :func:`svd_loss`.
        max_rank: A bound on the rank; bounds ``k`` beside ``L``; ``None`` adds no bound.

    Returns:
        Scalar, as :func:`svd_loss`.

    Raises:
        ValueError: As :func:`svd_loss`.
    """
    num_values = max(len(sigma), 1)  # 1 when there are no rows: `k` is checked all the same
    num_leading = resolve_k(k, num_values if max_rank is None else min(num_values, max_rank))
    ratio = top_k_ratio(sigma, num_leading, denominator=denominator)
    return -(ratio + variance_coef * top_k_variance(sigma, num_leading))
