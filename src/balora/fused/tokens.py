"""Cross-entropy, consistency and diversity with their gradient, by chunks of rows.

For each chunk: the logits of the student and of the reference (two matrix products), the terms and
the gradient with respect to the logits, which overwrites them, and the gradient with respect to
the hidden states (a third product). The head is frozen, so nothing else is needed. A chunk has all
columns: tiles of the vocabulary would need five products. What lies between the products is done
on a GPU by a kernel (:mod:`balora.fused.kernel`), elsewhere block by block of the rows, so that
they stay in the cache (:mod:`balora.fused.block`).

Shapes: ``M`` tokens, ``D`` hidden size, ``V`` vocabulary, ``R`` rows of a chunk.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from balora.fused.block import NUM_SCRATCH, RowValues, TokenSettings, row_values
from balora.fused.checks import check_inputs, check_terms
from balora.models.head import LMHead
from balora.objective import NO_REFERENCE, Counterfactual, TokenCounts
from balora.regularizers.checks import check_temperature, check_top_k
from balora.regularizers.nlg import balanced_logits

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**28
"""Logits held at a time, unless the least rows of a chunk need more."""
_LEAST_ROWS, _LEAST_ROWS_GPU = 384, 1024
"""With fewer rows a matrix product becomes a mere stream of the head through memory."""
_BLOCK_ELEMENTS, _BLOCK_ELEMENTS_GPU = 2**19, 2**27
"""Logits of a block: a few of 2 MiB fit into the cache of a CPU; a GPU wants few launches."""
_ALIGNMENT = 64
HAS_OUT_DTYPE = hasattr(torch.ops.aten.mm, "dtype_out") and torch.version.hip is None
"""Whether a product of half precision can be had in float32 on a GPU: from torch 2.8 on."""


class TokenTerms(NamedTuple):
    """Sums over the tokens, each of shape ``()``. A term that is switched off is ``None``."""

    loss: Tensor
    """The sum of coefficient times term: the only one with a gradient."""
    task: Tensor | None
    """Cross-entropy, in nats."""
    consistency: Tensor | None
    """``T^2 KL(reference || student)``, in nats."""
    diversity: Tensor | None
    """Negative entropy, of the top-K where that is set, in nats."""
    counts: TokenCounts


def token_terms(
    hidden: Tensor,
    reference_hidden: Tensor | None,
    targets: Tensor,
    *,
    head: LMHead,
    settings: TokenSettings,
    counterfactual: Counterfactual | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> TokenTerms:
    r"""Return the sums of the token terms, with the gradient already computed.

    .. math::
        c_0 \sum_i -\log p_{i, y_i} + c_1 T^2 \sum_i \mathrm{KL}(q_{i,T} \,\|\, p_{i,T})
        - c_2 \sum_i H_K(p_i)

    with :math:`p, q` the softmax of student and reference logits: BA-LoRA, arXiv 2408.04556,
    Eq. 10 and 11 times ``M``. Divide ``loss`` by what the tokens are counted by.

    In half precision the products run in it and everything else in float32. The student's logits
    are then those of the reference plus the product of the difference of the hidden states: their
    rounding is common to both, so the consistency is right also near the reference, where it is
    far smaller than the rounding. Under autocast the products run in its dtype.

    Args:
        hidden: Student hidden states of the tokens that count, shape ``(M, D)``.
        reference_hidden: The reference's, shape ``(M, D)``, held constant; not looked at while
            the consistency is off.
        targets: The token to predict at each, from 0 to ``V - 1``, shape ``(M,)``.
        head: The frozen output layer.
        settings: Coefficients, temperature and top-K.
        counterfactual: With it the reference of the consistency is the mean of two, see
            :func:`balora.regularizers.nlg.balanced_logits`.
        chunk_bytes: Memory for logits. The number of rows that a matrix product needs to be
            fast wins over it.

    Returns:
        The sums; with ``M == 0`` zeros, the loss still in the graph.

    Raises:
        ValueError: For shapes, dtypes, targets or settings that do not fit together, and for a
            head that is trained.
        NonFiniteError: If an input or a term is NaN or infinite.
    """
    coefficients = settings.coefficients
    if not coefficients.consistency:
        reference_hidden = counterfactual = None
    elif reference_hidden is None:
        raise ValueError(NO_REFERENCE)
    check_temperature(settings.temperature)
    if settings.entropy_top_k is not None:
        check_top_k(settings.entropy_top_k, len(head.weight))
    check_inputs(hidden, reference_hidden, targets, head)
    if counterfactual is not None:
        check_inputs(hidden, counterfactual.hidden, targets, head)
    problem = _Problem(reference_hidden, targets, head, settings, counterfactual, chunk_bytes)
    loss, *sums = _TokenTerms.apply(hidden, problem)  # type: ignore[no-untyped-call]
    values = RowValues(*sums)
    is_on = coefficients._asdict()
    terms = {name: getattr(values, name) if is_on[name] else None for name in is_on}
    check_terms(terms)
    counts = TokenCounts(loss.new_tensor(float(len(targets))), values.entropy, values.is_correct)
    return TokenTerms(loss, **terms, counts=counts)


class _Problem(NamedTuple):
    """Everything but the student's hidden states."""

    reference_hidden: Tensor | None
    targets: Tensor
    head: LMHead
    settings: TokenSettings
    counterfactual: Counterfactual | None
    chunk_bytes: int


