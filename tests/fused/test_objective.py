"""The whole objective without logits equals the readable one, and refuses what cannot work."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.config import BALoraConfig
from balora.errors import NonFiniteError
from balora.fused import (
    FusedObjective,
    HeadFactor,
    TokenCoefficients,
    TokenSettings,
    token_terms,
    tokens,
)
from balora.models.head import LMHead
from balora.objective import Coefficients, Normalizer, nlg_objective

CONFIGS = {
    "paper": BALoraConfig.preset("paper"),
    "iclr2026": BALoraConfig.preset("iclr2026", svd_k=3, svd_variance_coef=0.1),
    "few rows": BALoraConfig(svd_max_tokens=5, svd_k=0.5),
}
HEADS = {"plain": {}, "bias": {"bias": True}, "scaled and capped": {"scale": 0.3, "softcap": 1.5}}
few_examples = settings(max_examples=40, deadline=None, derandomize=True)


def make_problem(rng, *, shape=(19, 8, 31), dtype=torch.float64, bias=False, **head):
    """Return the inputs of ``shape``: tokens, hidden size, vocabulary."""

    def randn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    num_tokens, size, vocab = shape
    targets = torch.randint(vocab, (num_tokens,), generator=rng)
    head = LMHead(randn(vocab, size), randn(vocab) if bias else None, **head)
    return randn(num_tokens, size).requires_grad_(), randn(num_tokens, size), targets, head


@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("on", [*itertools.product([0.0, 0.6], repeat=3)], ids=str)
def test_equals_the_readable_objective(on, config, head_settings, rng):
    hidden, reference, targets, head = make_problem(rng, **head_settings)
    settings = {
        "head": head,
        "normalizer": Normalizer(torch.tensor(40), num_processes=2, num_micro_steps=3),
        "coefficients": Coefficients(*on),
    }
    plain = nlg_objective(hidden, reference, targets, config=config, **settings)
    found = FusedObjective(config)(hidden, reference, targets, **settings)
    torch.testing.assert_close(found.loss, plain.loss)
    for term, expected in zip(found.terms, plain.terms, strict=True):
        assert (term is None) == (expected is None)
        if term is not None:
            torch.testing.assert_close(term, expected.detach(), rtol=1e-9, atol=1e-12)
            assert not term.requires_grad
    grads = [torch.autograd.grad(x.loss, hidden)[0] for x in (found, plain)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


@few_examples
@given(
    shape=st.tuples(st.integers(1, 23), st.integers(1, 9), st.integers(2, 40)),
    on=st.tuples(*[st.sampled_from([0.0, 0.4, 1.0])] * 3),
    head_settings=st.sampled_from(list(HEADS.values())),
    chunk_bytes=st.integers(1, 40_000),
    k=st.integers(1, 12) | st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_equals_the_readable_objective_whatever_the_shapes(
    shape, on, head_settings, chunk_bytes, k, seed
):
    rng = torch.Generator().manual_seed(seed)
    hidden, reference, targets, head = make_problem(rng, shape=shape, **head_settings)
    config = BALoraConfig(svd_k=k, svd_max_tokens=9)
    how = {"normalizer": Normalizer(len(targets)), "coefficients": Coefficients(*on)}
    plain = nlg_objective(hidden, reference, targets, head=head, config=config, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_LEAST_ROWS", 1)
        patch.setattr(tokens, "_BLOCK_ELEMENTS", 2 * shape[2])
        fused = FusedObjective(config, chunk_bytes=chunk_bytes)
        found = fused(hidden, reference, targets, head=head, **how)
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-9, atol=1e-9)
    counts = [[count.item() for count in one.counts[:3]] for one in (found, plain)]
    assert counts[0] == pytest.approx(counts[1], rel=1e-9, abs=1e-9)
    assert found.counts.num_svd_rows == plain.counts.num_svd_rows
    assert plain.counts.num_svd_rows == (min(shape[0], 9) if on[2] else None)
    grads = [torch.autograd.grad(x.loss, hidden)[0] for x in (found, plain)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_float32_equals_the_readable_objective_to_1e_6(config, rng):
    hidden, reference, targets, head = make_problem(rng, dtype=torch.float32)
    settings = {"head": head, "normalizer": Normalizer(19), "coefficients": Coefficients(1, 1, 1)}
    plain = nlg_objective(hidden, reference, targets, config=config, **settings)
    found = FusedObjective(config)(hidden, reference, targets, **settings)
    for term, expected in zip(found.terms, plain.terms, strict=True):
        assert term.item() == pytest.approx(expected.item(), rel=1e-6)
    grads = [torch.autograd.grad(x.loss, hidden)[0] for x in (found, plain)]
    assert (grads[0] - grads[1]).abs().max() <= 1e-6 * grads[1].abs().max()


def test_defaults_are_these_tokens_and_the_configuration(rng):
    hidden, reference, targets, head = make_problem(rng)
    config = BALoraConfig(consistency_coef=0.5, diversity_coef=0.25, svd_coef=2.0)
    loss, terms, counts = FusedObjective(config)(hidden, reference, targets, head=head)
    assert terms.total(Coefficients(0.5, 0.25, 2.0)).item() == pytest.approx(loss.item())
    logits = head(hidden.detach())
    task = torch.nn.functional.cross_entropy(logits, targets)
    assert terms.task.item() == pytest.approx(task.item())
    assert counts.num_tokens.item() == 19


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("k", [0.5, 0.3, 4])
def test_k_is_of_the_vocabulary_where_that_is_the_smallest(k, bias, rng):
    problem = make_problem(rng, shape=(19, 9, 5), bias=bias)
    hidden, reference, targets, head = problem
    config = BALoraConfig(svd_k=k)
    how = {"normalizer": Normalizer(19), "coefficients": Coefficients(0.0, 0.0, 1.0)}
    found = FusedObjective(config)(hidden, reference, targets, head=head, **how)
    sigma = torch.linalg.svdvals(head(hidden.detach()))
    leading = k if isinstance(k, int) else {0.5: 3, 0.3: 2}[k]  # of min(19, 5, 9 or 10)
    expected = -sigma[:leading].sum() / sigma.sum()
    assert found.terms.svd.item() == pytest.approx(expected.item(), rel=1e-9)


def test_no_tokens(rng):
    hidden, reference, targets, head = make_problem(rng)
    none = hidden.detach()[:0].requires_grad_()
    objective = FusedObjective(BALoraConfig())
    loss, terms, _ = objective(none, reference[:0], targets[:0], head=head)
    loss.backward()
    assert loss.item() == 0
    assert none.grad.shape == (0, 8)
    assert all(term.item() == 0 for term in terms)


def test_the_head_is_factored_once_and_again_when_it_is_replaced(rng, monkeypatch):
    hidden, reference, targets, head = make_problem(rng)
    made, init = [], HeadFactor.__init__
    monkeypatch.setattr(HeadFactor, "__init__", lambda self, h: made.append(h) or init(self, h))
    objective = FusedObjective(BALoraConfig())
    for _ in range(3):
        objective(hidden, reference, targets, head=LMHead(head.weight))
    assert len(made) == 1
    with torch.no_grad():
        head.weight.mul_(2)
    replaced = objective(hidden, reference, targets, head=LMHead(head.weight))
    fresh = FusedObjective(BALoraConfig())(hidden, reference, targets, head=LMHead(head.weight))
    assert replaced.terms.svd.item() == fresh.terms.svd.item()
    objective(
        hidden, reference, targets, head=LMHead(head.weight), coefficients=Coefficients(1, 1, 0)
    )
    assert len(made) == 3


def call(hidden, reference, targets, head, **settings):
    settings = TokenSettings(TokenCoefficients(1.0, 1.0, 1.0), **settings)
    return token_terms(hidden, reference, targets, head=head, settings=settings)


BAD = {
    "3-D": (lambda h, r, t, w: (h[None], r, t, LMHead(w)), r"`hidden` has shape \(1, 19, 8\)"),
    "width": (lambda h, r, t, w: (h[:, :7], r, t, LMHead(w)), r"needs one row of 8"),
    "reference": (
        lambda h, r, t, w: (h, r[:5], t, LMHead(w)),
        r"`reference_hidden` has .*\(5, 8\)",
    ),
    "targets": (
        lambda h, r, t, w: (h, r, t[:5], LMHead(w)),
        r"`targets` has shape \(5,\).* 19 rows",
    ),
    "bias": (lambda h, r, t, w: (h, r, t, LMHead(w, w[:4, 0])), r"bias has shape \(4,\).* 31 rows"),
    "float targets": (
        lambda h, r, t, w: (h, r, t.float(), LMHead(w)),
        "token ids, got torch.float",
    ),
    "dtype": (lambda h, r, t, w: (h.float(), r, t, LMHead(w)), r"is torch.float32, but .*float64"),
    "head dtype": (
        lambda h, r, t, w: (h, r, t, LMHead(w.half())),
        r"the head's weight is .*float16",
    ),
    "ignored": (lambda h, r, t, w: (h, r, t.fill_(-100), LMHead(w)), r"`targets` holds -100"),
    "too large": (lambda h, r, t, w: (h, r, t.fill_(31), LMHead(w)), r"holds 31, .*tokens 0 to 30"),
    "missing": (lambda h, r, t, w: (h, None, t, LMHead(w)), "`reference_hidden` is None"),
    "trained": (
        lambda h, r, t, w: (h, r, t, LMHead(w.requires_grad_())),
        "head requires a gradient",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_together_is_refused(name, rng):
    hidden, reference, targets, head = make_problem(rng)
    make, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        call(*make(hidden, reference, targets, head.weight))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"temperature": 0.0}, "`temperature` must be finite and greater than 0, got 0.0"),
        ({"entropy_top_k": 32}, "`top_k` must be an int from 1 to the 31 columns"),
    ],
)
def test_settings_out_of_range_are_refused(setting, sentence, rng):
    with pytest.raises(ValueError, match=sentence):
        call(*make_problem(rng), **setting)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["hidden", "reference_hidden", "head"])
def test_numbers_that_are_none_stop_with_their_name(where, value, rng):
    hidden, reference, targets, head = make_problem(rng)
    tensor = {"hidden": hidden.detach(), "reference_hidden": reference, "head": head.weight}[where]
    tensor[2, 3] = value
    sentence = (
        "Look for NaN or infinity in the head" if where == "head" else f"`{where}` .* in 1 of"
    )
    with pytest.raises(NonFiniteError, match=sentence):
        call(hidden, reference, targets, head)
