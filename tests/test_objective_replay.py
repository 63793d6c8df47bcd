"""The replay term: against the definition, closed forms, invariances, gradients, half precision.

Shapes: ``M`` tokens, ``D`` hidden size, ``V`` vocabulary, ``P`` pairs.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balora.config import BALoraConfig
from balora.fused import FusedObjective
from balora.models.head import LMHead
from balora.objective import Counterfactual, Normalizer, replay_loss
from balora.regularizers.nlg import balanced_logits

SWAP = torch.tensor([[1, 4], [3, 0]])
HEADS = {"plain": {}, "bias": {"bias": True}, "scaled and capped": {"scale": 0.3, "softcap": 1.5}}


def log_softmax(row):
    return row - np.logaddexp.reduce(row)


def definition(student, reference, counterfactual=None):
    """Return the sum of the divergences, one token and one entry at a time, in float64."""
    partner = {1: 3, 3: 1, 4: 0, 0: 4}
    total = 0.0
    for m in range(len(student)):
        log_p, q = log_softmax(student[m]), np.exp(log_softmax(reference[m]))
        if counterfactual is not None:
            other = np.exp(log_softmax(counterfactual[m]))
            q = np.array([(q[v] + other[partner.get(v, v)]) / 2 for v in range(len(q))])
        total += sum(q[v] * (math.log(q[v]) - log_p[v]) for v in range(len(q)))
    return total


def problem(rng, shape=(7, 5, 13), dtype=torch.float64, bias=False, **head):
    def randn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    num_tokens, width, vocab = shape
    head = LMHead(randn(vocab, width), randn(vocab) if bias else None, **head)
    states = [randn(num_tokens, width) for _ in range(3)]
    return states, torch.randint(vocab, (num_tokens,), generator=rng), head


def both(hidden, reference, targets, head, **settings):
    fused = FusedObjective(BALoraConfig()).replay
    return [f(hidden, reference, targets, head=head, **settings) for f in (replay_loss, fused)]


@pytest.mark.parametrize("is_balanced", [False, True])
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
def test_equals_the_definition(head_settings, is_balanced, rng):
    (hidden, reference, other), targets, head = problem(rng, **head_settings)
    counterfactual = Counterfactual(other, SWAP) if is_balanced else None
    logits = [head(states).numpy() for states in (hidden, reference, other)]
    expected = definition(*logits[: 3 if is_balanced else 2]) * 2 / 40
    found = both(
        hidden,
        reference,
        targets,
        head,
        normalizer=Normalizer(40, num_processes=2),
        counterfactual=counterfactual,
    )
    for value in found:
        assert value.item() == pytest.approx(expected, rel=1e-12)


def test_without_a_reference_it_is_the_cross_entropy(rng):
    (hidden, _, _), targets, head = problem(rng)
    expected = torch.nn.functional.cross_entropy(head(hidden), targets)
    for value in both(hidden, None, targets, head, normalizer=Normalizer(7)):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("is_balanced", [False, True])
def test_plain_and_fused_have_the_same_gradient(is_balanced, rng):
    (hidden, reference, other), targets, head = problem(rng, scale=0.7, softcap=2.0)
    counterfactual = Counterfactual(other, SWAP) if is_balanced else None
    hidden.requires_grad_()
    values = both(
        hidden, reference, targets, head, normalizer=Normalizer(7), counterfactual=counterfactual
    )
    grads = [torch.autograd.grad(value, hidden)[0] for value in values]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)

    def loss(states):
        return replay_loss(
            states,
            reference,
            targets,
            head=head,
            normalizer=Normalizer(7),
            counterfactual=counterfactual,
        )

    assert torch.autograd.gradcheck(loss, (hidden,))


def test_a_trained_head_is_compared_with_the_one_it_was(rng):
    (hidden, _, _), targets, head = problem(rng)
    trained = LMHead(head.weight.clone().requires_grad_())
    settings = {"head": trained, "reference_head": head, "normalizer": Normalizer(7)}
    value = replay_loss(hidden, hidden, targets, **settings)
    assert value.item() == 0.0
    with torch.no_grad():
        trained.weight.add_(0.1 * torch.randn(13, 5, generator=rng, dtype=torch.float64))
    value = replay_loss(hidden, hidden, targets, **settings)
    (gradient,) = torch.autograd.grad(value, trained.weight)
    assert value.item() > 0
    assert gradient.abs().sum() > 0


def test_closed_form_of_a_balanced_reference():
    # (3/4, 1/4) in the text, (1/2, 1/2) in its counterfactual, the two tokens swapped:
    # the mean of (3/4, 1/4) and (1/2, 1/2)
    reference = torch.tensor([[math.log(3.0), 0.0]])
    log_q = balanced_logits(reference, torch.zeros(1, 2), torch.tensor([[0], [1]]))
    torch.testing.assert_close(log_q.exp(), torch.tensor([[0.625, 0.375]]))
    # the text as its own counterfactual: exactly even, whatever the model prefers
    log_q = balanced_logits(reference, reference, torch.tensor([[0], [1]]))
    torch.testing.assert_close(log_q.exp(), torch.tensor([[0.5, 0.5]]))


@given(st.integers(1, 9), st.integers(5, 20), st.integers(0, 99))
def test_the_mixture_is_normalised_and_symmetric_under_the_swap(num_tokens, vocab, seed):
    rng = torch.Generator().manual_seed(seed)
    one, other = (
        torch.randn(num_tokens, vocab, generator=rng, dtype=torch.float64) for _ in range(2)
    )
    mixture = balanced_logits(one, other, SWAP)
    torch.testing.assert_close(mixture.exp().sum(1), torch.ones(num_tokens).double())
    mirrored = balanced_logits(other, one, SWAP)
    order = torch.arange(vocab)
    order[SWAP.flatten()] = SWAP.flip(0).flatten()
    torch.testing.assert_close(mirrored, mixture[:, order])


def test_no_pair_is_the_mean_of_the_two_and_of_one_text_the_text_itself(rng):
    logits = torch.randn(4, 6, generator=rng)
    none = torch.empty(2, 0, dtype=torch.long)
    found = balanced_logits(logits, logits, none)
    torch.testing.assert_close(found, logits.log_softmax(-1))


@pytest.mark.parametrize("is_balanced", [False, True])
def test_half_precision_costs_only_the_rounding_of_the_inputs(is_balanced, rng):
    (hidden, reference, other), targets, head = problem(
        rng, shape=(64, 32, 500), dtype=torch.bfloat16
    )
    hidden = reference + 0.02 * hidden
    counterfactual = Counterfactual(other, SWAP) if is_balanced else None
    double = LMHead(head.weight.double())
    logits = [double(states.double()).numpy() for states in (hidden, reference, other)]
    expected = definition(*logits[: 3 if is_balanced else 2]) / 64
    plain, fused = both(
        hidden, reference, targets, head, normalizer=Normalizer(64), counterfactual=counterfactual
    )
    assert plain.item() == pytest.approx(expected, rel=1e-4)
    assert fused.item() == pytest.approx(expected, rel=0.03)


def test_no_token_is_a_zero_in_the_graph(rng):
    (hidden, reference, _), targets, head = problem(rng)
    for value in both(
        hidden[:0].requires_grad_(), reference[:0], targets[:0], head, normalizer=Normalizer(0)
    ):
        assert value.item() == 0.0
        value.backward()


def test_shapes_that_do_not_fit_are_refused(rng):
    with pytest.raises(ValueError, match="shape"):
        balanced_logits(torch.zeros(2, 5), torch.zeros(3, 5), SWAP)
    (hidden, reference, other), targets, head = problem(rng)
    with pytest.raises(ValueError, match="shape"):
        FusedObjective(BALoraConfig()).replay(
            hidden,
            reference,
            targets,
            head=head,
            normalizer=Normalizer(7),
            counterfactual=Counterfactual(other[:3], SWAP),
        )