class _TokenTerms(torch.autograd.Function):
    """The weighted sum, then the sums of :class:`RowValues`, which carry no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, problem: _Problem) -> tuple[Tensor, ...]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        # in float32 until backward: unlike the loss, it is not divided by the tokens yet
        grad = torch.empty_like(hidden, dtype=dtype) if ctx.needs_input_grad[0] else None
        product_dtype = _product_dtype(hidden)  # before autocast is off
        with torch.autocast(hidden.device.type, enabled=False):
            values = _fill(hidden, problem, product_dtype, grad)
        sums = RowValues(*values.sum(dim=1, dtype=torch.float64))
        coefficients = problem.settings.coefficients
        loss = sums.task.new_zeros(())
        for name, coefficient in coefficients._asdict().items():
            loss += coefficient * getattr(sums, name)
        outputs = tuple(value.to(dtype) for value in (loss, *sums))
        ctx.save_for_backward(grad)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return (grad * grad_loss).to(ctx.dtype), None


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype that the model's own head would multiply in."""
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def _fill(hidden: Tensor, problem: _Problem, dtype: torch.dtype, grad: Tensor | None) -> Tensor:
    """Return the values of all rows, shape ``(5, M)``; write their gradient into ``grad``."""
    reference_hidden, targets, head, settings, counterfactual, chunk_bytes = problem
    weight = head.weight.detach().to(dtype)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    values = hidden.new_empty(len(RowValues._fields), len(hidden), dtype=exact)
    others = [reference_hidden, counterfactual and counterfactual.hidden]
    references = [other for other in others if other is not None]
    num_models = 1 + len(references)
    rows_that_fit = chunk_bytes // (num_models * len(weight) * dtype.itemsize)
    num_rows = _rows_per_chunk(len(hidden), rows_that_fit, hidden.device.type)
    products = _room_for_products(num_models, num_rows, weight)
    swap = None if counterfactual is None else counterfactual.swap
    write_values = _row_writer(products, exact, head, settings, swap)
    for rows in _slices(len(hidden), num_rows):
        chunk = products[:, : rows.stop - rows.start]
        _multiply(hidden[rows], [other[rows] for other in references], weight, out=chunk)
        write_values(chunk, targets[rows], out=values[:, rows])
        if grad is not None:
            _multiply_back(chunk[0], weight, out=grad[rows])
    return values


def _row_writer(
    products: Tensor, dtype: torch.dtype, head: LMHead, settings: TokenSettings, swap: Tensor | None
) -> Callable[..., None]:
    """Return what writes values and gradient of a chunk's rows: the kernel, or blocks of rows."""
    kernel = _kernel(products.device, products.dtype) if swap is None else None
    if kernel is not None and kernel.is_supported(products.dtype, head, settings):
        return functools.partial(kernel.write_row_values, head=head, settings=settings)
    num_models, num_rows, vocab = products.shape
    num_scratch = NUM_SCRATCH + (num_models if _is_half(products.dtype) else 0)
    block_rows = min(_rows_per_block(products), num_rows)
    scratch = products.new_empty(num_scratch, block_rows, vocab, dtype=dtype)
    return functools.partial(
        _write_row_values, head=head, settings=settings, swap=swap, scratch=scratch
    )


