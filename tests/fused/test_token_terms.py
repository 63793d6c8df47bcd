"""Cross-entropy, consistency and diversity by chunks, against the definition and by hand.

Shapes: ``M`` tokens, ``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.config import BALoraConfig
from balora.fused import TokenCoefficients, TokenSettings, token_terms, tokens
from balora.head import LMHead
from balora.objective import Coefficients, Normalizer, nlg_objective

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.3},
    "scaled, capped, bias": {"scale": 1.7, "softcap": 2.5, "bias": True},
}
SETTINGS = {
    "task": TokenSettings(TokenCoefficients(1.0, 0.0, 0.0)),
    "consistency": TokenSettings(TokenCoefficients(0.0, 1.0, 0.0)),
    "consistency at T = 4": TokenSettings(TokenCoefficients(0.0, 1.0, 0.0), temperature=4.0),
    "consistency at T = 1/2": TokenSettings(TokenCoefficients(0.0, 1.0, 0.0), temperature=0.5),
    "diversity": TokenSettings(TokenCoefficients(0.0, 0.0, 1.0)),
    "diversity of the top 3": TokenSettings(TokenCoefficients(0.0, 0.0, 1.0), entropy_top_k=3),
    "all": TokenSettings(TokenCoefficients(0.9, 0.7, 0.3), temperature=2.0, entropy_top_k=5),
    "all of all": TokenSettings(TokenCoefficients(1.0, 0.7, 0.3)),
}
few_examples = settings(max_examples=30, deadline=None, derandomize=True)


def make_problem(rng, *, num_tokens=11, size=7, vocab=29, dtype=torch.float64, bias=False, **head):
    def randn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    offset = randn(vocab) if bias else None
    hidden, reference = randn(num_tokens, size), randn(num_tokens, size)
    targets = torch.randint(vocab, (num_tokens,), generator=rng)
    return hidden, reference, targets, LMHead(randn(vocab, size), offset, **head)


def softmax(logits):
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def definition(hidden, reference, targets, head, settings):
    """Return task, consistency and diversity summed over the tokens, one at a time, in float64."""

    def logits_of(row):
        z = head.weight.double().numpy() @ row.double().numpy()
        z = head.scale * (z if head.bias is None else z + head.bias.double().numpy())
        return z if head.softcap is None else head.softcap * np.tanh(z / head.softcap)

    task = consistency = diversity = 0.0
    temperature = settings.temperature
    for row, row_ref, target in zip(hidden.detach(), reference, targets.tolist(), strict=True):
        z, z_ref = logits_of(row), logits_of(row_ref)
        task -= math.log(softmax(z)[target])
        p, q = softmax(z / temperature), softmax(z_ref / temperature)
        consistency += temperature**2 * float((q * np.log(q / p)).sum())
        kept = softmax(np.sort(z)[::-1][: settings.entropy_top_k or len(z)])
        diversity += float((kept * np.log(kept)).sum())
    return task, consistency, diversity


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of four rows and blocks of three: the last ones are shorter."""
    monkeypatch.setattr(tokens, "_LEAST_ROWS", 4)
    monkeypatch.setattr(tokens, "_BLOCK_ELEMENTS", 3 * 29)


@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("terms", SETTINGS.values(), ids=SETTINGS)
def test_values_match_the_definition(terms, head_settings, rng, small_chunks):
    problem = make_problem(rng, **head_settings)
    found = token_terms(*problem[:3], head=problem[3], settings=terms, chunk_bytes=1)
    expected = definition(*problem, terms)
    for name, value in zip(("task", "consistency", "diversity"), expected, strict=True):
        if getattr(terms.coefficients, name):
            assert getattr(found, name).item() == pytest.approx(value, rel=1e-9)
        else:
            assert getattr(found, name) is None
    weighted = sum(c * value for c, value in zip(terms.coefficients, expected, strict=True))
    assert found.loss.item() == pytest.approx(weighted, rel=1e-9)


@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("terms", SETTINGS.values(), ids=SETTINGS)
def test_gradcheck(terms, head_settings, rng, small_chunks):
    hidden, reference, targets, head = make_problem(rng, num_tokens=6, **head_settings)

    def loss(rows):
        return token_terms(rows, reference, targets, head=head, settings=terms).loss

    assert torch.autograd.gradcheck(loss, hidden.requires_grad_())


