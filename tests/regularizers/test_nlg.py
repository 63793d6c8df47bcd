"""The NLG terms against a float64 loop, by hand, and against their nearest wrong implementations.

Shapes: ``M`` tokens, ``V`` vocabulary, ``K`` kept candidates.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.regularizers import nlg

SHAPES = [(1, 2), (7, 13), (64, 1000)]  # M, V: smallest legal, awkward primes, realistic
HALF = [torch.bfloat16, torch.float16]
few_examples = settings(max_examples=40, deadline=None, derandomize=True)
shapes_and_seeds = {
    "num_tokens": st.integers(1, 12),
    "vocab_size": st.integers(2, 30),
    "seed": st.integers(0, 999),
}


def log_probabilities(row: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    return row / temperature - np.logaddexp.reduce(row / temperature)


def consistency_reference(student, reference, temperature: float) -> float:
    """The definition, one token at a time, in float64."""
    total = 0.0
    for s, t in zip(student.double().numpy(), reference.double().numpy(), strict=True):
        log_q, log_p = log_probabilities(s, temperature), log_probabilities(t, temperature)
        total += float((np.exp(log_p) * (log_p - log_q)).sum())
    return temperature**2 * total / len(student)


def diversity_reference(logits, top_k: int | None = None) -> float:
    """Minus the entropy, one token at a time, in float64."""
    total = 0.0
    for row in logits.detach().double().numpy():
        log_q = log_probabilities(np.sort(row)[::-1][:top_k])
        total += float((np.exp(log_q) * log_q).sum())
    return total / len(logits)


def draw(num_tokens: int, vocab_size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_tokens, vocab_size, generator=rng, dtype=torch.float64)


# Consistency (Eq. 10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_consistency_matches_reference(shape, temperature, rng):
    student, reference = torch.randn(*shape, generator=rng), torch.randn(*shape, generator=rng)
    expected = consistency_reference(student, reference, temperature)
    actual = nlg.consistency_loss(student, reference, temperature=temperature)
    torch.testing.assert_close(actual.item(), expected, rtol=1e-5, atol=1e-6)


def test_consistency_is_forward_kl_from_reference_to_student():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL(p || q) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.131,
    # while KL(q || p) = 1/2 ln(2/3) + 1/2 ln(2) = 0.144.
    reference, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert nlg.consistency_loss(student, reference).item() == pytest.approx(expected, rel=1e-6)


def test_consistency_has_the_factor_temperature_squared():
    # At T = 2 the logits (ln 9, 0) are the p of the case above, so the value is 4 times that.
    reference, student = torch.tensor([[math.log(9.0), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    actual = nlg.consistency_loss(student, reference, temperature=2.0)
    assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_consistency_is_a_mean_over_tokens(rng):
    student, reference = torch.randn(2, 5, 9, generator=rng).unbind()
    once = nlg.consistency_loss(student, reference)
    twice = nlg.consistency_loss(student.repeat(2, 1), reference.repeat(2, 1))
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_consistency_gradient_is_t_times_student_minus_reference(temperature, rng):
    student, reference = torch.randn(2, 5, 9, generator=rng, dtype=torch.float64).unbind()
    student.requires_grad_()
    nlg.consistency_loss(student, reference, temperature=temperature).backward()
    q, p = ((x.detach() / temperature).softmax(-1) for x in (student, reference))
    torch.testing.assert_close(student.grad, temperature * (q - p) / 5)


def test_consistency_holds_the_reference_constant(rng):
    student, reference = torch.randn(2, 5, 9, generator=rng).unbind()
    student.requires_grad_()
    reference = reference.clone().requires_grad_()
    nlg.consistency_loss(student, reference).backward()
    assert reference.grad is None
    assert student.grad.abs().max() > 0


@few_examples
@given(**shapes_and_seeds, shift=st.floats(-50, 50))
def test_consistency_is_a_divergence(num_tokens, vocab_size, seed, shift):
    student, reference = (draw(num_tokens, vocab_size, s, scale=3.0) for s in (seed, seed + 1000))
    value = nlg.consistency_loss(student, reference)
    assert value > 0
    torch.testing.assert_close(nlg.consistency_loss(student + shift, reference), value)
    torch.testing.assert_close(nlg.consistency_loss(student, reference - shift), value)
    turned = nlg.consistency_loss(student.flip(0, 1), reference.flip(0, 1))
    torch.testing.assert_close(turned, value)
    same = nlg.consistency_loss(student + shift, student)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_consistency_gradcheck(temperature, rng):
    student, reference = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).unbind()
    loss = partial(nlg.consistency_loss, reference_logits=reference, temperature=temperature)
    assert torch.autograd.gradcheck(loss, (student.clone().requires_grad_(),))


@pytest.mark.parametrize("dtype", HALF)
def test_consistency_in_half_precision_costs_only_input_rounding(dtype, rng):
    student, reference = (torch.randn(64, 1000, generator=rng).to(dtype) for _ in range(2))
    student.requires_grad_()
    value = nlg.consistency_loss(student, reference)
    value.backward()
    expected = consistency_reference(student.detach(), reference, 1.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.item(), expected, rtol=1e-5, atol=0.0)
    q, p = student.detach().double().softmax(-1), reference.double().softmax(-1)
    budget = torch.finfo(dtype).eps * (q - p).norm() / 64  # the gradient is rounded to the dtype
    assert (student.grad.double() - (q - p) / 64).norm() < budget


def test_consistency_close_to_the_reference_survives_float32(rng):
    # Training lives here: a KL of about 5e-5, the difference of numbers of size 7.
    reference = torch.randn(64, 1000, generator=rng)
    student = reference + 0.01 * torch.randn(64, 1000, generator=rng)
    expected = consistency_reference(student, reference, 1.0)
    assert expected < 1e-4
    actual = nlg.consistency_loss(student, reference).item()
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_consistency_refuses_temperature(temperature):
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=rf"`temperature` must be .* got {temperature}"):
        nlg.consistency_loss(logits, logits, temperature=temperature)


def test_consistency_refuses_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\), but `reference_logits` has shape \(2, 4\)"):
        nlg.consistency_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"`logits` must be 2-D.*got shape \(1, 2, 3\)"):
        nlg.consistency_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"`reference_logits` must be 2-D.*got shape \(3,\)"):
        nlg.consistency_loss(torch.zeros(2, 3), torch.zeros(3))


# Diversity (Eq. 11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("top_k", [None, 1, 2, 5])
def test_diversity_matches_reference(shape, top_k, rng):
    logits = 3 * torch.randn(*shape, generator=rng)
    top_k = top_k and min(top_k, shape[1])
    actual = nlg.diversity_loss(logits, top_k=top_k).item()
    expected = diversity_reference(logits, top_k)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_diversity_is_minus_the_entropy():
    # A uniform row has entropy ln 4; (1/2, 1/4, 1/4) has 1.5 ln 2. Minus their mean: 1.75 ln 2.
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [math.log(2.0), 0.0, 0.0, -1e4]])
    expected = -(math.log(4.0) + 1.5 * math.log(2.0)) / 2
    assert nlg.diversity_loss(logits).item() == pytest.approx(expected, rel=1e-6)


def test_minimising_diversity_spreads_the_predictions(rng):
    logits = torch.randn(5, 9, generator=rng, requires_grad=True)
    nlg.diversity_loss(logits).backward()
    before, after = (
        torch.distributions.Categorical(logits=z).entropy() for z in (logits, logits - logits.grad)
    )
    assert (after > before).all()


def test_diversity_is_a_mean_over_tokens(rng):
    logits = torch.randn(5, 9, generator=rng)
    once = nlg.diversity_loss(logits)
    torch.testing.assert_close(nlg.diversity_loss(logits.repeat(3, 1)), once)


def test_top_k_entropy_is_renormalised():
    # Kept (3/4, 1/4) whatever the third logit is: -H = 3/4 ln(3/4) + 1/4 ln(1/4).
    logits = torch.tensor([[math.log(3.0), -0.5, 0.0]])
    expected = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert nlg.diversity_loss(logits, top_k=2).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("top_k", [3, 9])
def test_diversity_gradient_lives_on_the_kept_candidates(top_k, rng):
    # r (log r + H_K) / M on the K indices, exactly 0 elsewhere: the index set is constant.
    logits = torch.randn(5, 9, generator=rng, dtype=torch.float64, requires_grad=True)
    nlg.diversity_loss(logits, top_k=top_k).backward()
    expected = torch.zeros_like(logits)
    for row, indices in enumerate(logits.detach().argsort(descending=True)[:, :top_k]):
        r = logits.detach()[row, indices].softmax(-1)
        expected[row, indices] = r * (r.log() - (r * r.log()).sum()) / 5
    torch.testing.assert_close(logits.grad, expected)
    assert (logits.grad == 0).sum() == 5 * (9 - top_k)


def test_full_top_k_is_the_entropy(rng):
    logits = torch.randn(5, 9, generator=rng)
    torch.testing.assert_close(nlg.diversity_loss(logits, top_k=9), nlg.diversity_loss(logits))


@few_examples
@given(**shapes_and_seeds, shift=st.floats(-50, 50), data=st.data())
def test_diversity_bounds_and_invariances(num_tokens, vocab_size, seed, shift, data):
    logits = draw(num_tokens, vocab_size, seed, scale=3.0)
    top_k = data.draw(st.none() | st.integers(1, vocab_size))
    value = nlg.diversity_loss(logits, top_k=top_k)
    assert -math.log(top_k or vocab_size) - 1e-12 <= value <= 0
    torch.testing.assert_close(nlg.diversity_loss(logits + shift, top_k=top_k), value)
    torch.testing.assert_close(nlg.diversity_loss(logits.flip(0, 1), top_k=top_k), value)
    uniform = nlg.diversity_loss(torch.full_like(logits, shift), top_k=top_k).item()
    torch.testing.assert_close(uniform, -math.log(top_k or vocab_size))


@pytest.mark.parametrize("top_k", [None, 2])
def test_diversity_gradcheck(top_k, rng):
    logits = torch.randn(3, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(nlg.diversity_loss, top_k=top_k), (logits,))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("top_k", [None, 20])
def test_diversity_in_half_precision_costs_only_input_rounding(dtype, top_k, rng):
    # With top_k the rounding makes ties; the value does not depend on how they are broken.
    logits = torch.randn(64, 1000, generator=rng).to(dtype).requires_grad_()
    value = nlg.diversity_loss(logits, top_k=top_k)
    value.backward()
    assert value.dtype == torch.float32
    expected = diversity_reference(logits, top_k)
    torch.testing.assert_close(value.item(), expected, rtol=1e-5, atol=0.0)
    wide = logits.detach().double().requires_grad_()
    nlg.diversity_loss(wide, top_k=top_k).backward()
    gradients = logits.grad.double(), wide.grad
    if top_k:  # ties: compare the sizes, row by row, not the places
        gradients = tuple(gradient.sort(dim=-1).values for gradient in gradients)
    assert (gradients[0] - gradients[1]).norm() < torch.finfo(dtype).eps * gradients[1].norm()


@pytest.mark.parametrize("top_k", [0, -1, 4, 2.0, True])
def test_diversity_refuses_top_k(top_k):
    with pytest.raises(ValueError, match=rf"`top_k` must be .* 1 to the 3 columns .* got {top_k}"):
        nlg.diversity_loss(torch.zeros(2, 3), top_k=top_k)


def test_diversity_refuses_shapes():
    with pytest.raises(ValueError, match=r"`logits` must be 2-D.*got shape \(1, 2, 3\)"):
        nlg.diversity_loss(torch.zeros(1, 2, 3))


# All three


def consistency_with_itself_shifted(logits):
    return nlg.consistency_loss(logits, logits.detach().roll(1, dims=-1))


TERMS = {
    "consistency": consistency_with_itself_shifted,
    "diversity": nlg.diversity_loss,
    "diversity, top K": partial(nlg.diversity_loss, top_k=2),
    "svd": nlg.svd_loss,
    "svd, variance": partial(nlg.svd_loss, variance_coef=1.0),
    "svd, frobenius": partial(nlg.svd_loss, denominator="frobenius"),
}
each_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


@each_term
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_give_a_zero_in_the_graph(term, dtype):
    weight = torch.ones(4, 7, dtype=dtype, requires_grad=True)
    value = term(torch.zeros(0, 4, dtype=dtype) @ weight)
    value.backward()
    assert value.item() == 0.0
    assert value.shape == ()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@each_term
def test_huge_logits_stay_finite(term, rng):
    logits = (1e4 * torch.randn(6, 50, generator=rng)).requires_grad_()
    value = term(logits)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@each_term
def test_dtype_of_the_value(term, rng):
    logits = torch.randn(6, 50, generator=rng)
    for dtype in (*HALF, torch.float32):
        assert term(logits.to(dtype)).dtype == torch.float32
    assert term(logits.double()).dtype == torch.float64


@each_term
def test_autocast_changes_nothing(term, rng):
    logits = torch.randn(6, 50, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = term(logits)
    assert torch.equal(inside, term(logits))
