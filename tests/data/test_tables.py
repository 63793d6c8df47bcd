"""CSV and TSV files: what stands on which line, with quotes, marks and no header."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from balora.data.tables import column_names, first_values, table_records
from balora.errors import DataError


@pytest.fixture
def table(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


def lines(file: Path, columns=None) -> list[int]:
    return [line for line, _ in table_records(file, columns)]


def refusal(file: Path, columns=None) -> str:
    with pytest.raises(DataError) as error:
        list(table_records(file, columns))
    return str(error.value).removeprefix(f"{file.parent}/")


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "A.TSV"])
def test_a_quote_is_a_character_where_tabs_separate(table, name):
    file = table(name, 'text\tlabel\n"open\t1\nclosed"\t0\n')
    assert list(table_records(file)) == [
        (2, {"text": '"open', "label": "1"}),
        (3, {"text": 'closed"', "label": "0"}),
    ]


def test_a_quoted_line_break_is_one_record_of_a_csv_file_only(table):
    content = 'text{0}label\n"open\n{0}1\nclosed"{0}0\n'
    assert lines(table("a.csv", content.format(","))) == [2]
    problem = refusal(table("a.tsv", content.format("\t")))
    assert problem == "a.tsv, line 2: 1 values for 2 columns."


def test_commas_and_spaces_are_text_where_tabs_separate(table):
    file = table("a.tsv", "a, b\tc \n1,2\t 3\n")
    assert first_values(file) == ["a, b", "c "]


@pytest.mark.parametrize("columns", [None, ("a", "b")])
def test_lines_without_a_header_start_at_the_first(table, columns):
    file = table("a.tsv", "\n\nx\t1\n\ny\t0\n")
    assert lines(file, columns) == [3, 5][columns is None :]


def test_the_byte_order_mark_is_no_part_of_the_first_value(table):
    assert first_values(table("a.tsv", "\ufeffQuality\tid\n")) == ["Quality", "id"]
    assert column_names(table("a.csv", "\ufefftext,label\n")) == ["text", "label"]


def test_the_width_of_a_table_without_header_is_that_of_its_columns(table):
    file = table("a.tsv", "x\t1\ty\nz\t0\n")
    columns = ("a", "b", "c")
    assert refusal(file, columns) == "a.tsv, line 2: 2 values for 3 columns."
    assert lines(table("b.tsv", "x\t1\ty\n"), columns) == [1]


def test_what_is_no_table_is_refused(table):
    assert refusal(table("a.tsv", b"\xff\tx\n")) == "a.tsv, line 1: not UTF-8 text."
    assert refusal(table("b.tsv", b"a\tb\nx\ty\nx\t\xff\n")) == "b.tsv, line 3: not UTF-8 text."
    assert refusal(table("c.tsv", "x\tx\n")) == "c.tsv, line 1: the column `x` is there twice."
    assert refusal(table("d.csv", ",\n1,2\n")) == "d.csv, line 1: no column has a name."


def test_a_quote_that_is_never_closed_swallows_no_rows(table):
    file = table("a.csv", 'a,b\n1,2\n3,"4\n5,6\n')
    assert refusal(file) == "a.csv, line 3: a quote is opened and never closed."
    assert lines(table("b.csv", 'a,b\n1,"2\n3"')) == [2]


def test_columns_without_a_name_are_not_read(table):
    file = table("a.csv", ", text,label,\n0,x,1,\n1,y,,z\n")
    assert [row for _, row in table_records(file)] == [
        {" text": "x", "label": "1"},
        {" text": "y", "label": ""},
    ]
    file = table("a.tsv", "\ttext\t \n0\tx\t1\n")
    assert [row for _, row in table_records(file)] == [{"text": "x"}]
    assert refusal(table("b.csv", ",a\n1\n")) == "b.csv, line 2: 1 values for 2 columns."


def test_long_values_are_read_and_the_limit_is_put_back(table):
    before = csv.field_size_limit()
    file = table("a.tsv", "text\tlabel\n" + "x" * 200_000 + "\t1\n")
    assert lines(file) == [2]
    assert csv.field_size_limit() == before
