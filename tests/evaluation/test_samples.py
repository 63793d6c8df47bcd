"""Answers before and after, side by side."""

from __future__ import annotations

import pytest

from balora.evaluation import MeasureOptions
from balora.evaluation.exact_match import generate
from balora.evaluation.samples import sample_pairs
from support.models import EXAMPLES, make_model, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_samples_hold_both_answers_of_evenly_spaced_prompts(tokenizer):
    # their config has dropout 0.1
    tuned, base = make_model("gpt2", seed=1), make_model("gpt2", seed=2)
    pairs = [(f"{i} and {i}?", f"  {i} \n") for i in range(7)]
    tuned.train()
    samples = sample_pairs(tuned, base, tokenizer, pairs, num=3, max_new_tokens=6)
    assert tuned.training
    assert [sample["prompt"] for sample in samples] == ["0 and 0?", "2 and 2?", "4 and 4?"]
    assert [sample["gold"] for sample in samples] == ["0", "2", "4"]
    options = MeasureOptions(max_new_tokens=6)
    for name, model in (("before", base), ("after", tuned.eval())):
        texts = generate(model, tokenizer, [s["prompt"] for s in samples], options=options)
        assert [sample[name] for sample in samples] == [text.strip() for text in texts]
    assert samples[0]["before"] != samples[0]["after"]


def test_samples_of_few_pairs_are_all_of_them(tokenizer):
    model = make_model("llama")
    assert len(sample_pairs(model, model, tokenizer, EXAMPLES, max_new_tokens=2)) == 3
    assert sample_pairs(model, model, tokenizer, []) == []
    with pytest.raises(ValueError, match="`num` must be 1 or greater, got 0"):
        sample_pairs(model, model, tokenizer, EXAMPLES, num=0)
