"""What each dtype costs: float32 next to nothing, half precision its rounding, also near a KL of 0.

Shapes: ``M`` tokens, ``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from balora.config import BALoraConfig
from balora.fused import TokenCoefficients, TokenSettings, token_terms
from balora.models.head import LMHead
from balora.objective import Coefficients, Normalizer, nlg_objective

HALVES = [torch.bfloat16, torch.float16]
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 8.0},
}
TERMS = TokenCoefficients._fields
CONSISTENCY = TokenSettings(TokenCoefficients(0.0, 1.0, 0.0))
TOGETHER = TokenSettings(TokenCoefficients(1.0, 1.0, 1.0))


def randn(rng, *shape, std=1.0):
    return torch.randn(*shape, generator=rng) * std


def make_head(rng, *, vocab=8192, size=512, bias=False, scale=1.0, softcap=None):
    """Return a float32 head whose logits have a standard deviation of 3, as a model's have."""
    weight = randn(rng, vocab, size, std=3 / math.sqrt(size) / scale)
    return LMHead(weight, randn(rng, vocab) if bias else None, scale, softcap)


def cast(head, dtype):
    bias = None if head.bias is None else head.bias.to(dtype)
    return LMHead(head.weight.to(dtype), bias, head.scale, head.softcap)


def exact(hidden, reference, head, targets):
    """Return task, KL and diversity in float64 from the same rounded inputs, and their graph."""
    rows = hidden.detach().double().requires_grad_()
    logits = cast(head, torch.float64)(rows)
    reference_logits = cast(head, torch.float64)(reference.double())
    log_p, log_q = logits.log_softmax(dim=1), reference_logits.log_softmax(dim=1)
    task = F.nll_loss(log_p, targets, reduction="sum")
    return rows, task, (log_q.exp() * (log_q - log_p)).sum(), (log_p.exp() * log_p).sum()


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


# float32


@pytest.mark.parametrize("name", [*TERMS, "together"])
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.0, 20)])
def test_float32_agrees_with_the_readable_objective(temperature, top_k, head_settings, name, rng):
    head = make_head(rng, vocab=1000, size=64, **head_settings)
    hidden, reference = randn(rng, 50, 64).requires_grad_(), randn(rng, 50, 64)
    targets = torch.randint(1000, (50,), generator=rng)
    on = TokenCoefficients(*(float(name in (term, "together")) for term in TERMS))
    settings = TokenSettings(on, temperature, top_k)
    found = token_terms(hidden, reference, targets, head=head, settings=settings)
    _, terms, _ = nlg_objective(
        hidden,
        reference,
        targets,
        head=head,
        config=BALoraConfig(temperature=temperature, entropy_top_k=top_k),
        normalizer=Normalizer(1),
        coefficients=Coefficients(1.0, 1.0, 0.0),
    )
    expected = sum(c * term for c, term in zip(on, terms[:3], strict=True))
    for term in TERMS:
        if getattr(on, term):
            assert getattr(found, term).item() == pytest.approx(
                getattr(terms, term).item(), rel=1e-6
            )
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    grad, expected_grad = (torch.autograd.grad(x, hidden)[0] for x in (found.loss, expected))
    assert grad.dtype == torch.float32
    # with a soft cap each of the two is by itself 2e-6 away from float64
    tolerance = 1e-6 if head.softcap is None else 3e-6
    assert (grad - expected_grad).abs().max() <= tolerance * expected_grad.abs().max()


# half precision, near the reference


class Near(NamedTuple):
    """A student at a known distance from the reference, and what is exact there."""

    hidden: Tensor
    reference: Tensor
    targets: Tensor
    head: LMHead
    kl: float
    grad: Tensor


def make_near(rng, kl, dtype, **head_settings):
    """Return states of ``dtype`` whose KL is ``kl`` nats per token."""
    head = cast(make_head(rng, **head_settings), dtype)
    reference = randn(rng, 40, 512).to(dtype)
    noise, targets = randn(rng, 40, 512), torch.randint(8192, (40,), generator=rng)
    amount = math.sqrt(2 * kl) / 3
    for _ in range(4):
        hidden = (reference.float() + amount * noise).to(dtype)
        rows, _, found, _ = exact(hidden, reference, head, targets)
        amount *= math.sqrt(kl * len(hidden) / found.item())
    (grad,) = torch.autograd.grad(found, rows)
    assert found.item() / len(hidden) == pytest.approx(kl, rel=0.02)
    return Near(hidden, reference, targets, head, found.item(), grad)


def consistency_and_grad(near):
    hidden = near.hidden.detach().clone().requires_grad_()
    found = token_terms(hidden, near.reference, near.targets, head=near.head, settings=CONSISTENCY)
    return found.consistency.item(), torch.autograd.grad(found.loss, hidden)[0]


NEAR = [
    pytest.param(4e-3, "plain"),
    pytest.param(4.5e-4, "plain"),
    pytest.param(1e-5, "plain"),
    pytest.param(4.5e-4, "bias"),
    pytest.param(4.5e-4, "scale"),
    pytest.param(4.5e-4, "softcap"),
]


@pytest.mark.parametrize(("kl", "head_name"), NEAR)
def test_kl_of_bfloat16_states_is_right_near_the_reference(kl, head_name, rng):
    near = make_near(rng, kl, torch.bfloat16, **HEADS[head_name])
    value, grad = consistency_and_grad(near)
    assert value == pytest.approx(near.kl, rel=0.01)
    assert grad.dtype == torch.bfloat16
    assert relative_error(grad, near.grad) < 0.02


