"""The figures by hand, and samples against the distribution that they are drawn from."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from balora.lab.diversity import distinct, sample_texts, self_similarity, word_entropy
from support.models import make_model, make_tokenizer
from support.planted import PlantedLM

# 5 + 4 words, 4 + 3 pairs of neighbours
TEXTS = ["a cat, a dog", "a cat sat down"]


def test_distinct_by_hand():
    # a cat , dog sat down
    assert distinct(TEXTS, 1) == pytest.approx(6 / 9)
    # (a cat) twice; (cat ,) (, a) (a dog) (cat sat) (sat down)
    assert distinct(TEXTS, 2) == pytest.approx(6 / 7)
    # no pair goes from one text to the next
    assert distinct(["a b", "a b"], 2) == pytest.approx(1 / 2)
    assert distinct(["b", "a"], 2) == distinct([], 1) == distinct([""], 1) == 0.0


def test_words_are_letters_and_digits_or_one_sign():
    assert distinct(["Ann's 12 hats..."], 1) == pytest.approx(6 / 8)  # Ann ' s 12 hats . . .


def test_the_entropy_of_words_by_hand():
    # a three times, cat twice, four words once
    counts = (3, 2, 1, 1, 1, 1)
    expected = -sum(n / 9 * math.log(n / 9) for n in counts)
    assert word_entropy(TEXTS) == pytest.approx(expected)
    assert word_entropy(["a b c d"]) == pytest.approx(math.log(4))
    assert word_entropy(["a a", "a"]) == word_entropy([]) == 0.0
    assert math.copysign(1, word_entropy(["a"])) == 1


def test_the_self_similarity_by_hand():
    # (a cat) of 4 and 3 pairs: 1 of 6
    assert self_similarity(TEXTS) == pytest.approx(1 / 6)
    # the mean over three pairs: 1/6, 1, 1/6
    assert self_similarity([*TEXTS, TEXTS[0]]) == pytest.approx((1 / 6 + 1 + 1 / 6) / 3)
    assert self_similarity(["a b", "b a"]) == 0.0
    assert self_similarity(["", "a"]) == 1.0
    assert self_similarity(["", "a b"]) == 0.0
    with pytest.raises(ValueError, match="1 text, but a pair needs two"):
        self_similarity(["a b"])


# samples

TABLE = {
    "": {"a": 0.5, "b": 0.3, "c": 0.2},
    "a": {"x": 0.25, "y": 0.75},
    "b": {"": 1.0},
    "c": {"x": 1.0},
}
EXPECTED = {"ax": 0.125, "ay": 0.375, "b": 0.3, "cx": 0.2}


def sample(model, **arguments):
    settings = {"num": 8, "max_new_tokens": 12, "seed": 0, "batch_size": 8}
    return sample_texts(model, make_tokenizer(), **(settings | arguments))


def test_samples_have_the_probabilities_of_the_model():
    num = 2000
    counts = Counter(sample(PlantedLM(TABLE), num=num, max_new_tokens=3, batch_size=500))
    assert counts.keys() == EXPECTED.keys()
    for text, probability in EXPECTED.items():
        spread = math.sqrt(probability * (1 - probability) / num)
        assert counts[text] / num == pytest.approx(probability, abs=4 * spread)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_samples_depend_on_the_seed_and_on_no_batch(architecture):
    model = make_model(architecture)
    texts = sample(model)
    assert len(texts) == len(set(texts)) == 8
    for size in (1, 3):
        assert sample(model, batch_size=size) == texts
    assert sample(model, num=3) == texts[:3]
    assert sample(model, seed=1) != texts


def test_generators_and_mode_are_left_as_they_were():
    model = make_model("gpt2").train()  # its config has dropout 0.1
    state = torch.get_rng_state()
    one = sample(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    torch.manual_seed(1)
    assert sample(model) == one == sample(model.eval())


def test_samples_fit_the_model():
    assert all(len(text) <= 5 for text in sample(PlantedLM({}, size=6), max_new_tokens=50))
    (text,) = sample(make_model("llama", max_position_embeddings=6), num=1, max_new_tokens=50)
    assert len(text) <= 5


def test_a_tokenizer_without_a_start_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    model = make_model("llama")
    assert sample_texts(model, tokenizer, num=2, max_new_tokens=2, seed=0, batch_size=2)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no `bos_token` and no `eos_token`"):
        sample_texts(model, tokenizer, num=2, max_new_tokens=2, seed=0, batch_size=2)
