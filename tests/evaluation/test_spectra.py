"""The spectrum of the logits against plain float64 computations."""

from __future__ import annotations

import pytest
import torch

from balora.evaluation.spectra import logit_spectrum
from support.adapters import adapted_model, anchored_model, make_batch, train
from support.models import CAUSAL, EXAMPLES, OTHER_HEADS, make_model, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@torch.no_grad()
def response_logits(model, tokenizer, pairs):
    """The logits that predict each response token, one row of the data at a time, in float64."""
    model, rows = model.double(), []
    for prompt, completion in pairs:
        start = len(tokenizer(prompt).input_ids)
        ids = [*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id]
        rows.append(model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1])
    return torch.cat(rows)


@pytest.mark.parametrize("architecture", [*CAUSAL, "cohere", "granite", "phi"])
def test_the_spectrum_is_that_of_the_logits(architecture, tokenizer):
    model = make_model(architecture)
    actual = logit_spectrum(model, tokenizer, EXAMPLES)
    expected = torch.linalg.svdvals(response_logits(model, tokenizer, EXAMPLES))
    # no more than the logits can have a rank: the hidden size, and one for a bias
    assert len(actual) == {"phi": 33}.get(architecture, 32)
    torch.testing.assert_close(
        torch.tensor(actual, dtype=torch.float64), expected[: len(actual)], rtol=1e-5, atol=1e-5
    )


def test_the_spectrum_is_taken_before_a_soft_cap(tokenizer):
    capped = make_model("gemma2")
    free = make_model("gemma2", final_logit_softcapping=None)
    assert OTHER_HEADS["gemma2"]["final_logit_softcapping"] == 1.0
    expected = torch.linalg.svdvals(response_logits(free, tokenizer, EXAMPLES))
    actual = logit_spectrum(capped, tokenizer, EXAMPLES, top=8)
    assert actual == pytest.approx(expected[:8].tolist(), rel=1e-5)
    # and not of what the model itself would return
    with_cap = torch.linalg.svdvals(response_logits(capped, tokenizer, EXAMPLES))
    assert actual != pytest.approx(with_cap[:8].tolist(), rel=1e-2)


def test_the_largest_values_come_first_and_no_more_than_asked(tokenizer):
    model = make_model("llama")
    whole = logit_spectrum(model, tokenizer, EXAMPLES)
    assert logit_spectrum(model, tokenizer, EXAMPLES, top=3) == whole[:3]
    assert whole == sorted(whole, reverse=True)
    assert all(type(value) is float for value in whole)


def test_of_many_tokens_evenly_spaced_ones_count(tokenizer):
    model = make_model("llama")
    logits = response_logits(model, tokenizer, EXAMPLES)
    kept = [i * len(logits) // 7 for i in range(7)]
    expected = torch.linalg.svdvals(logits[kept])
    actual = logit_spectrum(model.float(), tokenizer, EXAMPLES, max_tokens=7)
    assert actual == pytest.approx(expected.tolist(), rel=1e-5)
    # some rows hold none of two tokens
    kept = [0, len(logits) // 2]
    expected = torch.linalg.svdvals(logits[kept])
    actual = logit_spectrum(model.float(), tokenizer, EXAMPLES, max_tokens=2)
    assert actual == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("make", [adapted_model, anchored_model])
def test_the_spectrum_of_a_model_with_adapters_sees_them(make, tokenizer, rng):
    model = make("llama")
    before = logit_spectrum(make_model("llama"), tokenizer, EXAMPLES)
    assert logit_spectrum(model, tokenizer, EXAMPLES) == pytest.approx(before, rel=1e-5, abs=1e-4)
    train(model, make_batch("llama", rng))
    actual = logit_spectrum(model, tokenizer, EXAMPLES)
    expected = torch.linalg.svdvals(response_logits(model, tokenizer, EXAMPLES))
    assert actual == pytest.approx(expected[: len(actual)].tolist(), rel=1e-5, abs=1e-5)
    assert actual != pytest.approx(before, rel=1e-3)


def test_an_adapted_head_is_not_taken_for_the_pre_trained_one(tokenizer, rng):
    model = adapted_model("llama", target_modules=["lm_head", "q_proj"])
    train(model, make_batch("llama", rng))
    actual = logit_spectrum(model, tokenizer, EXAMPLES, top=16)
    expected = torch.linalg.svdvals(response_logits(model, tokenizer, EXAMPLES))
    assert actual == pytest.approx(expected[:16].tolist(), rel=1e-5)


def test_a_head_of_its_own_kind_is_measured_by_its_logits(tokenizer):
    model = make_model("llama")
    head = model.lm_head
    head.register_forward_hook(lambda module, args, logits: logits.tanh())
    actual = logit_spectrum(model, tokenizer, EXAMPLES, top=16)
    expected = torch.linalg.svdvals(response_logits(model, tokenizer, EXAMPLES))
    assert actual == pytest.approx(expected[:16].tolist(), rel=1e-5)


def test_the_spectrum_leaves_the_mode_and_needs_no_dropout(tokenizer):
    model = make_model("gpt2")  # its config has dropout 0.1
    expected = logit_spectrum(model, tokenizer, EXAMPLES)
    assert logit_spectrum(model.train(), tokenizer, EXAMPLES) == expected
    assert all(module.training for module in model.modules())


def test_a_spectrum_of_nothing_is_refused(tokenizer):
    model = make_model("llama")
    with pytest.raises(ValueError, match="`pairs` is empty"):
        logit_spectrum(model, tokenizer, [])
    for name in ("top", "max_tokens"):
        with pytest.raises(ValueError, match=f"`{name}` must be 1 or greater, got 0"):
            logit_spectrum(model, tokenizer, EXAMPLES, **{name: 0})
