"""Which line of a file a record stands on, and the first line that cannot be read."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from balora.errors import DataError

if TYPE_CHECKING:
    import _csv

_TABLES = (".csv", ".tsv", ".txt")


def is_tsv(file: Path) -> bool:
    """Say whether a file that is read as a table is separated by tabs."""
    return file.suffix.lower() in (".tsv", ".txt")


def first_values(file: Path) -> list[str]:
    """Return the values on the first line of a CSV or TSV file that is not blank.

    Raises:
        DataError: If it cannot be read as UTF-8 text.
    """
    try:
        with _long_csv_fields(), _open(file) as lines:
            return next((row for row in _reader(file, lines) if not _is_blank(row)), [])
    except (UnicodeDecodeError, csv.Error) as error:
        kind = "TSV" if is_tsv(file) else "CSV"
        raise DataError(f"{file}, line 1: not {kind} in UTF-8 ({error}).") from error


def _open(file: Path) -> TextIO:
    return file.open(encoding="utf-8-sig", newline="")


def _reader(file: Path, lines: TextIO) -> _csv.Reader:
    if is_tsv(file):  # by the tab alone: a quote is a character like any other
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(lines)


@contextmanager
def _long_csv_fields() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB per field, which is one for the whole process."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def csv_header(file: Path) -> list[str]:
    """Return the column names on the first line of a CSV or TSV file.

    Raises:
        DataError: If the file is not text, or names a column twice.
    """
    header = first_values(file)
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError(f"{file}, line 1: the column `{twice[0]}` is there twice.")
    return header


def record_lines(file: Path, *, has_header: bool = True) -> Iterator[int] | None:
    """Yield the line each record of a file starts on, from 1; None when records have no lines.

    Args:
        file: The file.
        has_header: Whether the first line of a CSV or TSV file names the columns.
    """
    suffix = file.suffix.lower()
    if suffix in _TABLES:
        return _table_lines(file, has_header)
    if suffix == ".parquet" or (suffix == ".json" and not _is_json_lines(file)):
        return None
    return _text_lines(file)


def _is_json_lines(file: Path) -> bool:
    with file.open("rb") as content:
        first = next((line.strip() for line in content if line.strip()), b"")
    try:
        return isinstance(json.loads(first), dict)  # a whole object on the first line
    except ValueError:
        return False


def _text_lines(file: Path) -> Iterator[int]:
    with file.open("rb") as lines:
        yield from (number for number, line in enumerate(lines, start=1) if line.strip())


def _table_lines(file: Path, has_header: bool) -> Iterator[int]:
    with _long_csv_fields(), _open(file) as lines:
        reader = _reader(file, lines)
        start, is_header = 1, has_header
        for row in reader:
            if not _is_blank(row) and not is_header:
                yield start
            is_header = is_header and _is_blank(row)
            start = reader.line_num + 1


def _is_blank(row: list[str]) -> bool:
    """Say whether the reader skips a line: nothing on it, or only spaces."""
    return not row or (len(row) == 1 and not row[0].strip())


def undecodable(file: Path) -> str | None:
    """Return where a text file is not UTF-8, for an error message; None when all of it is."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{file}, line {number}: not UTF-8 text"
    return None


def first_bad_record(file: Path, columns: Sequence[str] | None = None) -> str | None:
    """Return where and why a file cannot be read, for an error message; None when unknown.

    Args:
        file: The file.
        columns: Those of a TSV file that does not name them on its first line.
    """
    if file.suffix.lower() in _TABLES:
        return _bad_table(file, len(columns or csv_header(file)))
    if record_lines(file) is None:
        return _bad_json(file) if file.suffix.lower() == ".json" else None
    return _bad_json_line(file)


def _bad_table(file: Path, width: int) -> str | None:
    start = 1
    with _long_csv_fields(), _open(file) as lines:
        reader = _reader(file, lines)
        try:
            for row in reader:
                if not _is_blank(row) and len(row) != width:
                    return f"{file}, line {start}: {len(row)} values for {width} columns"
                start = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            return f"{file}, line {start}: {error}"
    return None


def _bad_json(file: Path) -> str | None:
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        return f"{file}, line {error.lineno}: not JSON ({error.msg})"
    rows = content if isinstance(content, list) else [content]
    strange = [number for number, row in enumerate(rows) if not isinstance(row, dict)]
    if strange:
        return f"row {strange[0]} of {file}, counted from 0: not a mapping of columns to values"
    return None


def _bad_json_line(file: Path) -> str | None:
    seen: dict[str, tuple[str, int]] = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                return f"{file}, line {number}: not JSON ({error.msg}, column {error.colno})"
            if not isinstance(row, dict):
                return f"{file}, line {number}: not a mapping of columns to values"
            for name, value in row.items():
                kind = _json_kind(value)
                before, where = seen.setdefault(name, (kind, number)) if kind else ("", 0)
                if before != kind:
                    return (
                        f"{file}, line {number}: `{name}` is {kind}, but in line {where} "
                        f"it is {before}"
                    )
    return None


def _json_kind(value: object) -> str:
    """Return the kind of a JSON value in words; null is of every kind."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else "a number"
