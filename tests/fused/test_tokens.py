"""The token terms and their gradient against the definitions, differentiated by complex steps.

The definitions below are numpy in float64. Their gradient is ``Im f(x + ih) / h``, exact to
rounding for an ``h`` of 1e-30, so no derivative is written down by hand. Shapes: ``M`` tokens,
``D`` hidden size, ``V`` vocabulary, ``K`` kept candidates.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.fused import TokenCoefficients, TokenSettings, token_terms, tokens
from balora.models.head import LMHead

STEP = 1e-30
TERMS = TokenCoefficients._fields
VOCAB = 29
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "negative scale": {"scale": -1.7},
    "softcap": {"softcap": 2.5},
    "all": {"bias": True, "scale": 0.6, "softcap": 1.5},
}
SOFTMAXES = [*itertools.product([0.5, 1.0, 4.0], [None, 1, 5, VOCAB])]  # temperature, top-K
ALL = TokenCoefficients(0.9, 0.7, 0.3)
few_examples = settings(max_examples=40, deadline=None, derandomize=True)


def make_problem(rng, *, num_tokens=11, size=7, vocab=VOCAB, bias=False, **head):
    def randn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    targets = torch.randint(vocab, (num_tokens,), generator=rng)
    offset = randn(vocab) if bias else None
    hidden, reference = randn(num_tokens, size), randn(num_tokens, size)
    return hidden, reference, targets, LMHead(randn(vocab, size), offset, **head)


def alone(name, **softmax):
    """Return the settings with the one term ``name`` on, not multiplied."""
    return TokenSettings(
        TokenCoefficients(**{term: float(term == name) for term in TERMS}), **softmax
    )


def value_and_grad(hidden, reference, targets, head, terms, **options):
    rows = hidden.detach().clone().requires_grad_()
    found = token_terms(rows, reference, targets, head=head, settings=terms, **options)
    return found, torch.autograd.grad(found.loss, rows)[0]


# the definitions


def numpy_logits(rows, head):
    logits = rows @ head.weight.numpy().T
    logits = head.scale * (logits if head.bias is None else logits + head.bias.numpy())
    return logits if head.softcap is None else head.softcap * np.tanh(logits / head.softcap)


def log_softmax(logits):
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def row_terms(rows, reference, targets, head, terms):
    """Return task, consistency and diversity of each row, shape ``(3, M)``."""
    logits, temperature = numpy_logits(rows, head), terms.temperature
    task = -log_softmax(logits)[np.arange(len(rows)), targets.numpy()]
    log_p = log_softmax(logits / temperature)
    log_q = log_softmax(numpy_logits(reference.numpy(), head) / temperature)
    consistency = temperature**2 * (np.exp(log_q) * (log_q - log_p)).sum(axis=1)
    largest = np.argsort(-logits.real, axis=1)[:, : terms.entropy_top_k]
    log_r = log_softmax(np.take_along_axis(logits, largest, axis=1))
    diversity = (np.exp(log_r) * log_r).sum(axis=1)
    return np.stack([task, consistency, diversity])


def row_gradients(hidden, *problem):
    """Return the gradients of :func:`row_terms` by each row, shape ``(3, M, D)``."""
    steps = 1j * STEP * np.eye(hidden.shape[1])
    parts = [row_terms(hidden.numpy() + step, *problem).imag / STEP for step in steps]
    return np.stack(parts, axis=2)


# against the definitions, over several chunks and blocks


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 4, 4 and 3 rows, in blocks of 3 and 1, for eleven tokens and one byte."""
    monkeypatch.setattr(tokens, "_LEAST_ROWS", 4)
    monkeypatch.setattr(tokens, "_BLOCK_ELEMENTS", 4 * VOCAB - 1)


@pytest.mark.usefixtures("small_chunks")
def test_the_small_chunks_are_what_they_say(rng, monkeypatch):
    rows = {"_multiply": [], "_block": []}

    def spy(name):
        original = getattr(tokens, name)

        def seen(first, *args, **kwargs):
            rows[name].append(first.shape[-2])
            return original(first, *args, **kwargs)

        monkeypatch.setattr(tokens, name, seen)

    for name in rows:
        spy(name)
    value_and_grad(*make_problem(rng), alone("consistency"), chunk_bytes=1)
    assert rows == {"_multiply": [4, 4, 3], "_block": [3, 1, 3, 1, 3]}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("temperature", "top_k"), SOFTMAXES, ids=str)
