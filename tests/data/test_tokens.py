"""From texts to tokens: order, truncation of the longer text, and the room that texts need."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from balora.config.classification import ClassificationConfig
from balora.data.classification import load_training_rows, tokenize_rows
from balora.errors import ConfigError, DataError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "a", "b", "c", "d"]
PAD, CLS, SEP, A, B, C, D = range(7)


def bert(*, specials: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer of letters, with BERT's special tokens or with none."""
    vocab = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab, []))  # what is not known makes no token
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if specials else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", model_input_names=names
    )


@pytest.fixture
def pairs(write):
    name = write(
        "pairs.jsonl",
        [
            {"sentence1": "a b c d", "sentence2": "a", "label": "x"},
            {"sentence1": "b", "sentence2": "a b c d", "label": "y"},
            {"sentence1": "c", "sentence2": "d", "label": "x"},
        ],
    )
    return load_training_rows(ClassificationConfig(task="classification", dataset_name=name))


@pytest.fixture
def singles(write):
    rows = [{"text": "a b c d", "label": 0.5, "more": 1}, {"text": "d", "label": 2, "more": 2}]
    name = write("singles.jsonl", rows)
    return load_training_rows(ClassificationConfig(task="regression", dataset_name=name))


def test_the_longer_text_is_cut_first(pairs):
    tokens = tokenize_rows(pairs, bert(), 7)
    assert tokens["input_ids"][:] == [
        [CLS, A, B, C, SEP, A, SEP],
        [CLS, B, SEP, A, B, C, SEP],
        [CLS, C, SEP, D, SEP],
    ]
    assert tokens["token_type_ids"][0] == [0, 0, 0, 0, 0, 1, 1]
    assert tokens["attention_mask"][2] == [1] * 5
    assert tokens["labels"][:] == [0, 1, 0]
    assert set(tokens.column_names) == {
        "input_ids",
        "token_type_ids",
        "attention_mask",
        "labels",
    }


def test_the_tokenizer_stays_as_it_was(pairs):
    tokenizer = bert()
    backend = tokenizer.backend_tokenizer
    assert (backend.truncation, backend.padding) == (None, None)
    tokenize_rows(pairs, tokenizer, 8)
    assert (backend.truncation, backend.padding) == (None, None)
    backend.enable_truncation(max_length=3, stride=1)
    backend.enable_padding(length=5)
    before = (dict(backend.truncation), dict(backend.padding))
    tokenize_rows(pairs, tokenizer, 7)
    assert (backend.truncation, backend.padding) == before


def test_the_smallest_length_keeps_a_token_of_each_text(pairs):
    tokens = tokenize_rows(pairs, bert(), 5)
    assert tokens["input_ids"][:] == [
        [CLS, A, SEP, A, SEP],
        [CLS, B, SEP, A, SEP],
        [CLS, C, SEP, D, SEP],
    ]


def test_a_single_text_and_its_target(singles):
    tokens = tokenize_rows(singles, bert(specials=False), 3)
    assert tokens[:] == {
        "input_ids": [[A, B, C], [D]],
        "attention_mask": [[1, 1, 1], [1]],
        "labels": [0.5, 2.0],
    }


def test_a_length_without_room_for_each_text_is_refused(pairs, singles):
    with pytest.raises(
        ConfigError, match="`max_length` is 4, but the tokenizer puts 3 special"
    ) as e:
        tokenize_rows(pairs, bert(), 4)
    assert str(e.value).endswith("Raise it to 5 or more.")
    with pytest.raises(
        ConfigError, match=r"`max_length` is 2, .* 2 special .* a text.* to 3 or more"
    ):
        tokenize_rows(singles, bert(), 2)
    assert tokenize_rows(singles, bert(), 3)["input_ids"][0] == [CLS, A, SEP]
    with pytest.raises(
        ConfigError, match=r"`max_length` is 1, .* 0 special tokens around two texts"
    ):
        tokenize_rows(pairs, bert(specials=False), 1)


def test_a_text_without_any_token_is_refused(write):
    name = write("rows.jsonl", [{"text": "a", "label": 1}, {"text": "??", "label": 2}])
    rows = load_training_rows(ClassificationConfig(task="regression", dataset_name=name))
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: the tokenizer makes no token of the"):
        tokenize_rows(rows, bert(specials=False), 8)
