"""The singular values of the logits without the logits, against float64 ``svdvals`` of them."""

from __future__ import annotations

import pytest
import torch

from balora.fused import HeadFactor
from balora.models.head import LMHead
from balora.regularizers import nlg

SHAPES = [(5, 7, 31), (40, 7, 31), (9, 16, 11), (64, 48, 500), (1, 3, 4)]  # M, D, V
HEADS = {"plain": {}, "bias": {"bias": True}, "scaled": {"scale": -0.3}, "capped": {"softcap": 2.0}}


def make_head(rng, vocab, size, *, bias=False, dtype=torch.float64, **settings):
    weight = torch.randn(vocab, size, generator=rng, dtype=torch.float64)
    offset = torch.randn(vocab, generator=rng, dtype=torch.float64).to(dtype) if bias else None
    return LMHead(weight.to(dtype), offset, **settings)


def through_the_logits(hidden, head, **settings):
    """Return the term of the full float64 logits and its minimum-norm gradient."""
    rows = hidden.detach().double().requires_grad_()
    bias = None if head.bias is None else head.bias.double()
    exact = LMHead(head.weight.double(), bias, head.scale, head.softcap)
    term = nlg.svd_loss(exact.linear(rows), max_rank=head.max_rank, **settings)
    return term.item(), torch.autograd.grad(term, rows)[0]


def through_the_factor(hidden, head, **settings):
    rows = hidden.detach().clone().requires_grad_()
    sigma = HeadFactor(head).singular_values(rows)
    term = nlg.spectrum_loss(sigma, max_rank=min(len(head.weight), head.max_rank), **settings)
    return term.item(), torch.autograd.grad(term, rows)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
def test_values_are_those_of_the_logits(shape, head_settings, rng):
    num_rows, size, vocab = shape
    head = make_head(rng, vocab, size, **head_settings)
    hidden = torch.randn(num_rows, size, generator=rng, dtype=torch.float64)
    expected = torch.linalg.svdvals(head.linear(hidden))
    found = HeadFactor(head).singular_values(hidden)
    assert found.shape == (min(num_rows, head.max_rank),)
    length = min(len(found), len(expected))
    torch.testing.assert_close(found[:length], expected[:length], rtol=1e-7, atol=1e-7)
    assert not found[length:].any()


TERMS = [
    {"k": 0.3},
    {"k": 2, "denominator": "frobenius"},
    {"k": 0.5, "variance_coef": 0.01},
    {"k": 99, "variance_coef": 0.01, "denominator": "frobenius"},
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("term", TERMS, ids=str)
def test_term_and_gradient_are_those_of_the_logits(term, head_settings, shape, dtype, rng):
    num_rows, size, vocab = shape
    head = make_head(rng, vocab, size, dtype=dtype, **head_settings)
    hidden = torch.randn(num_rows, size, generator=rng, dtype=torch.float64).to(dtype)
    expected, expected_grad = through_the_logits(hidden, head, **term)
    value, grad = through_the_factor(hidden, head, **term)
    assert value == pytest.approx(expected, rel=1e-6)
    assert grad.dtype == dtype
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    scale = expected_grad.abs().max().clamp(min=1e-9)
    assert (grad.double() - expected_grad).abs().max() <= tolerance * scale


def degenerate(name, rng):
    """Return hidden states and the weight of a head whose logits are short of rank."""
    hidden = torch.randn(12, 8, generator=rng, dtype=torch.float64)
    weight = torch.randn(30, 8, generator=rng, dtype=torch.float64)
    if name == "repeated rows":
        hidden[6:] = hidden[:6]
    elif name == "zero rows":
        hidden[3:] = 0
    elif name == "all zero":
        hidden.zero_()
    elif name == "repeated columns of the head":
        weight[:, 4:] = weight[:, :4]
    elif name == "zero columns of the head":
        weight[:, 2:] = 0
    else:
        # powers of two: of rank one in float32 too
        weight = weight.float().double()[:, :1] * 2.0 ** torch.arange(8)
    return hidden, weight


@pytest.mark.parametrize(
    "name",
    [
        "repeated rows",
        "zero rows",
        "all zero",
        "repeated columns of the head",
        "zero columns of the head",
        "head of rank one",
    ],
)
@pytest.mark.parametrize("term", TERMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_short_of_rank_is_finite_and_the_minimum_norm_choice(name, term, dtype, rng):
    hidden, weight = degenerate(name, rng)
    hidden, head = hidden.to(dtype), LMHead(weight.to(dtype))
    expected, expected_grad = through_the_logits(hidden, head, **term)
    value, grad = through_the_factor(hidden, head, **term)
    assert torch.isfinite(grad).all()
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-9)
    scale = expected_grad.abs().max().clamp(min=1e-6)
    assert (grad.double() - expected_grad).abs().max() <= 1e-4 * scale


def test_the_gram_matrix_is_summed_over_blocks_of_the_vocabulary(rng, monkeypatch):
    head = make_head(rng, 100, 6, bias=True)
    whole = HeadFactor(head).root
    monkeypatch.setattr("balora.fused.spectral._BLOCK_ROWS", 13)
    in_blocks = HeadFactor(head).root
    torch.testing.assert_close(in_blocks.T @ in_blocks, whole.T @ whole)


def test_gradcheck(rng):
    factor = HeadFactor(make_head(rng, 20, 5, bias=True, scale=0.5))
    hidden = torch.randn(4, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(factor.singular_values, hidden)


def test_a_head_that_is_still_the_same(rng):
    head = make_head(rng, 20, 5, bias=True)
    assert HeadFactor(head).is_of(LMHead(head.weight, head.bias))


@pytest.mark.parametrize("change", ["weight", "in place", "data", "bias", "bias in place", "scale"])
def test_a_head_that_was_replaced(change, rng):
    head = make_head(rng, 20, 5, bias=True)
    factor, weight, bias, scale = HeadFactor(head), head.weight, head.bias, 1.0
    if change == "weight":
        weight = weight.clone()
    elif change == "in place":
        weight.add_(1)
    elif change == "data":
        weight.data = weight.clone()
    elif change == "bias":
        bias = None
    elif change == "bias in place":
        bias.mul_(2)
    else:
        scale = 2.0
    assert not factor.is_of(LMHead(weight, bias, scale))


def test_a_trained_head_is_refused(rng):
    weight = torch.randn(20, 5, generator=rng, requires_grad=True)
    with pytest.raises(ValueError, match="the head requires a gradient"):
        HeadFactor(LMHead(weight))
