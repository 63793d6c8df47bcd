"""The SVD term of NLG (Eq. 12) against numpy, by hand, and against near misses of it.

Shapes: ``M`` tokens, ``V`` vocabulary.
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
few_examples = settings(max_examples=40, deadline=None, derandomize=True)


def svd_reference(logits, k: int, variance_coef: float = 0.0, denominator: str = "nuclear"):
    """The definition, from numpy's singular values, in float64."""
    sigma = np.linalg.svd(logits.detach().double().numpy(), compute_uv=False)
    total = sum(sigma) if denominator == "nuclear" else math.sqrt(sum(sigma**2))
    return -(sum(sigma[:k]) / total + variance_coef * float(np.var(sigma[:k])))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("denominator", ["nuclear", "frobenius"])
@pytest.mark.parametrize("variance_coef", [0.0, 0.01])
@pytest.mark.parametrize("k", [1, 5, 0.3, 1.0])
def test_svd_matches_reference(shape, denominator, variance_coef, k, rng):
    logits = torch.randn(*shape, generator=rng)
    count = k if isinstance(k, int) else math.ceil(k * min(shape))
    expected = svd_reference(logits, count, variance_coef, denominator)
    actual = nlg.svd_loss(logits, k=k, variance_coef=variance_coef, denominator=denominator)
    torch.testing.assert_close(actual.item(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 1}, -0.5),
        ({"k": 2}, -5 / 6),
        ({"k": 0.3}, -0.5),  # ceil(0.9) of the three
        ({"k": 0.34}, -5 / 6),  # ceil(1.02)
        ({"k": 99}, -1.0),
        ({"k": 2, "denominator": "frobenius"}, -5 / math.sqrt(14)),
        ({"k": 2, "variance_coef": 4.0}, -5 / 6 - 4 * 0.25),  # Var(3, 2): population, not sample
        ({"k": 1, "variance_coef": 4.0}, -0.5),  # the variance of one value is 0
        ({"k": 0.5, "max_rank": 2}, -0.5),  # ceil(0.5 * 2), not ceil(0.5 * 3)
        ({"k": 3, "max_rank": 2}, -5 / 6),  # a count is capped at the rank
        ({"k": 0.5, "max_rank": 999}, -5 / 6),  # a bound beyond the shape adds nothing
    ],
    ids=str,
)
def test_svd_closed_form(options, expected):
    logits = torch.zeros(3, 5)
    logits[0, 4], logits[1, 0], logits[2, 2] = 2.0, -3.0, 1.0  # singular values 3, 2, 1
    assert nlg.svd_loss(logits, **options).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("denominator", ["nuclear", "frobenius"])
def test_minimising_svd_concentrates_the_spectrum(denominator, rng):
    logits = torch.randn(8, 20, generator=rng, requires_grad=True)
    nlg.svd_loss(logits, k=2, denominator=denominator).backward()
    before, after = (torch.linalg.svdvals(z.detach()) for z in (logits, logits - logits.grad))
    assert after[:2].sum() / after.sum() > before[:2].sum() / before.sum()


def test_minimising_the_variance_part_raises_the_variance(rng):
    logits = torch.randn(8, 20, generator=rng, requires_grad=True)
    nlg.svd_loss(logits, k=1.0, variance_coef=1.0).backward()
    before, after = (torch.linalg.svdvals(z.detach()) for z in (logits, logits - logits.grad))
    assert after.var() > before.var()


@few_examples
@given(
    num_tokens=st.integers(1, 12),
    vocab_size=st.integers(2, 30),
    seed=st.integers(0, 999),
    scale=st.floats(0.01, 100),
    data=st.data(),
)
def test_svd_bounds_and_invariances(num_tokens, vocab_size, seed, scale, data):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, vocab_size, generator=rng, dtype=torch.float64)
    k = data.draw(st.integers(1, 40) | st.floats(0.01, 1.0))
    denominator = data.draw(st.sampled_from(["nuclear", "frobenius"]))
    loss = partial(nlg.svd_loss, k=k, denominator=denominator)
    rank = min(num_tokens, vocab_size)
    lowest = -1.0 if denominator == "nuclear" else -math.sqrt(rank)
    value = loss(logits)
    assert lowest - 1e-9 <= value < 0
    for same in (scale * logits, -logits, logits.flip(0, 1), logits.roll(1, dims=1)):
        torch.testing.assert_close(loss(same), value, rtol=1e-6, atol=1e-7)
    less = nlg.svd_loss(logits, k=1, denominator=denominator)
    assert value <= less + 1e-9  # a larger k never has the smaller share


@pytest.mark.parametrize("denominator", ["nuclear", "frobenius"])
@pytest.mark.parametrize("variance_coef", [0.0, 0.5])
def test_svd_gradcheck(denominator, variance_coef, rng):
    logits = torch.randn(4, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    loss = partial(nlg.svd_loss, k=2, variance_coef=variance_coef, denominator=denominator)
    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_svd_in_half_precision_costs_only_input_rounding(dtype, rng):
    logits = torch.randn(64, 500, generator=rng).to(dtype).requires_grad_()
    value = nlg.svd_loss(logits, variance_coef=0.01)
    value.backward()
    assert value.dtype == torch.float32
    expected = svd_reference(logits, 20, 0.01)
    torch.testing.assert_close(value.item(), expected, rtol=1e-5, atol=0.0)
    wide = logits.detach().double().requires_grad_()
    nlg.svd_loss(wide, variance_coef=0.01).backward()
    error = (logits.grad.double() - wide.grad).norm() / wide.grad.norm()
    assert error < torch.finfo(dtype).eps


@pytest.mark.parametrize("variance_coef", [0.0, 1.0])
@pytest.mark.parametrize("denominator", ["nuclear", "frobenius"])
def test_svd_of_all_zero_logits_is_zero(variance_coef, denominator):
    logits = torch.zeros(4, 6, requires_grad=True)
    value = nlg.svd_loss(logits, variance_coef=variance_coef, denominator=denominator)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(4, 6))


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_svd_refuses_bad_options_with_and_without_tokens(num_tokens):
    logits = torch.zeros(num_tokens, 5)
    for k in (0, -1, 0.0, 1.5, True, math.nan):
        with pytest.raises(ValueError, match=rf"`k` must be a count .* got {k}"):
            nlg.svd_loss(logits, k=k)
    with pytest.raises(ValueError, match=r"`denominator` must be .* got 'spectral'"):
        nlg.svd_loss(logits, denominator="spectral")
    with pytest.raises(ValueError, match="`max_rank` must be 1 or greater, got 0"):
        nlg.svd_loss(logits, max_rank=0)
    with pytest.raises(ValueError, match=r"`logits` must be 2-D.*got shape \(5,\)"):
        nlg.svd_loss(torch.zeros(5))
