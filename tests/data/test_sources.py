"""Files, folders, the hub and splits that cannot be read: one sentence each."""

from __future__ import annotations

import json
from dataclasses import replace

import datasets
import pytest

from balora.config import DataConfig
from balora.data import load_examples
from balora.data.lines import first_bad_record
from balora.data.sources import LocalFiles, find_local, load_rows
from balora.errors import DataError

QA = [{"query": f"q{n}", "response": f"a{n}"} for n in range(10)]


def refusal(name: str, split: str = "train", **settings) -> str:
    with pytest.raises(DataError) as error:
        load_examples(DataConfig(dataset_name=name, **settings), split=split)
    assert error.value.exit_status == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_file_names_its_neighbour(write):
    write("data/math.jsonl", QA)
    assert refusal("data/maths.jsonl") == (
        "data/maths.jsonl does not exist (did you mean `math.jsonl`?)."
    )
    assert refusal("nowhere/rows.jsonl") == (
        "nowhere/rows.jsonl does not exist: there is no folder nowhere."
    )
    assert "./data/missing does not exist" in refusal("./data/missing")


def test_other_endings_are_refused(write):
    assert refusal(write("rows.txt", "x")) == (
        "rows.txt ends in `.txt`; data files end in .jsonl, .json, .csv, .tsv, .parquet."
    )


def test_folders_without_data_or_with_several_kinds_are_refused(write):
    write("docs/a.txt", "x")
    assert refusal("docs") == "docs holds no file that ends in .jsonl, .json, .csv, .tsv, .parquet."
    write("both/a.jsonl", QA)
    write("both/b.csv", "query,response\nx,y\n")
    assert refusal("both").startswith("both holds files of several kinds (csv, json)")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.jsonl", "", "rows.jsonl is empty."),
        ("rows.json", "[]", "rows.json has no rows in `train`."),
        ("rows.csv", "query,response\n", "rows.csv has no rows in `train`."),
        ("blank.jsonl", "\n\n", "blank.jsonl has no rows in `train`."),
    ],
)
def test_empty_data_is_refused(write, name, content, sentence):
    assert refusal(write(name, content)) == sentence


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "rows.jsonl",
            json.dumps(QA[0]) + '\n\n{"query": "x", \n',
            "rows.jsonl, line 3: not JSON (Expecting property name enclosed in double quotes",
        ),
        ("rows.jsonl", json.dumps(QA[0]) + "\n[1]\n", "rows.jsonl, line 2: not a mapping of col"),
        ("rows.jsonl", b'{"query": "\xff"}\n', "rows.jsonl, line 1: not UTF-8 text"),
        ("rows.json", '[{"query": "a"},\n {"query" "b"}]', "rows.json, line 2: not JSON (Expect"),
        ("rows.csv", "query,response\na,b\nc,d,e\n", "rows.csv, line 3: 3 values for 2 columns"),
        ("rows.csv", "query,response\na,b,c\nd,e,f\n", "rows.csv, line 2: 3 values for 2 columns"),
        ("rows.csv", "query,response\na,b\nc\n", "rows.csv, line 3: 1 values for 2 columns"),
        ("rows.csv", "query,query\na,b\n", "rows.csv, line 1: the column `query` is there twice"),
        ("rows.csv", b"query,\xff\na,b\n", "rows.csv, line 1: not CSV in UTF-8"),
        ("rows.parquet", "no parquet", "rows.parquet cannot be read: "),
    ],
)
def test_unreadable_files_are_named_with_the_line(write, name, content, sentence):
    assert refusal(write(name, content)).startswith(sentence)


def test_columns_of_two_kinds_are_found(write):
    name = write("rows.jsonl", [{"a": "x"}, {"a": None}, {"a": 1}])
    from pathlib import Path

    assert first_bad_record(Path(name)) == (
        "rows.jsonl, line 3: `a` is a number, but in line 1 it is text"
    )


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("train[x]", "the split `train[x]` of rows.jsonl cannot be read; write for example train"),
        ("train[1:2", "the split `train[1:2` of rows.jsonl cannot be read"),
        ("", "the split `` of rows.jsonl cannot be read"),
        ("train[:10%](nearest)", "the split `train[:10%](nearest)` of rows.jsonl cannot be read"),
        ("test", "rows.jsonl has no split `test`, only train."),
        ("train+test[:1]", "rows.jsonl has no split `test`, only train."),
        ("train[20:]", "rows.jsonl has no rows in `train[20:]`."),
        ("train[7:2]", "rows.jsonl has no rows in `train[7:2]`."),
        ("train[:200%]", "rows.jsonl cannot be read: Percent slice boundaries must be"),
    ],
)
def test_bad_splits_are_refused(write, split, sentence):
    assert refusal(write("rows.jsonl", QA), split).startswith(sentence)