def test_closed_form():
    # logits (ln 3, 0), so p = (3/4, 1/4); those of the reference are (0, 0), so q = (1/2, 1/2)
    head = LMHead(torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    hidden = torch.tensor([[math.log(3)]], dtype=torch.float64, requires_grad=True)
    found = token_terms(
        hidden,
        torch.zeros_like(hidden),
        torch.tensor([1]),
        head=head,
        settings=TokenSettings(TokenCoefficients(1.0, 10.0, 100.0)),
    )
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.task.item() == pytest.approx(math.log(4))
    assert found.consistency.item() == pytest.approx(0.5 * math.log(4 / 3))
    assert found.diversity.item() == pytest.approx(-entropy)
    assert found.counts == (1.0, pytest.approx(entropy), 0.0)
    found.loss.backward()
    # by the first logit: p - 0, p - q, p (log p + H)
    expected = 0.75 + 10 * 0.25 + 100 * 0.75 * (math.log(0.75) + entropy)
    assert hidden.grad.item() == pytest.approx(expected)


@few_examples
@given(
    num_tokens=st.integers(1, 23),
    size=st.integers(1, 9),
    vocab=st.integers(2, 40),
    chunk_bytes=st.integers(1, 40_000),
    coefficients=st.tuples(*[st.sampled_from([0.0, 0.4, 1.0])] * 3),
    head_settings=st.sampled_from(list(HEADS.values())),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_plain_objective_whatever_the_chunks(
    num_tokens, size, vocab, chunk_bytes, coefficients, head_settings, seed
):
    rng = torch.Generator().manual_seed(seed)
    shape = {"num_tokens": num_tokens, "size": size, "vocab": vocab}
    hidden, reference, targets, head = make_problem(rng, **shape, **head_settings)
    hidden.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_LEAST_ROWS", 1)
        patch.setattr(tokens, "_BLOCK_ELEMENTS", 2 * vocab)
        found = token_terms(
            hidden,
            reference,
            targets,
            head=head,
            settings=TokenSettings(TokenCoefficients(*coefficients)),
            chunk_bytes=chunk_bytes,
        )
    plain = nlg_objective(
        hidden,
        reference,
        targets,
        head=head,
        config=BALoraConfig(),
        normalizer=Normalizer(1),
        coefficients=Coefficients(coefficients[1], coefficients[2], 0.0),
    )
    expected = plain.loss + (coefficients[0] - 1) * plain.terms.task
    torch.testing.assert_close(found.loss, expected, rtol=1e-9, atol=1e-9)
    for count, other in zip(found.counts, plain.counts, strict=True):
        assert count.item() == pytest.approx(other.item(), rel=1e-9)
    grads = [torch.autograd.grad(loss, hidden)[0] for loss in (found.loss, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("terms", SETTINGS.values(), ids=SETTINGS)
def test_float32_agrees_with_the_definition(terms, rng):
    problem = make_problem(rng, num_tokens=40, size=64, vocab=1000, dtype=torch.float32)
    scaled = problem[3].weight.mul_(0.2)
    found = token_terms(*problem[:3], head=LMHead(scaled), settings=terms)
    expected = definition(*problem[:3], LMHead(scaled), terms)
    weighted = sum(c * value for c, value in zip(terms.coefficients, expected, strict=True))
    assert found.loss.item() == pytest.approx(weighted, rel=2e-6)


def test_the_reference_itself_is_at_zero(rng):
    hidden, _, targets, head = make_problem(rng)
    hidden.requires_grad_()
    terms = SETTINGS["consistency"]
    found = token_terms(hidden, hidden.detach(), targets, head=head, settings=terms)
    found.loss.backward()
    assert found.consistency.item() == 0
    assert not hidden.grad.any()
    terms = SETTINGS["consistency at T = 4"]
    found = token_terms(hidden, hidden.detach(), targets, head=head, settings=terms)
    assert found.consistency.item() == pytest.approx(0, abs=1e-13)


def kl_problem(kl, rng):
    """Return bfloat16 inputs whose KL is about ``kl`` nats per token, with logits of scale 3."""
    size, vocab, num_tokens = 512, 8192, 64
    weight = (torch.randn(vocab, size, generator=rng) * 3 / math.sqrt(size)).bfloat16()
    reference = torch.randn(num_tokens, size, generator=rng).bfloat16()
    noise = torch.randn(num_tokens, size, generator=rng)
    targets = torch.randint(vocab, (num_tokens,), generator=rng)
    amount = math.sqrt(2 * kl) / 3
    for _ in range(8):
        hidden = (reference.float() + amount * noise).bfloat16()
        found = exact_consistency(hidden, reference, weight)[0] / num_tokens
        amount *= math.sqrt(kl / found)
    return hidden, reference, targets, weight


def exact_consistency(hidden, reference, weight):
    """Return the sum of the KL and its gradient in float64 from the same rounded inputs."""
    rows = hidden.double().requires_grad_()
    student = (rows @ weight.double().T).log_softmax(dim=1)
    target = (reference.double() @ weight.double().T).log_softmax(dim=1)
    kl = (target.exp() * (target - student)).sum()
    kl.backward()
    return kl.item(), rows.grad


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kl", [4e-3, 4.5e-4])
def test_consistency_near_the_reference_in_bfloat16(kl, rng):
    hidden, reference, targets, weight = kl_problem(kl, rng)
    exact, exact_grad = exact_consistency(hidden, reference, weight)
    assert exact / len(hidden) == pytest.approx(kl, rel=0.05)
    hidden.requires_grad_()
    terms = SETTINGS["consistency"]
    found = token_terms(hidden, reference, targets, head=LMHead(weight), settings=terms)
    found.loss.backward()
    assert found.consistency.item() == pytest.approx(exact, rel=0.02)
    assert relative_error(hidden.grad, exact_grad) < 0.02
    # what rounding the logits of each model by itself would give
    rows = hidden.detach().requires_grad_()
    student = (rows @ weight.T).float().log_softmax(dim=1)
    target = (reference @ weight.T).float().log_softmax(dim=1)
    (target.exp() * (target - student)).sum().backward()
    assert relative_error(rows.grad, exact_grad) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_costs_its_rounding(dtype, rng):
    hidden, reference, targets, head = make_problem(rng, num_tokens=50, size=64, vocab=500)
    weight = (head.weight * 0.2).to(dtype)
    hidden, reference = hidden.to(dtype).requires_grad_(), reference.to(dtype)
    terms = SETTINGS["all of all"]
    found = token_terms(hidden, reference, targets, head=LMHead(weight), settings=terms)
    expected = definition(hidden, reference, targets, LMHead(weight), terms)
    assert found.loss.dtype == torch.float32
    assert [x.item() for x in found[1:4]] == pytest.approx(expected, rel=5e-3)
    found.loss.backward()
    assert hidden.grad.dtype == dtype
    exact = hidden.detach().double().requires_grad_()
    head64 = LMHead(weight.double())
    token_terms(exact, reference.double(), targets, head=head64, settings=terms).loss.backward()
    assert relative_error(hidden.grad, exact.grad) < 0.01


def test_autocast_multiplies_in_its_own_dtype(rng):
    problem = make_problem(rng, num_tokens=30, size=32, vocab=100, dtype=torch.float32)
    hidden, reference, targets, head = problem
    hidden.requires_grad_()
    terms = SETTINGS["all of all"]
    exact = token_terms(hidden, reference, targets, head=head, settings=terms).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_terms(hidden, reference, targets, head=head, settings=terms).loss
    assert 0 < abs(found.item() - exact.item()) < 5e-3 * abs(exact.item())
    found.backward()
    assert hidden.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("coefficients", "needs_grad", "products"),
    [((1, 1, 1), True, 3), ((1, 0, 1), True, 2), ((1, 1, 1), False, 2), ((1, 0, 0), False, 1)],
)
def test_what_is_off_is_not_multiplied(coefficients, needs_grad, products, rng, monkeypatch):
    hidden, reference, targets, head = make_problem(rng)
    calls, multiply = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: calls.append(a) or multiply(*a, **k))
    token_terms(
        hidden.requires_grad_(needs_grad),
        reference if coefficients[1] else None,
        targets,
        head=head,
        settings=TokenSettings(TokenCoefficients(*map(float, coefficients))),
    )
    assert len(calls) == products


def test_no_tokens_gives_zeros_in_the_graph(rng):
    hidden, reference, targets, head = make_problem(rng, num_tokens=0)
    hidden.requires_grad_()
    found = token_terms(hidden, reference, targets, head=head, settings=SETTINGS["all"])
    found.loss.backward()
    assert found.loss.item() == 0
    assert hidden.grad.shape == (0, 7)
    assert [count.item() for count in found.counts] == [0, 0, 0]


def test_backward_scales_repeats_and_leaves_the_inputs_alone(rng):
    hidden, reference, targets, head = make_problem(rng)
    copies = [tensor.clone() for tensor in (hidden, reference, targets, head.weight)]
    hidden.requires_grad_()
    found = token_terms(hidden, reference, targets, head=head, settings=SETTINGS["all"])
    (once,) = torch.autograd.grad(found.loss, hidden, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * found.loss, hidden, retain_graph=True)
    (again,) = torch.autograd.grad(found.loss, hidden)
    torch.testing.assert_close(thrice, 3 * once)
    assert torch.equal(again, once)
    assert not found.consistency.requires_grad
    inputs = (hidden.detach(), reference, targets, head.weight)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize(
    ("num_tokens", "rows_that_fit", "expected"),
    [
        (0, 10, 0),
        (1, 0, 1),  # one row always fits
        (100, 0, 100),
        (512, 300, 256),  # two of one size
        (512, 0, 256),  # the least rows win over the bytes
        (1000, 600, 500),
        (1000, 10**6, 1000),
    ],
)
def test_rows_of_a_chunk(num_tokens, rows_that_fit, expected):
    assert tokens._rows_per_chunk(num_tokens, rows_that_fit, "cpu") == expected
