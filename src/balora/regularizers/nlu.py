r"""The three terms for sequence classification (NLU): consistency, diversity, SVD.

Equations are those of Chang, Chang and Wu, BA-LoRA, arXiv 2408.04556. The rows are logits, or
pooled features of the encoder, and must be finite. Half precision is computed in float32 and
float64 stays float64. All three depend on a row's direction or on the batch, not on a softmax.

Shapes: ``M`` examples, ``C`` classes (or features).
"""

from __future__ import annotations

import torch
from torch import Tensor

from balora.regularizers.checks import at_least_float32, attached_zero, check_matrix, check_pair
from balora.regularizers.spectral import resolve_k, singular_values, top_k_ratio


def consistency_loss(logits: Tensor, reference_logits: Tensor) -> Tensor:
    r"""Penalise rows that turn away from the pre-trained model's: mean squared distance (Eq. 5).

    .. math::
        \mathcal{L}_{CR} = \frac{1}{M} \sum_{i=1}^{M}
            \left\| \frac{P_i}{\|P_i\|} - \frac{F_i}{\|F_i\|} \right\|^2

    with :math:`F_i, P_i` the rows of ``logits`` and ``reference_logits``. With ``C == 1``
    (regression) a row's direction would be its sign alone; there the norms are those of the batch
    vectors, :math:`\frac{1}{M} \| P / \|P\| - F / \|F\| \|^2`, as Eq. 5 reads for an M-vector. A
    row (or batch vector) that is exactly zero has no direction and stays zero.

    Args:
        logits: Student logits, shape ``(M, C)``.
        reference_logits: Logits of the pre-trained model for the same examples, shape ``(M, C)``;
            held constant: no gradient reaches them.

    Returns:
        Scalar from 0 (the same directions) to 4 (opposite ones; ``4 / M`` for ``C == 1``);
        unchanged when a row (for ``C == 1``: the batch) is multiplied by a positive number. With
        ``M == 0`` a zero still in the graph.

    Raises:
        ValueError: If the shapes differ or are not 2-D.
    """
    check_pair(logits, reference_logits)
    dim = 0 if logits.shape[1] == 1 else 1
    student = _unit_vectors(at_least_float32(logits), dim)
    reference = _unit_vectors(at_least_float32(reference_logits.detach()), dim)
    return (reference - student).square().sum() / max(len(logits), 1)


def diversity_loss(logits: Tensor) -> Tensor:
    r"""Penalise classes that rise and fall together: squared off-diagonal covariance (Eq. 6-7).

    .. math::
        \mathcal{L}_{DR} = \frac{1}{C} \sum_{i \ne j} \mathrm{Cov}(F)_{ij}^2, \qquad
        \mathrm{Cov}(F) = \frac{1}{M - 1} \sum_{m=1}^{M} (F_m - \bar F)(F_m - \bar F)^\top

    with :math:`F_m` the rows of ``logits`` and :math:`\bar F` their mean. The sign is the
    printed one: minimising the term decorrelates the classes (unlike the NLG form, no entropy is
    involved). The variances, on the diagonal, are free. The value is unchanged when a constant is
    added to a column, and depends on the batch as a whole: it is not a mean over examples.

    Args:
        logits: Student logits, shape ``(M, C)``.

    Returns:
        Scalar, 0 or greater, in the fourth power of the units of the logits. With ``M < 2`` there
        is no covariance and with ``C == 1`` nothing off the diagonal: a zero still in the graph.

    Raises:
        ValueError: If ``logits`` is not 2-D.
    """
    check_matrix(logits, "logits")
    num_examples, num_classes = logits.shape
    if num_examples < 2 or num_classes < 2:
        return attached_zero(logits)
    # In float64, which neither autocast nor TF32 lowers: a float32 matmul may run in bfloat16.
    rows = logits.double()
    centred = rows - rows.mean(dim=0)
    covariance = centred.mT @ centred / (num_examples - 1)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    loss = off_diagonal.square().sum() / num_classes
    return loss.to(torch.promote_types(logits.dtype, torch.float32))


def svd_loss(logits: Tensor, *, k: int | float = 0.3) -> Tensor:
    r"""Reward logits whose spectrum is concentrated in its leading singular values (Eq. 8).

    .. math::
        \mathcal{L}_{SVDR} = -\frac{\sum_{i=1}^{k} \sigma_i}{\sum_{i=1}^{\min(M, C)} \sigma_i}

    with :math:`\sigma_i` the singular values of ``logits``. The minus is part of the term:
    minimising it raises the share of the leading singular values. The value is unchanged when the
    logits are scaled. When ``k`` reaches the rank it is the constant -1, without a gradient.

    Args:
        logits: Student logits, shape ``(M, C)``.
        k: Leading singular values: an int is a count, a float in (0, 1] a fraction of
            ``min(M, C)``, rounded up. See :func:`~balora.regularizers.spectral.resolve_k`.

    Returns:
        Scalar from -1 to ``-k / min(M, C)``. For all-zero logits, and with ``M == 0``, a zero
        still in the graph.

    Raises:
        ValueError: If ``logits`` is not 2-D or ``k`` is neither a count nor a fraction.
    """
    check_matrix(logits, "logits")
    sigma = singular_values(logits)
    # At least 1, so that `k` is checked also when there are no rows.
    return -top_k_ratio(sigma, resolve_k(k, max(len(sigma), 1)))


def _unit_vectors(matrix: Tensor, dim: int) -> Tensor:
    """Divide by the norms along ``dim``, except where they are 0.

    Not ``F.normalize``: dividing by its epsilon gives a zero row a gradient of 1e12.
    """
    norms = torch.linalg.vector_norm(matrix, dim=dim, keepdim=True)
    return matrix / torch.where(norms == 0, 1.0, norms)
