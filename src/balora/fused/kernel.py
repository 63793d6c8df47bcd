r"""What :mod:`balora.fused.block` computes, for a GPU: one program per row, in two passes over it.

The first pass finds the normalisers, the largest logit and the entropy, rescaling its sums
whenever a larger logit comes (the online softmax of Milakov and Gimelshein, arXiv 1805.02867). The
second writes the gradient over the student's product and sums the consistency. Nothing of the size
of the logits is held besides the products themselves.

With :math:`x_v = \log p_v - \log q_v` the consistency is summed as
:math:`\sum_v q_v (e^{x_v} - 1 - x_v)`, which equals :math:`\sum_v q_v (-x_v)` as both softmaxes sum
to 1, but has no negative part: an error :math:`\delta` of a normaliser moves it by
:math:`\delta^2 / 2`, not by :math:`\delta`, so it is right near the reference.

Needs Triton, which the CUDA builds of torch for Linux bring along, and a C compiler.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from balora.fused.block import RowValues, TokenCoefficients, TokenSettings
from balora.models.head import LMHead

_MOST_COLUMNS = 4096
"""Columns of a row that a program takes at a time."""
_NUM_WARPS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_supported(dtype: torch.dtype, head: LMHead, settings: TokenSettings) -> bool:
    """Return whether the kernel knows the dtype of the products, the head and the terms."""
    has_top_k = bool(settings.coefficients.diversity) and settings.entropy_top_k is not None
    return dtype in DTYPES and head.softcap is None and not has_top_k


def write_row_values(
    products: Tensor, targets: Tensor, *, head: LMHead, settings: TokenSettings, out: Tensor
) -> None:
    """Write the values of each row to ``out``, and the gradient over the student's product.

    Args:
        products: The head's products, of the student and, if the consistency is on, of the
            reference, shape ``(1, b, V)`` or ``(2, b, V)``. With two in half precision the first
            is that of the difference of the two hidden states. The first becomes the gradient
            with respect to the product.
        targets: Shape ``(b,)``.
        head: What follows the product; no soft cap.
        settings: Coefficients and temperature.
        out: Becomes :class:`~balora.fused.block.RowValues`, float32, shape ``(5, b)``.
    """
    num_models, num_rows, vocab = products.shape
    if num_rows == 0:
        return
    coefficients = settings.coefficients
    has_reference = num_models == 2
    # Triton launches on the current device, wherever the tensors are
    with torch.cuda.device_of(products):
        _rows[(num_rows,)](
            products,
            products.stride(0),
            products.stride(1),
            targets,
            targets.stride(0),
            products if head.bias is None else head.bias.contiguous(),
            out,
            out.stride(0),
            out.stride(1),
            vocab,
            float(head.scale),
            float(coefficients.task),
            float(coefficients.consistency),
            float(coefficients.diversity),
            float(settings.temperature),
            HAS_BIAS=head.bias is not None,
            HAS_REFERENCE=has_reference,
            HAS_TEMPERATURE=has_reference and settings.temperature != 1,
            HAS_DIVERSITY=bool(coefficients.diversity),
            IS_DIFFERENCE=has_reference and products.dtype.itemsize < torch.float32.itemsize,
            COLUMNS=min(_MOST_COLUMNS, triton.next_power_of_2(vocab)),
            num_warps=_NUM_WARPS,
        )


def check_works(device: torch.device, dtype: torch.dtype) -> None:
    """Run the kernel with all terms on a row of two equal logits, and look at what it gives.

    Raises:
        ArithmeticError: If the values are not those of such a row.
        Exception: Whatever Triton and the compilers say where they cannot build it.
    """
    products = torch.zeros(2, 1, 2, device=device, dtype=dtype)
    out = torch.full((len(RowValues._fields), 1), torch.nan, device=device)
    head = LMHead(products[0].mT)
    target = torch.zeros(1, dtype=torch.int64, device=device)
    settings = TokenSettings(TokenCoefficients(1.0, 1.0, 1.0))
    write_row_values(products, target, head=head, settings=settings, out=out)
    nats = math.log(2)
    expected = dict(task=nats, consistency=0.0, diversity=-nats, entropy=nats, is_correct=1.0)
    found = dict(zip(RowValues._fields, out[:, 0].tolist(), strict=True))
    if not all(math.isclose(found[name], expected[name], abs_tol=1e-5) for name in expected):
        raise ArithmeticError(f"two equal logits gave {found}")


@triton.jit
def _logits(
    products,
    reference_products,
    bias,
    columns,
    is_column,
    scale,
    HAS_BIAS: tl.constexpr,
    HAS_REFERENCE: tl.constexpr,
    IS_DIFFERENCE: tl.constexpr,
):
    """Return the logits of the student and of the reference, and their difference."""
    student = tl.load(products + columns, mask=is_column, other=0.0).to(tl.float32)
    shift = tl.zeros_like(student)
    if HAS_BIAS:
        shift = tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)
    if HAS_REFERENCE:
        reference = tl.load(reference_products + columns, mask=is_column, other=0.0)
        reference = scale * (reference.to(tl.float32) + shift)
        if IS_DIFFERENCE:
            difference = scale * student
            student = reference + difference
        else:
            student = scale * (student + shift)
            difference = student - reference
    else:
        student = scale * (student + shift)
        reference = student
        difference = student
    return student, reference, difference


# that a chunk begins elsewhere or has another number of rows is no reason to compile anew
@triton.jit(
    do_not_specialize=["value_stride"],
    do_not_specialize_on_alignment=["targets", "values"],
)
def _rows(
    products,
    model_stride,
    row_stride,
    targets,
    target_stride,
    bias,
    values,
    value_stride,
    value_row_stride,
    vocab,
    scale,
    task,
    consistency,
    diversity,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_REFERENCE: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    HAS_DIVERSITY: tl.constexpr,
    IS_DIFFERENCE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.cast(tl.program_id(0), tl.int64)  # a chunk can have more than 2^31 entries
    products += row * row_stride
    reference_products = products + model_stride
    values += row * value_row_stride
    target = tl.load(targets + row * target_stride)
    smallest = -1e30  # not -inf, whose product with 0 is NaN

    # of the student: largest logit m, sum of e^(z - m), of e^(z - m) (z - m), of e^((z - m) / T)
    largest, total, moment, tempered = smallest, 0.0, 0.0, 0.0
    reference_largest, reference_total = smallest, 0.0
    target_logit = 0.0
    for start in range(0, vocab, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < vocab
        student, reference, _ = _logits(
            products,
            reference_products,
            bias,
            columns,
            is_column,
            scale,
            HAS_BIAS,
            HAS_REFERENCE,
            IS_DIFFERENCE,
        )
        target_logit += tl.sum(tl.where(columns == target, student, 0.0))
        new = tl.maximum(largest, tl.max(tl.where(is_column, student, smallest)))
        below = largest - new
        shifted = student - new
        weight = tl.where(is_column, tl.exp(shifted), 0.0)
        moment = tl.exp(below) * (moment + below * total)
        moment += tl.sum(tl.where(is_column, weight * shifted, 0.0))
        total = tl.exp(below) * total + tl.sum(weight)
        if HAS_TEMPERATURE:
            weight = tl.where(is_column, tl.exp(shifted / temperature), 0.0)
            tempered = tl.exp(below / temperature) * tempered + tl.sum(weight)
        largest = new
        if HAS_REFERENCE:
            new = tl.maximum(reference_largest, tl.max(tl.where(is_column, reference, smallest)))
            weight = tl.where(is_column, tl.exp((reference - new) / temperature), 0.0)
            below = (reference_largest - new) / temperature
            reference_total = tl.exp(below) * reference_total + tl.sum(weight)
            reference_largest = new

    log_total = tl.log(total)
    entropy = log_total - moment / total
    tl.store(values, largest - target_logit + log_total)
    tl.store(values + 2 * value_stride, -entropy if HAS_DIVERSITY else 0.0)
    tl.store(values + 3 * value_stride, entropy)
    tl.store(values + 4 * value_stride, tl.cast(target_logit >= largest, tl.float32))

    log_tempered = tl.log(tempered) if HAS_TEMPERATURE else log_total
    log_reference_total = tl.log(reference_total) if HAS_REFERENCE else 0.0
    offset = (largest - reference_largest) / temperature + log_tempered - log_reference_total
    divergence = 0.0
    for start in range(0, vocab, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < vocab
        student, reference, difference = _logits(
            products,
            reference_products,
            bias,
            columns,
            is_column,
            scale,
            HAS_BIAS,
            HAS_REFERENCE,
            IS_DIFFERENCE,
        )
        log_p = student - largest - log_total
        p = tl.exp(log_p)
        grad = task * p - tl.where(columns == target, task, 0.0)
        if HAS_DIVERSITY:
            grad += diversity * p * (log_p + entropy)
        if HAS_REFERENCE:
            log_q = (reference - reference_largest) / temperature - log_reference_total
            q = tl.exp(log_q)
            tempered_p = p
            if HAS_TEMPERATURE:
                tempered_p = tl.exp((student - largest) / temperature - log_tempered)
            x = difference / temperature - offset
            # e^x - 1 - x, by its series where the difference would cancel
            series = 1.0 + x / 3 * (1.0 + x / 4 * (1.0 + x / 5 * (1.0 + x / 6 * (1.0 + x / 7))))
            excess = tl.where(tl.abs(x) < 0.25, q * 0.5 * x * x * series, tempered_p - q - q * x)
            divergence += tl.sum(tl.where(is_column, excess, 0.0))
            grad += consistency * temperature * (excess + q * x)
        grad = (scale * grad).to(products.dtype.element_ty)
        tl.store(products + columns, grad, mask=is_column)
    tl.store(values + value_stride, temperature * temperature * divergence)
