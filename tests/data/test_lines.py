"""Lines of tables: what stands on which line, with quotes, marks and no header."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from balora.data.lines import csv_header, first_bad_record, first_values, record_lines
from balora.errors import DataError


@pytest.fixture
def table(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "A.TSV"])
def test_a_quote_is_a_character_where_tabs_separate(table, name):
    file = table(name, 'text\tlabel\n"open\t1\nclosed"\t0\n')
    assert list(record_lines(file)) == [2, 3]
    assert first_bad_record(file) is None
    assert csv_header(file) == ["text", "label"]


def test_a_quoted_line_break_is_one_record_of_a_csv_file_only(table):
    content = 'text{0}label\n"open\n{0}1\nclosed"{0}0\n'
    assert list(record_lines(table("a.csv", content.format(",")))) == [2]
    problem = first_bad_record(table("a.tsv", content.format("\t")))
    assert problem.endswith("a.tsv, line 2: 1 values for 2 columns")


def test_commas_and_spaces_are_text_where_tabs_separate(table):
    file = table("a.tsv", "a, b\tc \n1,2\t 3\n")
    assert first_values(file) == ["a, b", "c "]


@pytest.mark.parametrize("has_header", [True, False])
def test_lines_without_a_header_start_at_the_first(table, has_header):
    file = table("a.tsv", "\n\nx\t1\n\ny\t0\n")
    assert list(record_lines(file, has_header=has_header)) == [3, 5][has_header:]


def test_the_byte_order_mark_is_no_part_of_the_first_value(table):
    assert first_values(table("a.tsv", "\ufeffQuality\tid\n")) == ["Quality", "id"]
    assert csv_header(table("a.csv", "\ufefftext,label\n")) == ["text", "label"]


def test_the_width_of_a_table_without_header_is_that_of_its_columns(table):
    file = table("a.tsv", "x\t1\ty\nz\t0\n")
    columns = ("a", "b", "c")
    assert first_bad_record(file, columns).endswith("a.tsv, line 2: 2 values for 3 columns")
    assert first_bad_record(table("b.tsv", "x\t1\ty\n"), columns) is None


def test_a_table_that_is_no_text_is_refused_by_its_kind(table):
    with pytest.raises(DataError, match=r"a.tsv, line 1: not TSV in UTF-8"):
        first_values(table("a.tsv", b"\xff\tx\n"))
    with pytest.raises(DataError, match=r"a.tsv, line 1: the column `x` is there twice"):
        csv_header(table("a.tsv", "x\tx\n"))


def test_long_values_are_read_and_the_limit_is_put_back(table):
    before = csv.field_size_limit()
    file = table("a.tsv", "text\tlabel\n" + "x" * 200_000 + "\t1\n")
    assert list(record_lines(file)) == [2]
    assert csv.field_size_limit() == before
