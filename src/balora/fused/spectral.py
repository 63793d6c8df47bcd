r"""The singular values of the logits from the hidden states alone.

The logits before any soft cap are :math:`Z = s [H, 1] [W, b]^\top`. With
:math:`R^\top R = s^2 [W, b]^\top [W, b]` the matrix :math:`X = [H, 1] R^\top` has the same Gram
matrix :math:`X X^\top = Z Z^\top`, so the same singular values, and as many columns as the hidden
state has entries instead of the vocabulary. The head is frozen, so :math:`R` is computed once.

Shapes: ``M`` rows, ``D`` hidden size, ``V`` vocabulary, ``E = D``, or ``D + 1`` with a bias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.errors import NonFiniteError
from balora.fused.checks import check_frozen
from balora.models.head import LMHead
from balora.regularizers.spectral import singular_values

_BLOCK_ROWS = 256
"""Rows of the head held in float64 at a time, or a quarter of those of the Gram matrix."""


class HeadFactor:
    r"""A square root :math:`R` of the Gram matrix of a frozen head, in float64.

    Args:
        head: The output layer; its bias and scale are part of the factor, its soft cap is not.

    Raises:
        ValueError: If the head is trained: the factor would be stale after one step.
        NonFiniteError: If the head holds NaN or infinity.
    """

    @torch.inference_mode(False)  # one that was made while evaluating serves training too
    def __init__(self, head: LMHead) -> None:
        check_frozen(head)
        self._made_of = _Identity.of(head)
        self.root = _square_root(_gram(head))

    def is_of(self, head: LMHead) -> bool:
        """Return whether ``head`` is still what the factor was made of.

        A replaced weight, or one changed in place, is noticed; a change through ``weight.data``
        hides from torch's version counter and is not.
        """
        return self._made_of.same_as(_Identity.of(head))

    def singular_values(self, hidden: Tensor) -> Tensor:
        """Return the singular values of the logits, with the minimum-norm gradient.

        Args:
            hidden: Shape ``(M, D)``.

        Returns:
            Those of ``head.linear(hidden)`` that can be other than 0, largest first, shape
            ``(min(M, E),)``, in float64.
        """
        rows = hidden.double()
        if self.root.shape[1] > hidden.shape[1]:
            rows = F.pad(rows, (0, 1), value=1.0)
        return singular_values(rows @ self.root.mT)


class _Identity(NamedTuple):
    """Which tensors a factor was made of, and in which state."""

    weight: Tensor
    bias: Tensor | None
    state: tuple[object, ...]

    @classmethod
    def of(cls, head: LMHead) -> _Identity:
        tensors = [head.weight] if head.bias is None else [head.weight, head.bias]
        state = [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors]
        return cls(head.weight, head.bias, (head.scale, *state))

    def same_as(self, other: _Identity) -> bool:
        return self.weight is other.weight and self.bias is other.bias and self.state == other.state


@torch.no_grad()
def _gram(head: LMHead) -> Tensor:
    """Return ``s^2 [W, b]^T [W, b]``, shape ``(E, E)``, summed over blocks of the vocabulary.

    One block is filled again and again: allocators keep what was let go, so new ones would add up.
    """
    size, (num_rows, width) = head.max_rank, head.weight.shape
    gram = head.weight.new_zeros((size, size), dtype=torch.float64)
    block = gram.new_empty((min(max(_BLOCK_ROWS, size // 4), num_rows), size))
    for start in range(0, num_rows, len(block)):
        rows = slice(start, start + len(block))
        part = block[: len(head.weight[rows])]
        part[:, :width] = head.weight[rows]
        if head.bias is not None:
            part[:, width] = head.bias[rows]
        gram.addmm_(part.mT, part)
    return gram.mul_(head.scale**2)


@torch.no_grad()
def _square_root(gram: Tensor) -> Tensor:
    """Return ``R`` with ``R^T R = gram``, in its place; what rounding could have made is 0.

    ``eigh`` takes twice the matrix to work in; the vectors and the root lie where it lay.
    """
    # `eigh` would say that it did not converge; the squares of all weights are on the diagonal
    if not bool(gram.diagonal().isfinite().all()):
        raise NonFiniteError("the head holds NaN or infinity, so its logits have no spectrum.")
    eigenvalues, by_column = gram.new_empty(len(gram)), gram.mT  # as LAPACK writes vectors
    torch.linalg.eigh(by_column, out=(eigenvalues, by_column))
    tolerance = len(gram) * torch.finfo(gram.dtype).eps * eigenvalues.amax()
    roots = torch.where(eigenvalues <= tolerance, 0.0, eigenvalues.clamp(min=0).sqrt())
    return gram.mul_(roots[:, None])
