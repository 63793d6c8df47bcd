"""Which record of a file is which: its rows in order, and where each of them stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from balora.data.json_records import is_list, json_records
from balora.data.opening import kind_of
from balora.data.tables import table_records


def records(
    file: Path, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a JSON, CSV or TSV file, each with the number that `place` understands.

    Args:
        file: The file.
        columns: Those of a TSV file that does not name them on its first line.

    Raises:
        DataError: At the first row that cannot be read.
    """
    return json_records(file) if kind_of(file) == "json" else table_records(file, columns)


def place(file: Path, number: int) -> str:
    """Return where a record stands in words: "math.jsonl, line 17"."""
    if kind_of(file) == "json" and is_list(file):
        return f"row {number} of {file}, counted from 0"
    return f"{file}, line {number}"
