"""What the objective does not do: products, matrices and looks that it has no need of.

Shapes: ``M`` tokens, ``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

import itertools
import types

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from balora.config import BALoraConfig
from balora.fused import (
    FusedObjective,
    HeadFactor,
    TokenCoefficients,
    TokenSettings,
    block,
    token_terms,
    tokens,
)
from balora.fused import objective as objective_module
from balora.models.head import LMHead
from balora.objective import Coefficients

VOCAB, SIZE = 101, 6
ON_AND_OFF = [*itertools.product([0.0, 1.0], repeat=3)]


class Recorder(TorchDispatchMode):
    """Records the dtypes of the products with the head, and the largest tensor that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[torch.dtype] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket == torch.ops.aten.mm:
            self.products.append(args[0].dtype)
        if isinstance(result, Tensor) and not _shares_memory(result, args):
            self.largest = max(self.largest, result.numel())
        return result


class PeakMemory(TorchDispatchMode):
    """Records the most bytes that the tensors made inside take up at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        for tensor in (t for t in made if isinstance(t, Tensor) and not _shares_memory(t, args)):
            storage = tensor.untyped_storage()
            self._made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self._made = {p: (ref, n) for p, (ref, n) in self._made.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return result


def _shares_memory(result, args):
    """Say whether a result is a view of an argument rather than new."""
    storage = result.untyped_storage().data_ptr()
    return any(isinstance(a, Tensor) and a.untyped_storage().data_ptr() == storage for a in args)


class Unusable:
    """Raises whatever is done with it."""

    def __getattribute__(self, name):
        raise AssertionError(f"`{name}` of something that is off was used")


def raising(*_args, **_kwargs):
    raise AssertionError("a term that is off was computed")


def make_problem(rng, *, num_tokens=23, vocab=VOCAB, dtype=torch.float32, **head):
    hidden, reference = (torch.randn(num_tokens, SIZE, generator=rng).to(dtype) for _ in range(2))
    targets = torch.randint(vocab, (num_tokens,), generator=rng)
    weight = torch.randn(vocab, SIZE, generator=rng).to(dtype)
    return hidden.requires_grad_(), reference, targets, LMHead(weight, **head)


def settings_of(*coefficients, **softmax):
    return TokenSettings(TokenCoefficients(*map(float, coefficients)), **softmax)


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("coefficients", ON_AND_OFF, ids=str)
def test_number_of_products(coefficients, needs_grad, rng):
    hidden, reference, targets, head = make_problem(rng)
    with Recorder() as recorder:
        found = token_terms(
            hidden.requires_grad_(needs_grad),
            reference,
            targets,
            head=head,
            settings=settings_of(*coefficients),
        )
        if needs_grad:
            found.loss.backward()
    # the student's, the reference's, the gradient's; backward has none of its own
    assert len(recorder.products) == 1 + bool(coefficients[1]) + needs_grad
    assert found.loss.requires_grad == needs_grad


@pytest.mark.parametrize(
    ("dtype", "autocast", "expected"),
    [
        (torch.float64, False, torch.float64),
        (torch.float32, False, torch.float32),
        (torch.bfloat16, False, torch.bfloat16),
        (torch.float16, False, torch.float16),
        (torch.float32, True, torch.bfloat16),
        (torch.float16, True, torch.bfloat16),
    ],
)
def test_dtype_of_the_products(dtype, autocast, expected, rng):
    hidden, reference, targets, head = make_problem(rng, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Recorder() as recorder:
        found = token_terms(hidden, reference, targets, head=head, settings=settings_of(1, 1, 1))
        found.loss.backward()
    assert recorder.products == [expected] * 3
    assert found.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert hidden.grad.dtype == dtype


@pytest.mark.parametrize("coefficients", [c for c in ON_AND_OFF if not c[1]], ids=str)
def test_without_the_consistency_the_reference_is_not_looked_at(coefficients, rng):
    hidden, _, targets, head = make_problem(rng)
    found = token_terms(hidden, Unusable(), targets, head=head, settings=settings_of(*coefficients))
    expected = token_terms(hidden, None, targets, head=head, settings=settings_of(*coefficients))
    assert found.consistency is None
    assert torch.equal(found.loss, expected.loss)
    objective = FusedObjective(BALoraConfig(consistency_coef=0.0))
    assert objective(hidden, Unusable(), targets, head=head).terms.consistency is None


@pytest.mark.parametrize("name", ["consistency", "diversity", "svd", None])
@pytest.mark.parametrize("top_k", [None, 5])
def test_a_term_that_is_off_is_none_and_is_not_computed(top_k, name, rng, monkeypatch):
    hidden, reference, targets, head = make_problem(rng)
    if name != "consistency":
        monkeypatch.setattr(block, "_add_consistency", raising)
    if name != "diversity":
        monkeypatch.setattr(block, "_add_top_k", raising)
    if name != "svd":
        monkeypatch.setattr(objective_module, "HeadFactor", raising)
    coefficients = Coefficients(*(float(term == name) for term in Coefficients._fields))
    objective = FusedObjective(BALoraConfig(entropy_top_k=top_k))
    _, terms, _ = objective(hidden, reference, targets, head=head, coefficients=coefficients)
    assert [term for term, value in terms._asdict().items() if value is not None] == [
        "task",
        *([] if name is None else [name]),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_held_for_one_chunk_at_a_time(dtype, rng, monkeypatch):
    monkeypatch.setattr(tokens, "_LEAST_ROWS", 8)
    monkeypatch.setattr(tokens, "_BLOCK_ELEMENTS", 2 * 3000)
    hidden, reference, targets, head = make_problem(rng, num_tokens=64, vocab=3000, dtype=dtype)
    objective = FusedObjective(BALoraConfig(), chunk_bytes=1)
    with Recorder() as recorder:
        objective(hidden, reference, targets, head=head).loss.backward()
    # two models by eight rows; the plain objective makes eight times as much, several times
    assert recorder.largest == 2 * 8 * 3000


def peak_memory(num_tokens, objective, rng, **problem):
    hidden, reference, targets, head = make_problem(rng, num_tokens=num_tokens, **problem)
    objective(hidden[:1], reference[:1], targets[:1], head=head)  # the head's factor is kept
    with PeakMemory() as memory:
        objective(hidden, reference, targets, head=head).loss.backward()
    return memory.peak


@pytest.mark.parametrize("config", [{}, {"temperature": 2.0, "entropy_top_k": 5}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_the_tokens_beyond_a_chunk(dtype, config, rng):
    # at 384 rows a chunk: two chunks and eight. The SVD term sees no more rows than 100
    vocab, objective = (
        3000,
        FusedObjective(BALoraConfig(svd_max_tokens=100, **config), chunk_bytes=1),
    )
    few, many = (
        peak_memory(num_tokens, objective, rng, vocab=vocab, dtype=dtype)
        for num_tokens in (768, 3072)
    )
    assert few >= 2 * 384 * vocab * dtype.itemsize
    # a token costs its gradient and its five values, in float32, and nothing of the vocabulary
    assert many - few <= (3072 - 768) * (SIZE + 5) * 4


@pytest.mark.parametrize(("dtype", "buffers"), [(torch.float32, 3), (torch.bfloat16, 5)])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_few_tokens_take_little_room(num_tokens, dtype, buffers, rng):
    # a block would have ten rows; nor is the head copied
    problem = make_problem(rng, num_tokens=num_tokens, vocab=50_000, dtype=dtype)
    with Recorder() as recorder:
        token_terms(*problem[:3], head=problem[3], settings=settings_of(1, 1, 1))
    assert recorder.largest == buffers * num_tokens * 50_000


# chunks


def rows_of_chunks(monkeypatch, num_tokens, vocab, chunk_bytes, rng, *, dtype=torch.float32, **on):
    """Return how many rows each chunk has, and the most that a block has."""
    seen, blocks = [], []
    multiply, finish = tokens._multiply, tokens._block

    def spy_multiply(hidden, *args, **kwargs):
        seen.append(len(hidden))
        multiply(hidden, *args, **kwargs)

    def spy_block(products, *args):
        blocks.append(products.shape[1])
        return finish(products, *args)

    monkeypatch.setattr(tokens, "_multiply", spy_multiply)
    monkeypatch.setattr(tokens, "_block", spy_block)
    hidden, reference, targets, head = make_problem(
        rng, num_tokens=num_tokens, vocab=vocab, dtype=dtype
    )
    settings = settings_of(*on.get("coefficients", (1, 1, 1)))
    token_terms(hidden, reference, targets, head=head, settings=settings, chunk_bytes=chunk_bytes)
    assert sum(blocks) == sum(seen) == num_tokens
    return seen, max(blocks)


def test_the_least_rows_win_over_the_bytes(monkeypatch, rng):
    assert rows_of_chunks(monkeypatch, 800, 3, 1, rng)[0] == [267, 267, 266]  # at most 384


def test_chunks_are_of_one_size(monkeypatch, rng):
    assert rows_of_chunks(monkeypatch, 1500, 3, 1, rng)[0] == [375] * 4
    monkeypatch.undo()
    assert rows_of_chunks(monkeypatch, 770, 3, 1, rng)[0] == [257, 257, 256]


@pytest.mark.parametrize(
    ("dtype", "coefficients", "bytes_of_a_row"),
    [
        (torch.float32, (1, 1, 1), 2 * 7 * 4),  # two models by seven tokens by four bytes
        (torch.float32, (1, 0, 1), 7 * 4),
        (torch.bfloat16, (1, 1, 1), 2 * 7 * 2),
        (torch.float64, (1, 1, 1), 2 * 7 * 8),
    ],
)
def test_more_rows_are_taken_where_the_bytes_allow(
    dtype, coefficients, bytes_of_a_row, monkeypatch, rng
):
    on = {"dtype": dtype, "coefficients": coefficients}
    fits = rows_of_chunks(monkeypatch, 900, 7, 450 * bytes_of_a_row, rng, **on)[0]
    assert fits == [450, 450]
    monkeypatch.undo()
    assert rows_of_chunks(monkeypatch, 900, 7, 900 * bytes_of_a_row, rng, **on)[0] == [900]


@pytest.mark.parametrize(("elements", "rows"), [(1, 1), (102, 1), (5 * VOCAB + 1, 5)])
def test_a_block_has_at_least_one_row(elements, rows, monkeypatch, rng):
    monkeypatch.setattr(tokens, "_BLOCK_ELEMENTS", elements)
    assert rows_of_chunks(monkeypatch, 13, VOCAB, 2**20, rng) == ([13], rows)


def test_a_gpu_gets_larger_chunks_and_blocks():
    assert tokens._rows_per_chunk(3000, 1, "cuda") == 1000
    assert tokens._rows_per_block(torch.empty(1, 2**17, device="meta")) == 2**10


@pytest.fixture
def kernels():
    """The function that finds the kernel, which has found none yet and forgets what it finds."""
    tokens._kernel.cache_clear()
    yield tokens._kernel
    tokens._kernel.cache_clear()


def test_a_kernel_that_cannot_be_built_is_said_once_and_done_without(kernels, monkeypatch, caplog):
    def fail(name):
        raise RuntimeError("Failed to find C compiler.\nPlease install one.")

    monkeypatch.setattr(tokens.importlib, "import_module", fail)
    assert kernels(torch.device("cpu"), torch.float32) is None
    assert caplog.messages == []
    for _ in range(3):
        assert kernels(torch.device("cuda"), torch.bfloat16) is None
    (message,) = caplog.messages
    assert message.endswith("in more memory: RuntimeError: Failed to find C compiler.")


def test_too_little_memory_is_no_verdict_on_the_kernel(kernels, monkeypatch, caplog):
    def fail(name):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tokens.importlib, "import_module", fail)
    with pytest.raises(torch.OutOfMemoryError):
        kernels(torch.device("cuda"), torch.bfloat16)
    module = types.SimpleNamespace(DTYPES=(), check_works=None)
    monkeypatch.setattr(tokens.importlib, "import_module", lambda name: module)
    assert kernels(torch.device("cuda"), torch.bfloat16) is module
    assert caplog.messages == []


# what is left behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_never_written_to(dtype, rng):
    hidden, reference, targets, head = make_problem(rng, dtype=dtype, softcap=3.0, scale=0.5)
    bias = torch.randn(VOCAB, generator=rng).to(dtype)
    head = LMHead(head.weight, bias, head.scale, head.softcap)
    inputs = (hidden, reference, targets, head.weight, bias)
    before = [(x.detach().clone(), x._version) for x in inputs]
    config = BALoraConfig(temperature=2.0, entropy_top_k=3, svd_variance_coef=0.1)
    FusedObjective(config)(hidden, reference, targets, head=head).loss.backward()
    for tensor, (copy, version) in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor._version == version


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_is_not_the_buffer_of_the_graph(dtype, rng):
    hidden, reference, targets, head = make_problem(rng, dtype=dtype)
    settings = settings_of(1, 1, 1)
    loss = token_terms(hidden, reference, targets, head=head, settings=settings).loss
    (first,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    assert torch.equal(second, kept)
    (thrice,) = torch.autograd.grad(3 * loss, hidden)
    torch.testing.assert_close(thrice, 3 * kept, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("weight", [1.0, torch.tensor(2.0, requires_grad=True)], ids=type)
def test_second_derivatives_are_refused(weight, rng):
    hidden, reference, targets, head = make_problem(rng)
    settings = settings_of(1, 1, 1)
    loss = token_terms(hidden, reference, targets, head=head, settings=settings).loss
    (grad,) = torch.autograd.grad(weight * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


def test_the_graph_is_freed_after_backward(rng):
    hidden, reference, targets, head = make_problem(rng)
    settings = settings_of(1, 1, 1)
    loss = token_terms(hidden, reference, targets, head=head, settings=settings).loss
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_layout_of_the_states_does_not_matter(layout, rng):
    hidden, reference, targets, head = make_problem(rng, dtype=torch.float64)
    rows = {
        "transposed": hidden.detach().mT.contiguous().mT,
        "sliced": torch.stack([hidden.detach(), reference], dim=1)[:, 0],
        "expanded": hidden.detach()[:1].expand(23, -1),
    }[layout]
    grads = []
    for states in (rows.detach(), rows.detach().contiguous()):
        states.requires_grad_()
        found = token_terms(states, reference, targets, head=head, settings=settings_of(1, 1, 1))
        grads.append(torch.autograd.grad(found.loss, states)[0])
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


def test_a_factor_is_not_made_of_the_whole_head_at_once(rng, monkeypatch):
    # float64 copies of 40 rows of the head at a time
    monkeypatch.setattr("balora.fused.spectral._BLOCK_ROWS", 40)
    *_, head = make_problem(rng, vocab=1000)
    with Recorder() as recorder:
        HeadFactor(head)
    assert recorder.largest <= 40 * SIZE


def test_a_factor_is_made_in_the_place_of_the_gram_matrix(rng):
    size = 1024  # a quarter of which are the rows of the head that are held beside it
    head = LMHead(torch.randn(2048, size, generator=rng))
    with PeakMemory() as memory:
        HeadFactor(head)
    assert memory.peak < 1.3 * 8 * size**2
