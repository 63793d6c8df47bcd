"""What every term asks of its inputs: two dimensions, equal shapes, enough precision.

Shapes: ``M`` rows that count, ``N`` columns (classes or vocabulary).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_floating(tensor: Tensor, name: str) -> None:
    """Refuse what is no tensor of floating-point numbers, by the name of the argument.

    Raises:
        TypeError: For an array, whole numbers, complex numbers or truth values.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = f"torch.Tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor)
        raise TypeError(
            f"`{name}` must be a torch.Tensor of floating-point numbers, got a "
            f"{getattr(kind, '__name__', kind)}."
        )


def check_matrix(tensor: Tensor, name: str) -> None:
    """Refuse a tensor that is not 2-D, by the name of the argument.

    Raises:
        TypeError: If ``tensor`` is no tensor of floating-point numbers.
        ValueError: If it is not 2-D.
    """
    check_floating(tensor, name)
    if tensor.dim() != 2:
        raise ValueError(
            f"`{name}` must be 2-D, one row for each token or example that counts, got shape "
            f"{tuple(tensor.shape)}. Drop masked positions and flatten the rest first."
        )


def check_pair(logits: Tensor, reference_logits: Tensor) -> None:
    """Refuse logits and reference logits that are not two matrices of one shape.

    Raises:
        TypeError: If either is no tensor of floating-point numbers.
        ValueError: If either is not 2-D or the shapes differ.
    """
    check_matrix(logits, "logits")
    check_matrix(reference_logits, "reference_logits")
    if logits.shape != reference_logits.shape:
        raise ValueError(
            f"`logits` has shape {tuple(logits.shape)}, but `reference_logits` has shape "
            f"{tuple(reference_logits.shape)}. Both must hold the same rows and columns."
        )


def check_temperature(temperature: float) -> None:
    """Refuse a softmax temperature that is not finite and positive.

    Raises:
        ValueError: If it is 0, negative, infinite or NaN.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` must be finite and greater than 0, got {temperature}.")


def check_top_k(top_k: int, vocab_size: int) -> None:
    """Refuse a number of kept candidates that the logits do not have.

    Raises:
        ValueError: If ``top_k`` is not an int from 1 to ``vocab_size``.
    """
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= vocab_size:
        raise ValueError(
            f"`top_k` must be an int from 1 to the {vocab_size} columns of the logits, or None "
            f"for all of them, got {top_k!r}."
        )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Promote half precision to float32; float32 and float64 pass through unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def attached_zero(logits: Tensor) -> Tensor:
    """Return a zero of shape ``()`` in the graph of ``logits``: backward gives zeros, not None.

    It is the sum of no rows rather than ``0 * logits.sum()``, which is NaN after an overflow.
    """
    return at_least_float32(logits[:0]).sum()
