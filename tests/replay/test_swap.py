"""Which tokens a pair of words swaps."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from balora.assets import asset_path
from balora.errors import ConfigError
from balora.replay.swap import swap_of


@pytest.fixture(scope="module")
def words():
    """Return a tokenizer of whole words, with their space as GPT-2 writes it."""
    pieces = ["a", "\u0120he", "\u0120she", "he", "she", "\u0120He", "\u0120She", "\u0120his"]
    pieces += ["\u010a", "\u0120h", "er", "\u0120her", "s"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a")


def test_a_pair_has_its_capitals_and_its_words_at_the_beginning(words):
    names = words.convert_ids_to_tokens
    found = swap_of([["he", "she"]], words)
    pairs = {(names(one), names(other)) for one, other in found.items()}
    expected = {("\u0120he", "\u0120she"), ("\u0120He", "\u0120She"), ("he", "she")}
    assert pairs == expected | {(other, one) for one, other in expected}


def test_the_swap_is_its_own_inverse():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asset_path("tiny_lm"))
    found = swap_of([["he", "she"]], tokenizer)
    assert found
    assert all(found[other] == one != other for one, other in found.items())


def test_a_word_of_several_tokens_is_refused_with_them():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asset_path("tiny_lm"))
    with pytest.raises(ConfigError, match=r"`grandfather` is .* tokens of this model"):
        swap_of([["grandfather", "grandmother"]], tokenizer)


def test_a_word_in_two_pairs_is_refused(words):
    with pytest.raises(ConfigError, match="stands in another pair"):
        swap_of([["he", "she"], ["he", "his"]], words)


def test_no_pair_swaps_nothing(words):
    assert swap_of([], words) == {}
