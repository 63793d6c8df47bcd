"""Files, folders, the hub and splits that cannot be read: one sentence each."""

from __future__ import annotations

import json
from dataclasses import replace

import datasets
import pytest

from balora.config import DataConfig
from balora.data import load_examples
from balora.data.opening import ENDINGS
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
        "`dataset_name` is data/maths.jsonl, which does not exist (did you mean `math.jsonl`?)."
    )
    assert refusal("nowhere/rows.jsonl") == (
        "`dataset_name` is nowhere/rows.jsonl, which does not exist: there is no folder nowhere."
    )
    assert "is ./data/missing, which does not exist" in refusal("./data/missing")


def test_other_endings_are_refused(write):
    assert refusal(write("rows.txt", "x")) == (
        f"`dataset_name` is rows.txt, which ends in `.txt`; data files end in {ENDINGS}."
    )


def test_folders_without_data_or_with_several_kinds_are_refused(write):
    write("docs/a.txt", "x")
    assert refusal("docs") == (
        f"`dataset_name` is docs, which holds no file that ends in {ENDINGS}."
    )
    write("both/a.jsonl", QA)
    write("both/b.csv", "query,response\nx,y\n")
    assert refusal("both").startswith(
        "`dataset_name` is both, which holds files of several kinds (csv, json)"
    )


@pytest.mark.parametrize("hidden", [".train-checkpoint.jsonl", "._train.jsonl", "~$train.jsonl"])
def test_hidden_files_of_a_folder_are_no_data(write, hidden):
    write("data/train.jsonl", QA)
    write(f"data/{hidden}", b"\x00\xff")
    config = DataConfig(dataset_name="data")
    assert len(load_examples(config, split="train").dataset) == 10
    write(".hidden.jsonl", QA)  # as long as nobody names it
    assert len(load_examples(DataConfig(dataset_name=".hidden.jsonl"), split="train").dataset) == 10


def test_compressed_parquet_and_archives_are_refused(write):
    for name in ("rows.parquet.gz", "rows.zip", "rows.jsonl.lz4"):
        assert f"is {name}, which ends in `.{name.split('.')[-1]}`; data" in refusal(
            write(name, "x")
        )


def test_many_columns_are_listed_by_the_first_few(write):
    write("rows.json", json.dumps({str(n): {"query": "q", "response": "a"} for n in range(1000)}))
    message = refusal("rows.json")
    assert "`8`, `9`, ... (1000 in all; is the file a list of rows?)" in message
    assert len(message) < 500


def test_a_table_with_the_index_of_pandas_is_read(write):
    write("rows.csv", ",prompt,completion\n" + "".join(f"{n},ask {n},tell {n}\n" for n in range(6)))
    rows = load_examples(DataConfig(dataset_name="rows.csv"), split="train").dataset
    assert (len(rows), rows[0]) == (6, {"prompt": "ask 0", "completion": "tell 0"})


def test_errors_name_the_setting_that_was_typed(write):
    write("rows.jsonl", QA)
    write("both/train.jsonl", QA)
    gone = DataConfig(dataset_name="rows.jsonl", eval_dataset_name="gone.jsonl")
    with pytest.raises(
        DataError, match=r"^`eval_dataset_name` is gone.jsonl, which does not exist"
    ):
        load_examples(gone, split="train", name="eval")
    given = DataConfig(dataset_name="rows.jsonl", eval_dataset_name="both")
    with pytest.raises(DataError, match=r"no split `dev`, only train; set `dataset_test_split` to"):
        load_examples(given, split="dev", name="eval")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.jsonl", "", "rows.jsonl is empty."),
        ("rows.json", "[]", "rows.json has no rows in `train`; set `dataset_train_split`"),
        (
            "rows.csv",
            "query,response\n",
            "rows.csv has no rows in `train`; set `dataset_train_split`",
        ),
        ("blank.jsonl", "\n\n", "blank.jsonl has no rows in `train`; set `dataset_train_split`"),
    ],
)
def test_empty_data_is_refused(write, name, content, sentence):
    assert refusal(write(name, content)).startswith(sentence)


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
        ("rows.csv", b"query,\xff\na,b\n", "rows.csv, line 1: not UTF-8 text"),
        ("rows.parquet", "no parquet", "rows.parquet cannot be read: "),
    ],
)
def test_unreadable_files_are_named_with_the_line(write, name, content, sentence):
    assert refusal(write(name, content)).startswith(sentence)


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (
            "train[x]",
            "`dataset_train_split` is `train[x]`, which cannot be read; write for example",
        ),
        ("train[1:2", "`dataset_train_split` is `train[1:2`, which cannot be read"),
        ("", "`dataset_train_split` is ``, which cannot be read"),
        ("train[:10%](nearest)", "`dataset_train_split` is `train[:10%](nearest)`, which"),
        (
            "test",
            "rows.jsonl has no split `test`, only train; set `dataset_train_split` to one that",
        ),
        ("train+test[:1]", "rows.jsonl has no split `test`, only train; set"),
        ("train[20:]", "rows.jsonl has no rows in `train[20:]`; set `dataset_train_split`"),
        ("train[7:2]", "rows.jsonl has no rows in `train[7:2]`; set"),
        (
            "train[:200%]",
            "`dataset_train_split` is `train[:200%]`, which cannot be read: Perce",
        ),
    ],
)
def test_bad_splits_are_refused(write, split, sentence):
    assert refusal(write("rows.jsonl", QA), split).startswith(sentence)


def test_an_inverted_slice_is_refused_where_the_loader_gives_a_row(write):
    assert refusal(write("three.jsonl", QA[:3]), "train[2:1]") == (
        "three.jsonl has no rows in `train[2:1]`; set `dataset_train_split` to rows that are "
        "there, or name other data."
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
    assert "Check the name, the split `tran` (`dataset_train_split`) and the connection." in message


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
    with pytest.raises(DataError, match=r"rows.txt, which ends in `.txt`"):
        find_local(write("rows.txt", "one line, and a comma\nx\ty\n"))
