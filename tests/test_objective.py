"""The shift, the mask, the normaliser, the schedule, and the sum of all of them.

The reference below is the definition in float64 numpy, one token at a time, from the logits.
Shapes: ``M`` tokens, ``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balora.config import BALoraConfig
from balora.models.head import LMHead
from balora.objective import (
    Coefficients,
    LossTerms,
    Normalizer,
    coefficients_at,
    next_token_targets,
    nlg_objective,
)
from balora.regularizers import nlg

ALL_ON = Coefficients(1.0, 1.0, 1.0)


def test_the_token_after_the_last_answer_token_is_not_scored():
    # prompt 5 6, answer 7 8 with EOS 2, padding
    labels = torch.tensor([[-100, -100, 7, 8, 2, -100]])
    mask, targets = next_token_targets(labels)
    # position 1, the last of the prompt, predicts 7; position 4, EOS itself, predicts nothing
    assert mask.tolist() == [[False, True, True, True, False, False]]
    assert targets.tolist() == [7, 8, 2]


def test_a_label_at_the_first_position_has_nothing_before_it():
    mask, targets = next_token_targets(torch.tensor([[4, -100, 5], [6, 7, 8]]))
    assert mask.tolist() == [[False, True, False], [True, True, False]]
    assert targets.tolist() == [5, 7, 8]


def test_other_ignore_index():
    mask, targets = next_token_targets(torch.tensor([[-100, -1, 3]]), ignore_index=-1)
    assert mask.tolist() == [[False, True, False]]
    assert targets.tolist() == [3]


@pytest.mark.parametrize("shape", [(2, 5), (1, 1)], ids=str)
def test_nothing_to_score(shape):
    mask, targets = next_token_targets(torch.full(shape, -100))
    assert mask.shape == shape
    assert not mask.any()
    assert targets.shape == (0,)


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.one_of(st.just(-100), st.integers(0, 9)), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    )
)
def test_targets_are_the_next_labels_in_the_order_of_the_mask(rows):
    mask, targets = next_token_targets(torch.tensor(rows))
    expected = [
        (i, j, row[j + 1])
        for i, row in enumerate(rows)
        for j in range(len(row) - 1)
        if row[j + 1] != -100
    ]
    assert mask.nonzero().tolist() == [[i, j] for i, j, _ in expected]
    assert targets.tolist() == [token for _, _, token in expected]


@pytest.mark.parametrize("num_tokens", [10, torch.tensor(10)], ids=["int", "tensor"])
def test_normalizer(num_tokens):
    normalizer = Normalizer(num_tokens, num_processes=2, num_micro_steps=4)
    assert normalizer.token_mean(torch.tensor(5.0)).item() == 1.0  # 5 * 2 / 10
    assert normalizer.step_mean(torch.tensor(6.0)).item() == 1.5  # 6 / 4


def test_normalizer_of_a_step_without_tokens_is_zero():
    assert Normalizer(0, num_processes=3).token_mean(torch.tensor(0.0)).item() == 0.0


@pytest.mark.parametrize("progress", [-1.0, 0.0, 0.3, 1.0, 2.0])
def test_constant_schedule(progress):
    config = BALoraConfig(consistency_coef=0.1, diversity_coef=0.2, svd_coef=0.3)
    assert coefficients_at(config, progress) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("progress", "cosine", "ramp"),
    [
        (-1.0, 1.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.1, 0.1 + 0.45 * (1 + math.cos(0.1 * math.pi)), 0.0),
        (0.2, 0.1 + 0.45 * (1 + math.cos(0.2 * math.pi)), 0.0),
        (0.225, 0.1 + 0.45 * (1 + math.cos(0.225 * math.pi)), 0.5),
        (0.25, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 1.0),
        (0.5, 0.55, 1.0),
        (1.0, 0.1, 1.0),
        (3.0, 0.1, 1.0),
    ],
)
def test_iclr2026_schedule(progress, cosine, ramp):
    config = BALoraConfig.preset("iclr2026")
    expected = (0.025 * cosine, 0.005 * ramp, 0.005 * ramp)
    found = coefficients_at(config, progress)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_total_adds_up_and_skips_what_is_off():
    terms = LossTerms(*(torch.tensor(x) for x in (1.0, 2.0, 3.0, 5.0)))
    assert terms.total(Coefficients(10.0, 100.0, 1000.0)).item() == 5321.0
    terms = LossTerms(torch.tensor(1.0), None, torch.tensor(3.0), None)
    assert terms.total(Coefficients(10.0, 100.0, 1000.0)).item() == 301.0


# the terms, against the definition


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def numpy_terms(hidden, reference, targets, head, config):
    """Return the sums of the token terms, and the SVD term, in float64 from the definitions."""

    def linear(rows):
        logits = rows.numpy() @ head.weight.numpy().T
        return head.scale * (logits if head.bias is None else logits + head.bias.numpy())

    def capped(logits):
        return head.softcap * np.tanh(logits / head.softcap) if head.softcap else logits

    z, z_ref, temperature = capped(linear(hidden)), capped(linear(reference)), config.temperature
    task = consistency = diversity = 0.0
    for row, row_ref, target in zip(z, z_ref, targets.tolist(), strict=True):
        task -= math.log(softmax(row[None])[0, target])
        p, q = softmax(row_ref[None] / temperature)[0], softmax(row[None] / temperature)[0]
        consistency += temperature**2 * float((p * np.log(p / q)).sum())
        kept = np.sort(row)[::-1][: config.entropy_top_k or len(row)]
        r = softmax(kept[None])[0]
        diversity += float((r * np.log(r)).sum())
    uncapped = linear(hidden)
    kept_rows = min(len(uncapped), config.svd_max_tokens)
    uncapped = uncapped[[i * len(uncapped) // kept_rows for i in range(kept_rows)]]
    sigma = np.linalg.svd(uncapped, compute_uv=False)
    max_rank = min(*uncapped.shape, head.weight.shape[1] + (head.bias is not None))
    k = config.svd_k if isinstance(config.svd_k, int) else math.ceil(config.svd_k * max_rank)
    k = min(k, max_rank)
    total = sigma.sum() if config.svd_denominator == "nuclear" else np.sqrt((sigma**2).sum())
    svd = -(sigma[:k].sum() / total + config.svd_variance_coef * sigma[:k].var())
    return task, consistency, diversity, float(svd)


def make_head(rng, *, vocab=29, size=7, bias=False, **settings):
    weight = torch.randn(vocab, size, generator=rng, dtype=torch.float64)
    offset = torch.randn(vocab, generator=rng, dtype=torch.float64) if bias else None
    return LMHead(weight, offset, **settings)


def make_states(rng, head, num_tokens=11):
    hidden, reference = (
        torch.randn(num_tokens, head.weight.shape[1], generator=rng, dtype=torch.float64)
        for _ in range(2)
    )
    return hidden, reference, torch.randint(len(head.weight), (num_tokens,), generator=rng)


CONFIGS = {
    "paper": BALoraConfig.preset("paper"),
    "iclr2026": BALoraConfig.preset("iclr2026", svd_k=3, svd_variance_coef=0.5),
    "few rows": BALoraConfig(svd_max_tokens=5, svd_k=0.5),
}
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled and capped": {"scale": 0.3, "softcap": 1.5},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
def test_terms_match_the_definition(config, head_settings, rng):
    head = make_head(rng, **head_settings)
    hidden, reference, targets = make_states(rng, head)
    _, terms, counts = nlg_objective(
        hidden,
        reference,
        targets,
        head=head,
        config=config,
        normalizer=Normalizer(40, num_processes=2, num_micro_steps=3),
        coefficients=ALL_ON,
    )
    *sums, svd = numpy_terms(hidden, reference, targets, head, config)
    expected = [2 * value / 40 for value in sums] + [svd / 3]
    # terms of token and batch type, each on its own
    np.testing.assert_allclose([term.item() for term in terms], expected, rtol=1e-9)
    logits = head(hidden)
    probabilities = softmax(logits.numpy())
    entropy = -(probabilities * np.log(probabilities)).sum()
    np.testing.assert_allclose(counts.entropy.item(), entropy, rtol=1e-9)
    assert counts.num_tokens.item() == 11
    assert counts.num_correct.item() == (logits.argmax(dim=1) == targets).sum().item()


def test_reference_is_held_constant(rng):
    head = make_head(rng)
    hidden, reference, targets = make_states(rng, head)
    hidden.requires_grad_()
    reference.requires_grad_()
    loss, _, _ = nlg_objective(
        hidden,
        reference,
        targets,
        head=head,
        config=BALoraConfig(),
        normalizer=Normalizer(11),
        coefficients=ALL_ON,
    )
    loss.backward()
    assert reference.grad is None
    assert hidden.grad is not None


def raising(*_args, **_kwargs):
    raise AssertionError("a term that is off was computed")


@pytest.mark.parametrize("on", ["consistency", "diversity", "svd", None])
def test_a_term_that_is_off_is_none_and_costs_nothing(on, rng, monkeypatch):
    head = make_head(rng)
    hidden, reference, targets = make_states(rng, head)
    for name in ("consistency", "diversity", "svd"):
        if name != on:
            monkeypatch.setattr(nlg, f"{name}_loss", raising)
    coefficients = Coefficients(*(float(name == on) for name in Coefficients._fields))
    _, terms, _ = nlg_objective(
        hidden,
        reference if on == "consistency" else None,
        targets,
        head=head,
        config=BALoraConfig(),
        normalizer=Normalizer(11),
        coefficients=coefficients,
    )
    for name in ("consistency", "diversity", "svd"):
        assert (getattr(terms, name) is None) == (name != on)


def test_consistency_without_a_reference_is_an_error(rng):
    head = make_head(rng)
    hidden, _, targets = make_states(rng, head)
    with pytest.raises(ValueError, match="`reference_hidden` is None"):
        nlg_objective(
            hidden,
            None,
            targets,
            head=head,
            config=BALoraConfig(),
            normalizer=Normalizer(11),
            coefficients=ALL_ON,
        )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_tokens_gives_attached_zeros(config, rng):
    head = make_head(rng)
    hidden, reference, targets = make_states(rng, head, num_tokens=0)
    hidden.requires_grad_()
    _, terms, counts = nlg_objective(
        hidden,
        reference,
        targets,
        head=head,
        config=config,
        normalizer=Normalizer(0),
        coefficients=ALL_ON,
    )
    for term in terms[:4]:
        assert term.item() == 0.0
        (grad,) = torch.autograd.grad(term, hidden, retain_graph=True)
        assert grad.shape == (0, 7)
    *sums, num_svd_rows = counts
    assert [count.item() for count in sums] == [0.0, 0.0, 0.0]
    assert num_svd_rows == 0
