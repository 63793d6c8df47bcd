"""JSON as it stands: every value is what Python's json makes of it, in each kind of file."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balora.config import DataConfig
from balora.data import load_examples
from balora.data.json_records import _BLOCK, MAX_DEPTH, RawJson, json_records
from balora.data.provenance import iterate_rows
from balora.data.sources import find_local, load_rows
from balora.errors import BaloraError, DataError


def read(name: str, split: str = "train") -> list[dict[str, Any]]:
    """Return the rows of local files as they come out of the data set."""
    rows, _ = load_rows(name, find_local(name), None, split)
    return list(iterate_rows(rows, rows.column_names))


def lines(*rows: str) -> str:
    return "".join(row + "\n" for row in rows)


def refusal(name: str) -> str:
    with pytest.raises(DataError) as error:
        read(name)
    assert "\n" not in str(error.value)
    return str(error.value)


DATES = ["2010-03-02", "2010-03-02T10:00:00Z", "10:30", "2020"]


def test_text_that_looks_like_a_date_is_text(write):
    chats = [[{"role": "user", "content": d}, {"role": "assistant", "content": d}] for d in DATES]
    rows = [{"a": d, "label": d, "messages": m} for d, m in zip(DATES, chats, strict=True)]
    write("rows.jsonl", rows)
    write("rows.json", json.dumps(rows))
    assert read("rows.jsonl") == read("rows.json") == rows


def test_a_chat_of_dates_is_trained_on(write):
    turns = [{"role": "user", "content": DATES[0]}, {"role": "assistant", "content": DATES[1]}]
    config = DataConfig(dataset_name=write("rows.jsonl", [{"messages": turns}] * 3))
    assert load_examples(config, split="train").dataset[2] == {"messages": turns}


@pytest.mark.parametrize(
    "values",
    [
        [5, 2**63, 2**63 + 1],
        [2**53 + 1, 0.5],
        [-(2**63), 2**63 - 1],
        [1, 1.0, "1", True, None],
        [10**400, 1e300],
        [0.1, 1e-300, -0.0],
        [[1, 0.30000000000000004], {"a": 2**70}, "x"],
        [{"a": 1}, {"b": "x"}, {"a": None}, {}],
        [[], [{"role": "user"}], [{"role": "user", "name": None}]],
        [None, None],
        [True, None, False],
    ],
    ids=str,
)
def test_values_stay_what_they_are(write, values):
    rows = [{"a": value, "n": n} for n, value in enumerate(values)]
    write("rows.jsonl", rows)
    write("rows.json", json.dumps(rows, indent=1))
    for name in ("rows.jsonl", "rows.json"):
        assert repr([row["a"] for row in read(name)]) == repr(values)  # 1 is not 1.0


def test_turns_keep_the_keys_that_each_has(write):
    call = {"id": "1", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}
    turns = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "name": "add"},
        {"role": "assistant", "content": "2 \\ud83d is \U0001f600"},
    ]
    tools = [{"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}]
    rows = [{"messages": turns, "tools": tools}, {"messages": turns[:1] + turns[3:], "tools": None}]
    config = DataConfig(dataset_name=write("rows.jsonl", rows))
    assert list(load_examples(config, split="train").dataset) == rows


def test_columns_with_the_names_of_a_trace_are_columns(write):
    rows = [
        {"type": "user", "message": m, "prompt": "q", "completion": "a"}
        for m in ({"b": "x"}, {"a": 1})
    ]
    config = DataConfig(dataset_name=write("rows.jsonl", rows * 2))
    assert read("rows.jsonl") == rows * 2
    assert len(load_examples(config, split="train").dataset) == 4


@pytest.mark.parametrize("late", ["text", 1, 2.5, True, ["x"], {"a": "x"}], ids=str)
def test_a_column_that_is_null_or_missing_at_first_is_no_surprise(write, late):
    rows = [{"a": "x", "b": None} for _ in range(3000)] + [{"a": "y", "b": late, "c": late}]
    found = read(write("rows.jsonl", rows))
    assert found[:2999] == [{"a": "x", "b": None, "c": None}] * 2999
    assert found[-1] == rows[-1]


def test_an_input_that_comes_late_reaches_the_prompt(write):
    row = {"instruction": "x" * 40, "input": None, "output": "y"}
    rows = [row] * 2500 + [{**row, "input": "given"}]
    config = DataConfig(dataset_name=write("rows.jsonl", rows))
    prompt = load_examples(config, split="train").dataset[2500]["prompt"]
    assert "### Input:\ngiven" in prompt


def test_files_of_a_split_may_have_other_columns(write):
    write("data/a.jsonl", [{"a": "x", "n": 1}])
    write("data/b.jsonl", [{"a": "y", "m": [1]}, {"a": "z", "n": "text"}])
    write("data/test.jsonl", [{"a": 5}])
    assert read("data") == [
        {"a": "x", "n": 1, "m": None},
        {"a": "y", "n": None, "m": [1]},
        {"a": "z", "n": "text", "m": None},
    ]
    assert [row["a"] for row in read("data", "train[1:]+test")] == ["y", "z", 5]


# What is refused, by file and line


DEEP = '{"b": ' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
BAD_ROWS = {
    "twice": ('{"a": "x", "b": 1, "a": "y"}', "the key 'a' is there twice"),
    "twice inside": ('{"a": [{"b": 1, "c": {"d\\n": 1, "d\\n": 2}}]}', "the key 'd\\\\n' is there"),
    "half a pair": ('{"a": "x\\ud83d"}', "`\\ud83d` is half of a surrogate pair"),
    "half a pair inside": ('{"a": [{"b": "\\uDE00x"}]}', "`\\ude00` is half of a surrogate pair"),
    "half a pair in a key": ('{"\\ud83d": 1}', "`\\ud83d` is half of a surrogate pair"),
    "half a pair in a key inside": ('{"a": {"\\ud83d": 1}}', "`\\ud83d` is half of a surrogate"),
    "NUL in a column's name": ('{"a\\u0000": 1}', "the column 'a\\x00' has a NUL character"),
    "deep": ('{"a": ' + DEEP + "}", "nested more than 200 levels deep"),
    "very deep": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested more than 200 levels"),
    "digits": ('{"a": ' + "1" * 5000 + "}", "a number has too many digits; write it as text"),
    "no mapping": ('"text"', "not a mapping of columns to values"),
    "no json": ('{"a": x}', "not JSON (Expecting value"),
}


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_by_line_or_number(write, row, problem):
    good = '{"a": "x"}'
    found = refusal(write("rows.jsonl", lines(good, "", good, row, good)))
    assert found.startswith("rows.jsonl, line 4: ")
    assert problem in found
    found = refusal(write("rows.json", f"[{good},\n{good},\n\n{row},{good}]"))
    syntax = problem.startswith("not JSON")
    place = "rows.json, line 4: " if syntax else "row 2 of rows.json, counted from 0: "
    assert found.startswith(place)
    assert problem in found


def test_the_deepest_row_is_read(write):
    row = '{"a": ' + DEEP.replace('{"b": ', "", 1)[:-1] + "}"
    assert read(write("rows.jsonl", lines(row))) == [json.loads(row)]
    brackets = json.dumps({"a": "[{" * 500, "b": ['\\"[']})
    assert read(write("rows.jsonl", lines(brackets))) == [json.loads(brackets)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[", "line 1: not JSON (Expecting value)."),
        ('[{"a": 1}', "line 1: not JSON (expecting ',')."),
        ('[{"a": 1},\n]', "line 2: not JSON (Expecting value)."),
        ('[{"a": 1}\n{"a": 2}]', "line 2: not JSON (expecting ',')."),
        ('[{"a": 1}]\n\nx', "line 3: not JSON (text after the list)."),
        ('[{"a": "1}]', "line 1: not JSON (Unterminated string starting at)."),
        (b'[{"a": "x"},\n\n{"a": "\xff"}]', "line 3: not UTF-8 text."),
        ('{\n"a": 1}', "line 1: not JSON (Expecting property name enclosed in double quotes, co"),
    ],
    ids=str,
)
def test_what_is_no_list_of_rows_is_refused_by_its_line(write, content, sentence):
    assert refusal(write("rows.json", content)).startswith(f"rows.json, {sentence}")


def test_a_list_is_read_whatever_its_blocks_cut(write):
    rows = [{"a": '\u00e9\\"[{' * 3, "b": [None, True, 1.5e-7, {"c": "x" * n}]} for n in range(300)]
    rows.append({"a": "y" * (2 * _BLOCK), "b": []})
    rows += rows[:50]
    write("rows.json", "\ufeff \n" + json.dumps(rows, indent=7, ensure_ascii=False))
    assert [row for _, row in json_records(Path("rows.json"))] == rows


def test_values_inside_a_line_are_kept_as_their_text(write):
    write(
        "rows.jsonl",
        lines(' { "a" :[1, 2 ] , "b":{}, "c\\u0041": "x"}', '{"a": [1, 2 ], "b": "["}'),
    )
    rows = [row for _, row in json_records(Path("rows.jsonl"))]
    assert rows == [{"a": [1, 2], "b": {}, "cA": "x"}, {"a": "[1, 2 ]", "b": "["}]
    assert [type(value) for value in rows[1].values()] == [RawJson, str]


# The same rows, whatever the file


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT.filter(lambda name: "\0" not in name)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(TEXT, inside, max_size=3),
    max_leaves=6,
)
PROPERTY = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@PROPERTY
@given(
    rows=st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), min_size=1, max_size=4)
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_rows_come_back_as_json_gives_them(write, rows, ascii_only):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    expected = repr([{name: row.get(name) for name in columns} for row in rows])
    text = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    write("rows.jsonl", lines(*text))
    write("rows.json", "[" + ",".join(text) + "]")
    for name in ("rows.jsonl", "rows.json"):
        found = [{column: row[column] for column in columns} for row in read(name)]
        assert repr(found) == expected


@PROPERTY
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_text_is_the_same_in_every_kind_of_file(write, rows):
    columns = [{"a": a, "b": b} for a, b in rows]
    write("rows.jsonl", lines(*map(json.dumps, columns)))
    write("rows.json", json.dumps(columns))
    table = io.StringIO()
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    write("rows.csv", table.getvalue())
    datasets.Dataset.from_list(columns).to_parquet("rows.parquet")
    for kind in ("jsonl", "json", "csv", "parquet"):
        assert read(f"rows.{kind}") == columns


def test_a_nul_is_kept_as_it_stands(write):
    rows = [{"a": "x\0y", "b": ["\0"]}]
    write("rows.jsonl", rows)
    assert read("rows.jsonl") == rows


# Compressed files


def zst(content: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as compressed:
        compressed.write(content)
    return stream.getvalue().to_pybytes()


CODECS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_files_are_read_and_located(write, codec):
    rows = [{"a": f"{n}", "b": "x" * 50} for n in range(500)]
    plain = {
        "jsonl": lines(*map(json.dumps, rows)),
        "json": json.dumps(rows),
        "csv": "a,b\n" + "".join("{a},{b}\n".format(**row) for row in rows),
        "tsv": "a\tb\n" + "".join("{a}\t{b}\n".format(**row) for row in rows),
    }
    for kind, content in plain.items():
        assert read(write(f"rows.{kind}{codec}", CODECS[codec](content.encode()))) == rows
    bad = CODECS[codec](lines('{"a": 1}', "", "{").encode())
    assert refusal(write(f"bad.jsonl{codec}", bad)).startswith(
        f"bad.jsonl{codec}, line 3: not JSON"
    )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_compressed_file_is_named(write, codec, damage):
    whole = CODECS[codec](os.urandom(5000).hex().encode())
    content = whole[: len(whole) // 2] if damage == "cut" else b'{"a": "b"}\n'
    found = refusal(write(f"rows.jsonl{codec}", content))
    assert found.startswith(f"rows.jsonl{codec} cannot be read: it is damaged, or not compressed")


def test_folders_of_compressed_files_have_splits(write):
    write("data/train.jsonl.gz", gzip.compress(b'{"a": "x"}\n'))
    write("data/dev.jsonl", [{"a": "y"}])
    assert read("data") == [{"a": "x"}]
    assert read("data", "validation") == [{"a": "y"}]


# What is stored


def test_a_file_that_was_changed_is_read_anew(write):
    write("rows.jsonl", [{"a": "x"}])
    assert read("rows.jsonl") == [{"a": "x"}]
    times = os.stat("rows.jsonl")
    write("rows.jsonl", [{"a": "y"}])
    os.utime("rows.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy may do
    assert read("rows.jsonl") == [{"a": "y"}]


def test_a_second_run_does_not_read_the_file_again(write, monkeypatch):
    name = write("rows.jsonl", [{"a": ["x"]}])
    first = read(name)
    monkeypatch.setattr("balora.data.stored.records", None)
    assert read(name) == first


def test_what_is_mapped_of_a_file_lies_apart_from_every_other_file(write):
    folders = []
    for name in ("one.jsonl", "two.jsonl"):
        rows, _ = load_rows(write(name, [{"a": 1}]), find_local(name), None, "train")
        mapped = rows.map(lambda row: {"b": row["a"]})
        places = {
            Path(file["filename"]).parent for file in (*rows.cache_files, *mapped.cache_files)
        }
        assert len(places) == 1
        folders += places
    assert folders[0] != folders[1]


def test_nothing_is_left_of_a_file_that_cannot_be_read(write):
    write("rows.jsonl", '{"a": 1}\n{"a"')
    refusal("rows.jsonl")
    assert list((Path(datasets.config.HF_DATASETS_CACHE) / "balora").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(write, monkeypatch):
    name = write("rows.jsonl", [{"a": 1}])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(name))  # a file
    with pytest.raises(BaloraError, match=r"stored in rows.jsonl/balora: .* HF_DATASETS_CACHE to"):
        read(name)


def test_memory_does_not_grow_with_the_file(write):
    def peak(num_rows: int) -> int:
        row = json.dumps({"a": "x" * 300, "b": [{"role": "user", "content": "y" * 300}]})
        write(f"{num_rows}.jsonl", lines(*[row] * num_rows))
        files = find_local(f"{num_rows}.jsonl")
        tracemalloc.start()
        load_rows("rows", files, None, "train")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(8000) < 1.2 * peak(2000)
