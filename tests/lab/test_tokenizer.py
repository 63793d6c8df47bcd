"""The tokenizer: digits one by one, any text back unchanged, known words in one piece."""

from __future__ import annotations

import pytest

from balora.lab.corpus import CorpusSettings, build_corpus
from balora.lab.tokenizer import INSTRUCTION_WORDING, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    lines = build_corpus(CorpusSettings(num_people=60, num_stories=1000)).train_lines(1)
    return build_tokenizer([*lines, *list(INSTRUCTION_WORDING) * 300], vocab_size=1024)


@pytest.mark.parametrize(
    "text", ["Anna has 12 apples.", "H\u00e9llo  w\u00f6rld\n\n\t#1,234.5 \u4f60\u597d", " ", ""]
)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_digit_is_a_piece(tokenizer):
    pieces = tokenizer.tokenize("12 + 345 = 357")
    assert [piece.strip("\u0120") for piece in pieces] == [*"12", "+", *"345", "=", *"357"]
    numbers = [piece for piece in tokenizer.get_vocab() if any(map(str.isdigit, piece))]
    assert all(len(piece.strip("\u0120")) == 1 for piece in numbers)


def test_the_instruction_wording_costs_words_not_letters(tokenizer):
    prompt = INSTRUCTION_WORDING[0]
    assert len(tokenizer.tokenize(prompt)) <= 1.7 * len(prompt.split())


def test_the_end_of_sequence_is_one_piece_in_text(tokenizer):
    ids = tokenizer("7</s>", add_special_tokens=False).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert len(ids) == 2


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ValueError, match="`vocab_size` is 100"):
        build_tokenizer(["a"], vocab_size=100)
