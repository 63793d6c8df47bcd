"""Loading: formats by column, where a row stands, and a sentence for every kind of bad data."""

from __future__ import annotations

import json
import logging

import datasets
import pytest

from balora.config import DataConfig
from balora.data import ALPACA, load_examples
from balora.errors import DataError

QA = [{"query": f"question {n}", "response": f"answer {n}"} for n in range(10)]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


def load(name: str, split: str = "train", **settings):
    return load_examples(DataConfig(dataset_name=name, **settings), split=split, name="train")


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("query", "response"),
        ("query", "answer"),
        ("question", "answer"),
        ("instruction", "output"),
        ("instruction", "response"),
    ],
)
def test_plain_instructions_get_the_papers_prompt(write, prompt, response):
    examples = load(write("rows.jsonl", [{prompt: "Add.", response: "4", "type": "x"}]))
    assert examples.dataset.column_names == ["prompt", "completion"]
    assert examples.dataset[0] == {"prompt": ALPACA.prompt("Add."), "completion": " 4"}


def test_input_is_used_where_a_row_has_one(write):
    rows = [
        {"instruction": "Add.", "input": "2 2", "output": "4"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Say ho.", "input": None, "output": "ho"},
    ]
    prompts = load(write("rows.jsonl", rows)).dataset["prompt"]
    assert list(prompts) == [
        ALPACA.prompt("Add.", "2 2"),
        ALPACA.prompt("Say hi."),
        ALPACA.prompt("Say ho."),
    ]


def test_prompt_and_completion_are_kept_as_they_are(write):
    row = {"prompt": "2+2=", "completion": "4", "id": 7}
    assert load(write("rows.jsonl", [row])).dataset[0] == {"prompt": "2+2=", "completion": "4"}


def test_messages_are_kept_with_what_the_chat_template_reads(write):
    row = {"messages": CHAT, "tools": "[]", "id": 1}
    assert load(write("rows.jsonl", [row])).dataset[0] == {"messages": CHAT, "tools": "[]"}


def test_conversational_prompt_and_completion_are_kept(write):
    row = {"prompt": CHAT[:1], "completion": CHAT[1:], "id": 1}
    got = load(write("rows.jsonl", [row])).dataset[0]
    assert got == {"prompt": CHAT[:1], "completion": CHAT[1:]}


@pytest.mark.parametrize("turns", [CHAT, SHARED])
def test_conversations_become_messages(write, turns):
    examples = load(write("rows.jsonl", [{"conversations": turns, "id": 1}]))
    assert examples.dataset[0] == {"messages": CHAT}


def test_system_turns_keep_their_role(write):
    turns = [{"from": "system", "value": "be kind"}, *SHARED]
    messages = load(write("rows.jsonl", [{"conversations": turns}])).dataset[0]["messages"]
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(("column", "turns"), [("conversations", SHARED), ("messages", CHAT)])
def test_a_chat_is_a_plain_instruction_with_a_template(write, column, turns):
    name = write("rows.jsonl", [{column: turns}])
    examples = load(name, prompt_template="alpaca")
    assert examples.dataset[0] == {"prompt": ALPACA.prompt("hi"), "completion": " hello"}
    assert examples.notes == ()


def test_turns_that_a_template_leaves_out_are_reported(write, caplog):
    rows = [{"conversations": SHARED}, {"conversations": SHARED * 2}]
    with caplog.at_level(logging.WARNING):
        examples = load(write("rows.jsonl", rows), prompt_template="alpaca")
    assert examples.notes[0].startswith("1 of 2 rows of rows.jsonl have more turns than one")
    assert examples.notes[0] in caplog.text


def test_named_columns_win_over_usual_ones(write):
    rows = [{"messages": CHAT, "q": "Add.", "ctx": "2 2", "a": "4"}]
    columns = {"prompt_column": "q", "input_column": "ctx", "response_column": "a"}
    assert load(write("rows.jsonl", rows), **columns).dataset[0] == {
        "prompt": ALPACA.prompt("Add.", "2 2"),
        "completion": " 4",
    }


def test_order_of_the_usual_columns(write):
    row = {"messages": CHAT, "prompt": "p", "completion": "c", "query": "q", "response": "r"}
    assert load(write("a.jsonl", [row])).dataset.column_names == ["messages"]
    del row["messages"]
    assert load(write("b.jsonl", [row])).dataset[0]["prompt"] == "p"


@pytest.mark.parametrize(
    ("template", "prompt", "completion"),
    [
        ("none", "question 0", "answer 0"),
        ("Q: {instruction}\nA:", "Q: question 0\nA:", " answer 0"),
        ("Q: {instruction}\nA:\n", "Q: question 0\nA:\n", "answer 0"),
    ],
)
def test_other_templates(write, template, prompt, completion):
    row = load(write("rows.jsonl", QA), prompt_template=template).dataset[0]
    assert row == {"prompt": prompt, "completion": completion}


def test_every_kind_of_file_gives_the_same_rows(write):
    expected = load(write("rows.jsonl", QA)).dataset.to_list()
    write("list.json", json.dumps(QA))
    write("lines.json", QA)
    write("rows.csv", "query,response\n" + "".join("{query},{response}\n".format(**r) for r in QA))
    datasets.Dataset.from_list(QA).to_parquet("rows.parquet")
    for name in ("list.json", "lines.json", "rows.csv", "rows.parquet"):
        assert load(name).dataset.to_list() == expected


def test_values_of_a_csv_file_are_text_as_it_stands(write):
    name = write("rows.csv", "\ufeffquery,response\n2+2,4\nwhat,None\nwhich,NA\n1,007\n")
    assert list(load(name, prompt_template="none").dataset["completion"]) == [
        "4",
        "None",
        "NA",
        "007",
    ]


def test_folders_are_read_by_split(write):
    write("data/train-1.jsonl", QA[:2])
    write("data/train-2.jsonl", QA[2:4])
    write("data/test.jsonl", QA[4:5])
    write("data/README.md", "not data")
    assert len(load("data").dataset) == 4
    assert len(load("data", "test").dataset) == 1
    with pytest.raises(DataError, match="data has no split `validation`, only test, train"):
        load("data", "validation")


def test_eval_reads_its_own_data_set(write):
    config = DataConfig(
        dataset_name=write("a.jsonl", QA), eval_dataset_name=write("b.jsonl", QA[:3])
    )
    assert len(load_examples(config, split="train", name="eval").dataset) == 3
    assert len(load_examples(config, split="train", name="train").dataset) == 10
    hub = DataConfig(dataset_name="a/b", dataset_config="main", eval_dataset_name="b.jsonl")
    assert len(load_examples(hub, split="train", name="eval").dataset) == 3
    same = DataConfig(dataset_name="a.jsonl")
    assert len(load_examples(same, split="train[:4]", name="eval").dataset) == 4


@pytest.mark.parametrize(
    ("split", "row", "line"),
    [
        ("train", 3, 4),
        ("train[4:7]", 1, 6),
        ("train[50%:]", 0, 6),
        ("train[:10%]", 0, 1),
        ("train[-2:]", 1, 10),
        ("train[:2]+train[8:]", 3, 10),
    ],
)
def test_rows_are_located_through_slices(write, split, row, line):
    examples = load(write("rows.jsonl", QA), split, prompt_template="none")
    assert examples.locate(row) == f"rows.jsonl, line {line}"
    assert examples.dataset[row]["prompt"] == f"question {line - 1}"


def test_blank_lines_and_line_breaks_inside_values_count(write):
    lines = [json.dumps(row) for row in QA]
    name = write("gaps.jsonl", lines[0] + "\n\n  \n" + lines[1] + "\n\n" + lines[2])
    assert [load(name).locate(row) for row in range(3)] == [
        f"gaps.jsonl, line {line}" for line in (1, 4, 6)
    ]
    name = write("gaps.csv", 'query,response\na,"x\ny"\n\n"b\nc",z\nd,w\n')
    assert [load(name).locate(row) for row in range(3)] == [
        f"gaps.csv, line {line}" for line in (2, 5, 7)
    ]


def test_rows_of_several_files_are_located_in_theirs(write):
    write("data/a.jsonl", QA[:3])
    write("data/b.jsonl", QA[3:])
    assert load("data", "train[2:]").locate(0) == "data/a.jsonl, line 3"
    assert load("data", "train[2:]").locate(1) == "data/b.jsonl, line 1"


def test_rows_without_lines_are_counted(write):
    write("rows.json", json.dumps(QA, indent=1))
    assert load("rows.json", "train[4:]").locate(1) == "row 5 of rows.json, counted from 0"
    datasets.Dataset.from_list(QA).to_parquet("rows.parquet")
    assert load("rows.parquet").locate(5) == "row 5 of rows.parquet (train), counted from 0"
    two_a_line = json.dumps(QA[0]) + " " + json.dumps(QA[1]) + "\n"
    assert load(write("two.jsonl", two_a_line)).locate(1) == "two.jsonl, line 1"


def test_formatting_is_cached_and_follows_the_template(write):
    name = write("rows.jsonl", QA)
    files = [load(name).dataset.cache_files[0]["filename"] for _ in range(2)]
    assert files[0] == files[1]
    other = load(name, prompt_template="{instruction}:").dataset
    assert other.cache_files[0]["filename"] != files[0]
    assert other[0]["prompt"] == "question 0:"


def bad(**replaced):
    return [*QA[:2], {**QA[2], **replaced}, {**QA[3], **replaced}, *QA[4:]]


@pytest.mark.parametrize(
    ("replaced", "problem"),
    [
        ({"response": ""}, "`response` is empty"),
        ({"response": " \n"}, "`response` is empty"),
        ({"response": None}, "`response` is missing or null"),
        ({"response": 5}, "`response` is a whole number, not text"),
        ({"response": ["x"]}, "`response` is a list, not text"),
        ({"query": ""}, "`query` is empty"),
        ({"query": None}, "`query` is missing or null"),
    ],
)
def test_a_bad_row_is_named_by_line_and_the_others_counted(write, replaced, problem):
    with pytest.raises(DataError) as error:
        load(write("rows.jsonl", bad(**replaced)))
    assert str(error.value) == (
        f"rows.jsonl, line 3: {problem}. 1 more rows cannot be trained on either. Correct or "
        "remove them."
    )
    assert error.value.exit_status == 2


def test_a_bad_row_outside_the_split_does_no_harm(write):
    assert len(load(write("rows.jsonl", bad(response="")), "train[:2]").dataset) == 2
    with pytest.raises(DataError, match=r"rows.jsonl, line 4: `response` is empty. Correct"):
        load("rows.jsonl", "train[3:]")


def test_a_row_without_the_column_is_a_bad_row(write):
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: `response` is missing or null"):
        load(write("rows.jsonl", [QA[0], {"query": "x"}]))


def test_an_input_without_a_place_in_the_prompt_is_refused(write):
    rows = [{"instruction": "a", "input": "", "output": "b"}] * 2
    rows.append({"instruction": "a", "input": "x", "output": "b"})
    with pytest.raises(
        DataError, match="line 3: `input` is not empty, but `prompt_template` has no"
    ):
        load(write("rows.jsonl", rows), prompt_template="{instruction}:")


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([], "`messages` is an empty list"),
        (None, "`messages` is missing or null"),
        (CHAT[:1], "`messages` has no assistant turn, only user"),
        ([CHAT[0], {"role": "assistant", "content": ""}], "`messages`, turn 2: `content` is empty"),
        ([CHAT[0], {"role": "assistant", "content": None}], "turn 2: `content` is missing or null"),
        ([{"role": "user", "content": " "}, CHAT[1]], "`messages`, turn 1: `content` is empty"),
        ([{"role": None, "content": "x"}, CHAT[1]], "`messages`, turn 1: it has no role"),
    ],
)
def test_bad_messages_are_refused(write, turns, problem):
    with pytest.raises(DataError, match=f"rows.jsonl, line 2: .*{problem}"):
        load(write("rows.jsonl", [{"messages": CHAT}, {"messages": turns}]))