def test_an_inverted_slice_is_refused_where_the_loader_gives_a_row(write):
    assert refusal(write("three.jsonl", QA[:3]), "train[2:1]") == (
        "three.jsonl has no rows in `train[2:1]`."
    )


def test_a_configuration_of_a_local_file_is_refused(write):
    assert refusal(write("rows.jsonl", QA), dataset_config="main") == (
        "`dataset_config` is main, but rows.jsonl is on disk and has no configurations; leave it "
        "out."
    )


def test_a_data_set_that_the_hub_does_not_give_is_one_sentence(write):
    message = refusal("nobody/nothing-of-this-name")
    assert message.startswith(
        "nobody/nothing-of-this-name is no file or folder here, and the hub does not give it: "
    )


@pytest.mark.parametrize(
    "error",
    [
        ValueError('Unknown split "tran". Should be one of\n["train"].'),
        RuntimeError("Dataset scripts are no longer supported"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"),
    ],
)
def test_what_the_hub_says_is_passed_on(monkeypatch, error):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = refusal("a/b", "tran")
    assert " ".join(str(error).split()).rstrip(".") in message
    assert "Check the name, the split `tran` and the connection." in message


def test_rows_of_the_hub_are_counted(monkeypatch):
    stored = datasets.Dataset.from_list(QA)
    info = datasets.SplitInfo(name="train", num_examples=10)
    stored.info.splits = datasets.SplitDict({"train": info})
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return stored.select(range(4, 10))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig(dataset_name="meta-math/MetaMathQA", dataset_config="main")
    examples = load_examples(config, split="train[4:]")
    assert asked == [(("meta-math/MetaMathQA", "main"), {"split": "train[4:]"})]
    assert examples.locate(3) == "row 7 of meta-math/MetaMathQA (train), counted from 0"


def read(name: str, split: str = "train", **changes) -> dict[str, list[str]]:
    """Return the columns of local files; `changes` are of what was found about them."""
    files = find_local(name)
    assert isinstance(files, LocalFiles)
    rows, sizes = load_rows(name, replace(files, **changes), None, split)
    assert sum(sizes.values()) >= len(rows)
    return rows[:]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.txt", "ROWS.TSV"])
def test_tabs_alone_separate_where_a_file_has_tabs(write, name):
    write(name, 'text\tlabel\n"open, and\t1\n it\'s closed"\tNA\nnull\t007\n')
    assert read(name) == {
        "text": ['"open, and', " it's closed\"", "null"],
        "label": ["1", "NA", "007"],
    }


def test_a_byte_order_mark_is_no_part_of_a_table(write):
    assert read(write("rows.tsv", "\ufeffa\tb\n1\t2\n")) == {"a": ["1"], "b": ["2"]}
    write("bare.tsv", "\ufeff1\t2\n")
    assert read("bare.tsv", column_names=("a", "b")) == {"a": ["1"], "b": ["2"]}


def test_windows_line_ends_are_no_part_of_a_table(write):
    assert read(write("rows.tsv", "a\tb\r\n1\t2\r\n")) == {"a": ["1"], "b": ["2"]}


def test_a_table_without_header_has_given_columns(write):
    write("rows.tsv", "x\t1\n\ny\t\n")
    assert read("rows.tsv", column_names=("a", "b")) == {"a": ["x", "y"], "b": ["1", ""]}
    write("rows.tsv", "x\t1\ny\n")
    with pytest.raises(DataError, match=r"rows.tsv, line 2: 1 values for 2 columns"):
        read("rows.tsv", column_names=("a", "b"))
    with pytest.raises(DataError, match=r"rows.tsv, line 1: 2 values for 3 columns"):
        read("rows.tsv", column_names=("a", "b", "c"))


def test_files_of_a_split_that_is_not_read_may_have_other_columns(write):
    write("glue/train.tsv", "text\tlabel\nx\t1\n")
    write("glue/test.tsv", "index\tid\ttext\n0\t0\ty\n")
    assert read("glue") == {"text": ["x"], "label": ["1"]}
    assert read("glue", "test") == {"index": ["0"], "id": ["0"], "text": ["y"]}


def test_text_without_a_tab_is_no_table(write):
    with pytest.raises(DataError, match=r"rows.txt ends in `.txt`"):
        find_local(write("rows.txt", "one line, and a comma\nx\ty\n"))