def test_terms_and_gradients_match_the_definitions(temperature, top_k, head_settings, rng):
    problem = make_problem(rng, **head_settings)
    softmax = {"temperature": temperature, "entropy_top_k": top_k}
    together = TokenSettings(ALL, **softmax)
    values = row_terms(problem[0].numpy(), *problem[1:], together).sum(axis=1)
    grads = row_gradients(*problem, together)
    for name, value, expected in zip(TERMS, values, grads, strict=True):
        found, grad = value_and_grad(*problem, alone(name, **softmax), chunk_bytes=1)
        assert found.loss.item() == pytest.approx(value, rel=1e-10, abs=1e-12)
        assert getattr(found, name).item() == pytest.approx(value, rel=1e-10, abs=1e-12)
        assert [term for term in TERMS if getattr(found, term) is not None] == [name]
        np.testing.assert_allclose(grad.numpy(), expected, rtol=1e-9, atol=1e-12)
    found, grad = value_and_grad(*problem, together, chunk_bytes=1)
    assert found.loss.item() == pytest.approx(np.dot(ALL, values), rel=1e-10)
    np.testing.assert_allclose(grad.numpy(), np.tensordot(ALL, grads, 1), rtol=1e-9, atol=1e-12)


def test_terms_and_gradients_match_the_definitions_with_the_default_sizes(rng):
    # 384 rows at least: two chunks of 200; 2**19 elements: blocks of 104 and 96 rows
    problem = make_problem(rng, num_tokens=400, size=2, vocab=5000, bias=True)
    together = TokenSettings(ALL)
    found, grad = value_and_grad(*problem, together, chunk_bytes=2**20)
    values = row_terms(problem[0].numpy(), *problem[1:], together).sum(axis=1)
    assert [x.item() for x in found[1:4]] == pytest.approx(list(values), rel=1e-10)
    expected = np.tensordot(ALL, row_gradients(*problem, together), 1)
    np.testing.assert_allclose(grad.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
def test_counts_match_the_definitions(head_settings, rng):
    problem = make_problem(rng, **head_settings)
    logits = numpy_logits(problem[0].numpy(), problem[3])
    targets = problem[2]
    targets[::2] = torch.from_numpy(logits.argmax(axis=1))[::2]  # some are right
    log_p = log_softmax(logits)
    expected = (11, -(np.exp(log_p) * log_p).sum(), (logits.argmax(1) == targets.numpy()).sum())
    for terms in (alone("task"), TokenSettings(ALL, 2.0, 3)):  # whatever else is on
        found, _ = value_and_grad(*problem, terms)
        assert [count.item() for count in found.counts[:3]] == pytest.approx(expected, rel=1e-12)
        assert found.counts.num_correct >= 6


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", [*TERMS, "together"])
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
def test_gradcheck(head_settings, name, rng):
    hidden, reference, targets, head = make_problem(rng, num_tokens=5, **head_settings)
    softmax = {"temperature": 0.7, "entropy_top_k": 6}
    terms = TokenSettings(ALL, **softmax) if name == "together" else alone(name, **softmax)

    def loss(rows):
        return token_terms(rows, reference, targets, head=head, settings=terms, chunk_bytes=1).loss

    assert torch.autograd.gradcheck(loss, hidden.requires_grad_())


# by hand


LN3, LN4 = math.log(3), math.log(4)
ENTROPY = LN4 - 0.75 * LN3  # of (3/4, 1/4)
CAP = LN3 * 5 / 3  # CAP * tanh(ln 2) = ln 3, of slope 16/25


@pytest.mark.parametrize(
    ("terms", "value", "grad"),
    [
        (alone("task"), LN4, (3 / 4, -3 / 4)),  # p - (0, 1)
        (alone("consistency"), 0.5 * math.log(4 / 3), (1 / 4, -1 / 4)),  # p - q
        (alone("diversity"), -ENTROPY, (3 / 16 * LN3, -3 / 16 * LN3)),  # p (log p + H)
        (alone("diversity", entropy_top_k=2), -ENTROPY, (3 / 16 * LN3, -3 / 16 * LN3)),
        (alone("diversity", entropy_top_k=1), 0.0, (0.0, 0.0)),
    ],
    ids=["task", "consistency", "diversity", "all kept", "one kept"],
)
@pytest.mark.parametrize(
    ("head", "inputs", "slope"),
    [
        ({}, (LN3, 0.0), 1.0),
        ({"scale": 0.5}, (2 * LN3, 0.0), 0.5),
        ({"bias": torch.tensor([LN3, 1.0], dtype=torch.float64)}, (0.0, -1.0), 1.0),
        ({"softcap": CAP}, (CAP * math.log(2), 0.0), (16 / 25, 1.0)),
        ({"softcap": CAP, "scale": 2.0}, (CAP * math.log(2) / 2, 0.0), (32 / 25, 2.0)),
    ],
    ids=["plain", "scale", "bias", "softcap", "softcap and scale"],
)
def test_closed_forms(head, inputs, slope, terms, value, grad):
    # the head is the identity; the student is at p = (3/4, 1/4), the reference at (1/2, 1/2)
    head = LMHead(torch.eye(2, dtype=torch.float64), **head)
    hidden = torch.tensor([inputs], dtype=torch.float64)
    reference = torch.zeros(1, 2).double() if head.bias is None else -head.bias[None]
    found, actual = value_and_grad(hidden, reference, torch.tensor([1]), head, terms)
    assert found.loss.item() == pytest.approx(value, abs=1e-12)
    expected = np.multiply(slope, grad)
    np.testing.assert_allclose(actual[0].numpy(), expected, rtol=1e-12, atol=1e-12)
    assert found.counts.entropy.item() == pytest.approx(ENTROPY)


def test_closed_form_of_a_temperature():
    # at T = 2 the logits (2 ln 3, 0) are (3/4, 1/4): T^2 KL, and T (p - q) for the gradient
    hidden = torch.tensor([[2 * LN3, 0.0]], dtype=torch.float64)
    problem = (hidden, torch.zeros(1, 2).double(), torch.tensor([0]), LMHead(torch.eye(2).double()))
    found, grad = value_and_grad(*problem, alone("consistency", temperature=2.0))
    assert found.consistency.item() == pytest.approx(2 * math.log(4 / 3))
    np.testing.assert_allclose(grad.numpy(), [[1 / 2, -1 / 2]])


def test_closed_form_of_the_top_two_of_three():
    # what is not kept has no part in the value and no gradient
    hidden = torch.tensor([[0.0, -5.0, LN3]], dtype=torch.float64)
    problem = (hidden, None, torch.tensor([0]), LMHead(torch.eye(3).double()))
    found, grad = value_and_grad(*problem, alone("diversity", entropy_top_k=2))
    assert found.diversity.item() == pytest.approx(-ENTROPY)
    np.testing.assert_allclose(grad.numpy(), [[-3 / 16 * LN3, 0.0, 3 / 16 * LN3]])


def test_kl_is_of_the_reference_from_the_student():
    # the other direction would be infinite: the student all but excludes the second token
    hidden = torch.tensor([[800.0, 0.0]], dtype=torch.float64)
    reference = torch.tensor([[0.0, 800.0]], dtype=torch.float64)
    head = LMHead(torch.eye(2).double())
    found, grad = value_and_grad(hidden, reference, torch.tensor([0]), head, alone("consistency"))
    assert found.consistency.item() == pytest.approx(800.0)
    np.testing.assert_allclose(grad.numpy(), [[1.0, -1.0]])


def test_uniform_logits_have_the_least_diversity_term_and_no_gradient():
    problem = (torch.zeros(3, 2).double(), None, torch.arange(3), LMHead(torch.ones(7, 2).double()))
    found, grad = value_and_grad(*problem, alone("diversity"))
    assert found.diversity.item() == pytest.approx(-3 * math.log(7))
    assert grad.abs().max() < 1e-15


def test_huge_logits_stay_finite(rng):
    hidden, reference, targets, head = make_problem(rng)
    terms = TokenSettings(TokenCoefficients(1.0, 1.0, 1.0))
    for dtype in (torch.float32, torch.float64):
        head_of_dtype = LMHead(head.weight.to(dtype))
        rows, others = (1e4 * x.to(dtype) for x in (hidden, reference))
        found, grad = value_and_grad(rows, others, targets, head_of_dtype, terms)
        assert found.loss.isfinite()
        assert grad.isfinite().all()


# invariances


@few_examples
@given(
    num_tokens=st.integers(1, 30),
    vocab=st.integers(2, 40),
    chunk_bytes=st.integers(1, 20_000),
    least_rows=st.integers(1, 12),
    block_elements=st.integers(1, 400),
    has_reference=st.booleans(),
    seed=st.integers(0, 99),
)
def test_chunks_and_blocks_change_nothing(
    num_tokens, vocab, chunk_bytes, least_rows, block_elements, has_reference, seed
):
    rng = torch.Generator().manual_seed(seed)
    problem = make_problem(rng, num_tokens=num_tokens, vocab=vocab, bias=True, softcap=3.0)
    terms = TokenSettings(TokenCoefficients(1.0, 0.5 * has_reference, 0.7), temperature=2.0)
    expected, expected_grad = value_and_grad(*problem, terms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_LEAST_ROWS", least_rows)
        patch.setattr(tokens, "_BLOCK_ELEMENTS", block_elements)
        found, grad = value_and_grad(*problem, terms, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.counts[:3], expected.counts[:3], rtol=1e-12, atol=0)


def test_order_of_the_rows_changes_nothing(rng):
    hidden, reference, targets, head = make_problem(rng)
    order = torch.randperm(11, generator=rng)
    terms = TokenSettings(ALL, 2.0, 5)
    found, grad = value_and_grad(hidden, reference, targets, head, terms)
    permuted, permuted_grad = value_and_grad(
        hidden[order], reference[order], targets[order], head, terms
    )
    torch.testing.assert_close(permuted.loss, found.loss)
    torch.testing.assert_close(permuted_grad, grad[order])


@pytest.mark.usefixtures("small_chunks")
def test_gradient_of_a_row_does_not_depend_on_the_others(rng):
    hidden, reference, targets, head = make_problem(rng, bias=True)
    terms = TokenSettings(ALL, 2.0, 5)
    _, grad = value_and_grad(hidden, reference, targets, head, terms, chunk_bytes=1)
    for i in (0, 5, 10):
        one = slice(i, i + 1)
        _, own = value_and_grad(hidden[one], reference[one], targets[one], head, terms)
        torch.testing.assert_close(own, grad[one], rtol=1e-12, atol=1e-14)


def test_a_constant_in_the_bias_changes_nothing(rng):
    hidden, reference, targets, head = make_problem(rng, bias=True, scale=0.5)
    shifted = LMHead(head.weight, head.bias + 3.0, scale=0.5)
    for terms in (TokenSettings(ALL), TokenSettings(ALL, 2.0, 5)):
        found, grad = value_and_grad(hidden, reference, targets, head, terms)
        same, same_grad = value_and_grad(hidden, reference, targets, shifted, terms)
        torch.testing.assert_close(same.loss, found.loss)
        torch.testing.assert_close(same_grad, grad)


def test_keeping_all_candidates_is_the_full_entropy(rng):
    problem = make_problem(rng)
    full, full_grad = value_and_grad(*problem, alone("diversity"))
    kept, kept_grad = value_and_grad(*problem, alone("diversity", entropy_top_k=VOCAB))
    torch.testing.assert_close(kept.diversity, full.diversity)
    torch.testing.assert_close(kept_grad, full_grad)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 2.0])
def test_at_the_reference_kl_and_gradient_are_exactly_0(temperature, dtype, head_settings, rng):
    hidden, _, targets, head = make_problem(rng, **head_settings)
    rows, bias = hidden.to(dtype), None if head.bias is None else head.bias.to(dtype)
    head = LMHead(head.weight.to(dtype), bias, head.scale, head.softcap)
    terms = alone("consistency", temperature=temperature)
    found, grad = value_and_grad(rows, rows, targets, head, terms, chunk_bytes=1)
    assert found.consistency.item() == 0.0
    assert not grad.any()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_next_to_the_reference_no_row_has_a_negative_kl(temperature, rng):
    hidden, _, targets, head = make_problem(rng)
    rows, head = hidden.float(), LMHead(head.weight.float())
    terms = alone("consistency", temperature=temperature)
    for row, target in zip(rows, targets, strict=True):  # rounding of each shows, not of the sum
        near = (row + 1e-6)[None]
        found, grad = value_and_grad(near, row[None], target[None], head, terms)
        assert found.consistency.item() >= 0.0
        assert bool(grad.any())