def test_messages_that_are_text_are_refused(write):
    with pytest.raises(DataError, match="line 1: `messages` is text, not a list of turns"):
        load(write("rows.jsonl", [{"messages": "hi"}]))


def test_an_assistant_turn_may_be_empty_when_it_calls_a_tool(write):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    row = {"messages": [CHAT[0], call, {"role": "tool", "content": ""}, CHAT[1]]}
    assert len(load(write("rows.jsonl", [row])).dataset) == 1


def test_unknown_speakers_are_refused(write):
    turns = [{"from": "narrator", "value": "once"}, *SHARED]
    with pytest.raises(DataError, match="turn 1: `from` is `narrator`, which is none of human, us"):
        load(write("rows.jsonl", [{"conversations": turns}]))


def test_a_template_needs_a_question_before_the_answer(write):
    turns = [SHARED[1], SHARED[0]]
    with pytest.raises(DataError, match="`conversations` has no user turn with an assistant turn"):
        load(write("rows.jsonl", [{"conversations": turns}]), prompt_template="alpaca")


def test_a_template_for_chat_prompts_is_refused(write):
    name = write("rows.jsonl", [{"prompt": CHAT[:1], "completion": CHAT[1:]}])
    with pytest.raises(
        DataError, match=r"`prompt_template` is set, but `prompt` of rows.jsonl is a"
    ):
        load(name, prompt_template="alpaca")


@pytest.mark.parametrize("column", ["completion", "prompt"])
def test_half_of_a_chat_pair_is_refused(write, column):
    row = {"prompt": CHAT[:1], "completion": CHAT[1:]}
    with pytest.raises(DataError, match=f"line 2: `{column}` is (an empty list|missing or null)"):
        load(write("rows.jsonl", [row, {**row, column: []}]))


def test_missing_columns_are_named_with_those_that_are_there(write):
    name = write("rows.jsonl", [{"ask": "x", "tell": "y"}])
    with pytest.raises(DataError, match=r"none of the usual columns .*; the columns are `ask`, `t"):
        load(name)
    with pytest.raises(
        DataError, match=r"rows.jsonl has no column `respons`; the columns are `ask`"
    ):
        load(name, prompt_column="ask", response_column="respons")
    with pytest.raises(DataError, match="has no column `context`; the columns are"):
        load(name, prompt_column="ask", response_column="tell", input_column="context")
