"""Rows that trl would train on or leave out without a word. Each message is read."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset, IterableDataset
from tokenizers.processors import TemplateProcessing

from balora.errors import DataError, RowError
from balora.trainers.rows import is_scored, kept_part
from support.models import make_tokenizer
from support.training import make_rows, make_trainer, sft_config

USER, ANSWER = {"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}
EMPTY = {"role": "assistant", "content": " "}


def with_row(row):
    """Return rows of which the third (number 2) is ``row``."""
    good = {
        "completion": {"prompt": "ab=", "completion": "cd"},
        "messages": {"messages": [USER, ANSWER]},
        "input_ids": {"input_ids": [5, 6, 2], "labels": [-100, 6, 2]},
    }
    kind = next(kind for kind in good if kind in row)
    if isinstance(row[kind], list) and kind == "completion":
        good[kind] = {"prompt": [USER], "completion": [ANSWER]}
    return Dataset.from_list([good[kind], good[kind], row, good[kind]])


BAD_ROWS = {
    "empty": ({"prompt": "ab=", "completion": ""}, "the `completion` is empty"),
    "blank": ({"prompt": "ab=", "completion": " \n"}, "the `completion` is empty"),
    "missing": ({"prompt": "ab=", "completion": None}, "the `completion` is empty"),
    "empty chat": (
        {"prompt": [USER], "completion": [EMPTY]},
        "an assistant's turn of `completion` is empty",
    ),
    "empty turn": ({"messages": [USER, EMPTY]}, "an assistant's turn of `messages` is empty"),
    "one of two turns": ({"messages": [USER, EMPTY, USER, ANSWER]}, "turn of `messages` is empty"),
    "no assistant": ({"messages": [USER]}, "no turn of `messages` is the assistant's"),
    "no label": (
        {"input_ids": [5, 6, 2], "labels": [-100] * 3},
        "no token of it is to be predicted",
    ),
    "first label only": (
        {"input_ids": [5, 6, 2], "labels": [5, -100, -100]},
        "no token of it is to be predicted",
    ),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_bad_row_is_named(tmp_path, row, message, part):
    good = Dataset.from_list([with_row(row)[0]])
    sets = {"train": good, "eval": good} | {part: with_row(row)}
    with pytest.raises(RowError, match=message) as error:
        make_trainer(tmp_path, rows=sets["train"], options={"eval_dataset": sets["eval"]})
    assert str(error.value).startswith(f"row 2 of the {part} data: ")
    assert (error.value.row, error.value.dataset, error.value.exit_status) == (2, part, 2)


def test_a_turn_that_calls_a_tool_may_be_silent(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, USER, ANSWER]
    make_trainer(tmp_path, rows=Dataset.from_list([{"messages": turns}]))


@pytest.mark.parametrize("row", [BAD_ROWS["empty"][0], BAD_ROWS["no label"][0]], ids=["raw", "ids"])
def test_a_bad_row_of_a_streamed_data_set_is_named_when_it_is_read(tmp_path, row):
    rows = with_row(row).to_iterable_dataset()
    trainer = make_trainer(tmp_path, rows=rows, max_steps=2, per_device_train_batch_size=1)
    with pytest.raises(RowError, match="row 2 of the train data"):
        trainer.train()


@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_empty_data_set(tmp_path, part, streamed):
    empty = IterableDataset.from_generator(list) if streamed else Dataset.from_list([])
    sets = {"train": make_rows(), "eval": make_rows()} | {part: empty}
    with pytest.raises(DataError, match=f"the {part} data set is empty: it has no row"):
        make_trainer(tmp_path, rows=sets["train"], options={"eval_dataset": {"eval": sets["eval"]}})


def test_a_column_of_conversations_is_refused(tmp_path):
    rows = Dataset.from_list([{"conversations": [{"from": "human", "value": "ab"}]}])
    with pytest.raises(DataError, match=r"a column `conversations`.* Turn it into `messages`"):
        make_trainer(tmp_path, rows=rows)


# tokenizers that close every text by themselves


def closing_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["completion", "text"])
def test_a_text_ends_once_whoever_closes_it(tmp_path, kind, streamed):
    rows = [{"prompt": "ab=", "completion": c} for c in ("cd", "x</s>")]
    if kind == "text":
        rows = [{"text": row["prompt"] + row["completion"]} for row in rows]
    dataset = Dataset.from_list(rows)
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    options = {"processing_class": closing_tokenizer()}
    trainer = make_trainer(tmp_path, rows=dataset, options=options, max_steps=1)
    for row, text in zip(trainer.train_dataset, ("ab=cd", "ab=x"), strict=True):
        ids = [1, *map(ord, text), 2]
        assert row["input_ids"] == ids
        start = 1 if kind == "text" else 4
        is_completion = kind == "completion"
        assert row["labels"][start:] == ids[start:]
        assert row["labels"].count(-100) == (4 if is_completion else 0)


def test_a_chat_and_rows_of_tokens_stay_as_they_are(tmp_path):
    options = {"processing_class": closing_tokenizer()}
    tokens = Dataset.from_list([{"input_ids": [5, 6, 2, 2], "labels": [-100, 6, 2, 2]}])
    trainer = make_trainer(tmp_path, rows=tokens, options=options)
    assert trainer.train_dataset[0]["labels"] == [-100, 6, 2, 2]
    chat = Dataset.from_list([{"messages": [USER, ANSWER]}])
    trainer = make_trainer(tmp_path, rows=chat, options=options)
    assert trainer.train_dataset[0]["input_ids"][-3:] == [ord("c"), ord("d"), 2]


# responses cut off by `max_length`

LONG = {"prompt": "abcdefgh=", "completion": "xyz"}


def overlong_rows():
    short = {"prompt": "ab=", "completion": "cd"}
    return Dataset.from_list([short, LONG, short, LONG])


@pytest.mark.parametrize("settings", [{}, {"packing": True}], ids=["plain", "packed"])
def test_a_response_cut_off_entirely_is_named(tmp_path, settings):
    message = (
        r"^row 1 of the train data: `max_length` 9 cuts the whole response off \(it starts at "
        r"token 10 of 13\)\. Raise `max_length`, shorten the row, or set `overlong_rows: drop`\.$"
    )
    with pytest.raises(RowError, match=message):
        make_trainer(tmp_path, rows=overlong_rows(), max_length=9, **settings)


@pytest.mark.parametrize("settings", [{}, {"packing": True}], ids=["plain", "packed"])
def test_such_rows_are_left_out_on_request(tmp_path, settings, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(
            tmp_path,
            rows=overlong_rows(),
            max_length=9,
            options={"overlong_rows": "drop"},
            **settings,
        )
    assert "off in 2 of the 4 rows of the train data; they are dropped" in caplog.text
    ids = [token for row in trainer.train_dataset for token in row["input_ids"]]
    assert len(ids) == 12
    assert ord("h") not in ids


def test_nothing_is_said_when_no_row_is_left_out(tmp_path, caplog):
    make_trainer(tmp_path, rows=overlong_rows(), options={"overlong_rows": "drop"})
    assert "dropped" not in caplog.text


def test_leaving_out_every_row_is_an_error(tmp_path):
    rows = overlong_rows().select([1, 3])
    with pytest.raises(DataError, match="off in 2 of the 2 rows of the train data"):
        make_trainer(tmp_path, rows=rows, max_length=9, options={"overlong_rows": "drop"})


def test_one_token_of_the_response_is_enough(tmp_path):
    trainer = make_trainer(tmp_path, rows=overlong_rows(), max_length=10)
    assert [len(row["input_ids"]) for row in trainer.train_dataset] == [6, 10, 6, 10]


def test_rows_keep_their_numbers_when_they_are_shuffled(tmp_path):
    rows = overlong_rows().select([0, 2, 1, 0, 2])
    with pytest.raises(RowError, match="row 2 of the train data"):
        make_trainer(tmp_path, rows=rows, max_length=9, shuffle_dataset=True)
    trainer = make_trainer(tmp_path, rows=make_rows(), shuffle_dataset=True)
    ordered = make_trainer(tmp_path, rows=make_rows())
    found, expected = (t.train_dataset["input_ids"][:] for t in (trainer, ordered))
    assert found != expected
    assert sorted(found) == sorted(expected)


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("settings", "packing", "expected"),
    [
        ({"max_length": None}, False, slice(None)),
        ({"max_length": 4}, False, slice(4)),
        ({"max_length": 4, "truncation_mode": "keep_end"}, False, slice(-4, None)),
        ({"max_length": 4}, True, slice(4)),
        # trl packs the start of a row whatever the mode
        ({"max_length": 4, "truncation_mode": "keep_end"}, True, slice(4)),
        ({"max_length": 4, "packing_strategy": "bfd_split"}, True, slice(None)),
    ],
)
def test_kept_part(tmp_path, settings, packing, expected):
    assert kept_part(sft_config(tmp_path, **settings), packing=packing) == expected


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
def test_a_packed_row_is_checked_on_what_trl_packs_of_it(tmp_path):
    settings = {"max_length": 9, "packing": True, "truncation_mode": "keep_end"}
    with pytest.raises(RowError, match="row 1 of the train data: `max_length` 9 cuts the whole"):
        make_trainer(tmp_path, rows=overlong_rows(), **settings)
    whole = make_trainer(tmp_path, rows=overlong_rows(), **(settings | {"max_length": 10}))
    packed = [token for row in whole.train_dataset for token in row["input_ids"]]
    assert packed.count(ord("a")) == 4  # each row from its first token on
    assert packed.count(ord("z")) == 0


def test_the_first_token_of_what_is_kept_is_not_predicted():
    row = {"labels": [-100, 1, -100, 2]}
    assert is_scored(row, slice(2))
    assert not is_scored(row, slice(1))
    assert not is_scored(row, slice(-1, None))
    assert is_scored(row, slice(-2, None))