@pytest.mark.parametrize(("kl", "least_error"), [(4e-3, 0.2), (4.5e-4, 0.7)])
def test_kl_of_bfloat16_logits_is_not(kl, least_error, rng):
    # the two rows of logits rounded each by itself: what the difference form is there for
    near = make_near(rng, kl, torch.bfloat16)
    hidden = near.hidden.requires_grad_()
    log_p, log_q = (
        (rows @ near.head.weight.T).float().log_softmax(dim=1) for rows in (hidden, near.reference)
    )
    (log_q.exp() * (log_q - log_p)).sum().backward()
    assert relative_error(hidden.grad, near.grad) > least_error


@pytest.mark.parametrize(("kl", "head_name"), NEAR)
def test_kl_under_autocast_is_right_near_the_reference(kl, head_name, rng):
    # float32 states: rounded before the difference is taken, they would be further apart than this
    near = make_near(rng, kl, torch.float32, **HEADS[head_name])
    with torch.autocast("cpu", torch.bfloat16):
        value, grad = consistency_and_grad(near)
    assert value == pytest.approx(near.kl, rel=0.01)
    assert grad.dtype == torch.float32
    assert relative_error(grad, near.grad) < 0.02


@pytest.mark.parametrize("kl", [4e-3, 4.5e-4])
def test_kl_of_float32_states_is_right_near_the_reference(kl, rng):
    near = make_near(rng, kl, torch.float32)
    value, grad = consistency_and_grad(near)
    assert value == pytest.approx(near.kl, rel=1e-3)  # in nats, 1e-7 of what is summed
    assert relative_error(grad, near.grad) < 1e-4


def test_kl_of_float16_states_is_right_near_the_reference(rng):
    near = make_near(rng, 4.5e-4, torch.float16)
    value, grad = consistency_and_grad(near)
    assert value == pytest.approx(near.kl, rel=1e-3)
    assert relative_error(grad, near.grad) < 5e-3


# half precision, all terms


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
def test_half_precision_costs_its_rounding(head_settings, dtype, rng):
    head = cast(make_head(rng, vocab=2000, size=64, **head_settings), dtype)
    hidden, reference = randn(rng, 60, 64).to(dtype).requires_grad_(), randn(rng, 60, 64).to(dtype)
    targets = torch.randint(2000, (60,), generator=rng)
    rows, *expected = exact(hidden, reference, head, targets)
    rounding = torch.finfo(dtype).eps
    found = token_terms(hidden, reference, targets, head=head, settings=TOGETHER)
    values = [x.item() for x in found[1:4]]
    assert values == pytest.approx([x.item() for x in expected], rel=rounding / 4)
    assert {x.dtype for x in (*found[:4], *found.counts[:3])} == {torch.float32}
    (grad,) = torch.autograd.grad(found.loss, hidden)
    (expected_grad,) = torch.autograd.grad(sum(expected), rows)
    assert grad.dtype == dtype
    assert relative_error(grad, expected_grad) < 2 * rounding


@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("has_reference", [False, True])
def test_autocast_multiplies_in_its_dtype_and_keeps_the_rest(has_reference, head_settings, rng):
    head = make_head(rng, vocab=2000, size=64, **head_settings)
    hidden, reference = randn(rng, 60, 64).requires_grad_(), randn(rng, 60, 64)
    targets = torch.randint(2000, (60,), generator=rng)
    settings = TokenSettings(TokenCoefficients(1.0, float(has_reference), 1.0))
    rows, task, kl, diversity = exact(hidden, reference, head, targets)
    expected = task + kl * has_reference + diversity
    with torch.autocast("cpu", torch.bfloat16):
        found = token_terms(hidden, reference, targets, head=head, settings=settings)
    # of bfloat16, and not better: the products themselves are in it
    assert 1e-6 < abs(found.loss.item() / expected.item() - 1) < 4e-3
    (grad,) = torch.autograd.grad(found.loss, hidden)
    (expected_grad,) = torch.autograd.grad(expected, rows)
    assert {found.loss.dtype, grad.dtype} == {torch.float32}
    assert 5e-4 < relative_error(grad, expected_grad) < 2e-2


def test_autocast_mixes_dtypes(rng):
    # float32 states of a float32 norm, a head in bfloat16, and the other way round
    head = make_head(rng, vocab=300, size=16)
    hidden, reference = randn(rng, 20, 16), randn(rng, 20, 16)
    targets = torch.randint(300, (20,), generator=rng)
    half = torch.bfloat16
    losses = []
    for head_dtype, dtype, reference_dtype in [
        (torch.float32, torch.float32, torch.float32),
        (half, torch.float32, torch.float32),
        (torch.float32, half, half),
        (half, half, torch.float32),
    ]:
        with torch.autocast("cpu", half):
            found = token_terms(
                hidden.to(dtype),
                reference.to(reference_dtype),
                targets,
                head=cast(head, head_dtype),
                settings=TOGETHER,
            )
        losses.append(found.loss.item())
    assert losses == pytest.approx(losses[:1] * 4, rel=5e-3)


def test_autocast_is_over_when_backward_runs(rng):
    # inside or outside of it: the gradient is there already
    head = make_head(rng, vocab=300, size=16)
    hidden, reference = randn(rng, 20, 16).requires_grad_(), randn(rng, 20, 16)
    targets = torch.randint(300, (20,), generator=rng)
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_terms(hidden, reference, targets, head=head, settings=TOGETHER).loss
        (inside,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (outside,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(inside, outside)
