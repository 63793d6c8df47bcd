"""Rows of CSV and TSV files, where every value is text as it stands: no numbers, no gaps.

A table is separated by commas, with quotes as the ``csv`` module reads them, or by tabs alone,
where a quote is a character like any other. The first line that is not blank names the columns,
unless they are given. Columns without a name, such as the index that pandas writes, are not read.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from balora.data.opening import is_tsv, open_data, undecodable
from balora.errors import DataError


def first_values(file: Path) -> list[str]:
    """Return the values on the first line of a CSV or TSV file that is not blank.

    Raises:
        DataError: If it cannot be read as UTF-8 text.
    """
    return next((values for _, values in _lines(file)), [])


def column_names(file: Path) -> list[str]:
    """Return the column names on the first line of a CSV or TSV file, "" for those without.

    Raises:
        DataError: If the file is not text, or names a column twice or none.
    """
    names = [name if name.strip() else "" for name in first_values(file)]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{file}, line 1: the column `{twice[0]}` is there twice.")
    if names and not any(names):
        raise DataError(f"{file}, line 1: no column has a name.")
    return names


def table_records(
    file: Path, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row of a table and the line it starts on, from 1.

    Args:
        file: The file.
        columns: Those of a file that does not name them on its first line.

    Raises:
        DataError: At the first row that has not a value for each column or is not UTF-8 text, and
            where a quote is never closed; by file and line.
    """
    names = list(columns or column_names(file))
    named = [(index, name) for index, name in enumerate(names) if name]
    for number, (line, values) in enumerate(_lines(file)):
        if len(values) != len(names):
            raise DataError(f"{file}, line {line}: {len(values)} values for {len(names)} columns.")
        if number or columns:
            yield line, {name: values[index] for index, name in named}


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the values of each row that is not blank, and the line it starts on."""
    with open_data(file) as stream, _long_fields():
        text = _Text(stream)
        by_tab = is_tsv(file)
        reader = csv.reader(
            text,
            delimiter="\t" if by_tab else ",",
            quoting=csv.QUOTE_NONE if by_tab else csv.QUOTE_MINIMAL,
        )
        start = 1
        try:
            for values in reader:
                if text.is_at_end:
                    raise DataError(f"{file}, line {start}: a quote is opened and never closed.")
                if not _is_blank(values):
                    yield start, values
                start = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise DataError(f"{undecodable(file)}.") from error
        except csv.Error as error:
            raise DataError(f"{file}, line {start}: {error}.") from error


class _Text:
    """The lines of a text; the reader asks for one after the last only within a quoted value."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        self.is_at_end = False

    def __iter__(self) -> Iterator[str]:
        yield from self._lines
        self.is_at_end = True


def _is_blank(values: Sequence[str]) -> bool:
    """Say whether a line is passed over: nothing on it, or only spaces."""
    return not values or (len(values) == 1 and not values[0].strip())


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB per field, which is one for the whole process."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