@functools.cache
def _kernel(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """Return the module of the GPU's kernel; ``None`` where it cannot run."""
    if device.type != "cuda":
        return None
    try:
        kernel = importlib.import_module("balora.fused.kernel")
        if dtype in kernel.DTYPES:
            kernel.check_works(device, dtype)
    except torch.OutOfMemoryError:  # says nothing about the kernel
        raise
    except Exception as error:  # noqa: BLE001 - whatever Triton and the compilers say
        logger.warning(
            "the objective runs without its kernel, with the same values but slower and in more "
            "memory: %s: %s",
            type(error).__name__,
            str(error).strip().partition("\n")[0],
        )
        return None
    return kernel


def _room_for_products(num_models: int, num_rows: int, weight: Tensor) -> Tensor:
    """Return memory for the products of a chunk, shape ``(num_models, num_rows, V)``.

    On a GPU its rows begin at multiples of 128 bytes, which saves an eighth of the time with a
    vocabulary of an odd size, such as GPT-2's.
    """
    vocab = len(weight)
    width = math.ceil(vocab / _ALIGNMENT) * _ALIGNMENT if weight.is_cuda else vocab
    return weight.new_empty(num_models, num_rows, width)[..., :vocab]


def _multiply(hidden: Tensor, references: Sequence[Tensor], weight: Tensor, *, out: Tensor) -> None:
    """Write the products of the head with student and references into ``out``.

    Shapes ``(R, D)`` each, and ``(1 + number of references, R, V)``. In half precision the first
    is that of the difference to the first reference: see :func:`token_terms`.
    """
    for number, reference_hidden in enumerate(references, start=1):
        torch.mm(reference_hidden.to(weight.dtype), weight.mT, out=out[number])
    if references and _is_half(weight.dtype):
        hidden = hidden - references[0]
    torch.mm(hidden.to(weight.dtype), weight.mT, out=out[0])


def _multiply_back(grad_logits: Tensor, weight: Tensor, *, out: Tensor) -> None:
    """Write the product of the gradient with the head into ``out``, ``(R, D)``, in float32."""
    if weight.is_cuda and _is_half(weight.dtype) and out.dtype == torch.float32 and HAS_OUT_DTYPE:
        # else the parts of a sum over the vocabulary are rounded before they are added
        torch.mm(grad_logits, weight, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(grad_logits, weight))


def _write_row_values(
    products: Tensor,
    targets: Tensor,
    *,
    head: LMHead,
    settings: TokenSettings,
    swap: Tensor | None,
    scratch: Tensor,
    out: Tensor,
) -> None:
    """Write the values of each row to ``out``, ``(5, b)``, its gradient into ``products[0]``."""
    for rows in _slices(products.shape[1], scratch.shape[1]):
        room = scratch[:, : rows.stop - rows.start]
        out[:, rows] = _block(products[:, rows], targets[rows], head, settings, swap, room)


def _block(
    products: Tensor,
    targets: Tensor,
    head: LMHead,
    settings: TokenSettings,
    swap: Tensor | None,
    room: Tensor,
) -> Tensor:
    """Return the values of a few rows, ``(5, b)``, and put their gradient into ``products[0]``."""
    logits = products
    if _is_half(products.dtype):
        logits = room[NUM_SCRATCH:].copy_(products)
        if len(logits) > 1:
            logits[0] += logits[1]
    student, *reference = [head.finish_(rows) for rows in logits]
    if swap is not None:
        reference[0].copy_(balanced_logits(reference[0], reference[1], swap))
    slope = head.slope(student)
    values = row_values(
        student, reference[0] if reference else None, targets, settings, room[:NUM_SCRATCH]
    )
    if head.softcap is not None or head.scale != 1.0:
        student.mul_(slope)
    if _is_half(products.dtype):
        products[0] = student  # rounded once
    return torch.stack(values)


def _is_half(dtype: torch.dtype) -> bool:
    return dtype.itemsize < torch.float32.itemsize


def _rows_per_chunk(num_tokens: int, rows_that_fit: int, device_type: str) -> int:
    """Return the rows of a chunk, all chunks being of about one size."""
    rows = max(rows_that_fit, _LEAST_ROWS if device_type == "cpu" else _LEAST_ROWS_GPU)
    num_chunks = max(math.ceil(num_tokens / rows), 1)
    return math.ceil(num_tokens / num_chunks)


def _rows_per_block(products: Tensor) -> int:
    elements = _BLOCK_ELEMENTS if products.device.type == "cpu" else _BLOCK_ELEMENTS_GPU
    return max(elements // products.shape[-1], 1)


def _slices(length: int, step: int) -> Iterator[slice]:
    """Cut ``range(length)`` into slices of ``step``, the last one shorter."""
    for start in range(0, length, max(step, 1)):
        yield slice(start, min(start + step, length))
