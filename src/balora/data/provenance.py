"""Rows that know where they come from, for messages that name file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from datasets import Dataset

from balora.data.records import place
from balora.data.sources import LocalFiles, split_ranges
from balora.errors import DataError


@dataclass(frozen=True)
class LocatedRows:
    """Rows of a data set, and where each of them comes from."""

    dataset: Dataset
    """The rows."""
    name: str
    """The data set as the user named it."""
    split: str
    """The split as the user wrote it, such as ``train[:100]``."""
    notes: tuple[str, ...] = ()
    """One sentence for each thing about the rows that should not go unnoticed."""
    files: LocalFiles | None = None
    """The files on disk; None for a data set of the hub."""
    split_sizes: tuple[tuple[str, int], ...] = ()
    """Rows of each whole split."""
    source_rows: tuple[int, ...] | None = None
    """Where each row stood in ``split``, where some of its rows are left out."""

    def select(self, rows: Sequence[int]) -> LocatedRows:
        """Return some of the rows, in the order of `rows`, which count from 0."""
        old = self.source_rows
        source_rows = tuple(int(row) if old is None else old[row] for row in rows)
        return replace(self, dataset=self.dataset.select(rows), source_rows=source_rows)

    def locate(self, row: int) -> str:
        """Return where `row` of `dataset` stands, counted from 0: "math.jsonl, line 17"."""
        split, absolute = self._absolute(self.source_rows[row] if self.source_rows else row)
        lines = self._line(split, absolute)
        return lines or f"row {absolute} of {self.name} ({split}), counted from 0"

    def refuse(self, rows: Sequence[int], problem: str, *, purpose: str = "trained on") -> NoReturn:
        """Raise DataError for the first of the bad rows, and say how many more there are.

        Args:
            rows: The bad ones, counted from 0.
            problem: What is wrong with the first.
            purpose: What they cannot be, such as "evaluated on".
        """
        more = f" {len(rows) - 1} more rows cannot be {purpose} either." if len(rows) > 1 else ""
        raise DataError(f"{self.locate(rows[0])}: {problem}.{more} Correct or remove them.")

    def _absolute(self, row: int) -> tuple[str, int]:
        """Return the split without its slice, and the row in it."""
        for split, start, stop in split_ranges(self.split, dict(self.split_sizes)):
            if row < stop - start:
                return split, start + row
            row -= stop - start
        return self.split, row

    def _line(self, split: str, row: int) -> str | None:
        if self.files is None or split not in self.files.files:
            return None
        for file in self.files.files[split]:
            rows = self.files.records(file)
            if rows is None:
                return None
            for number, _ in rows:
                if not row:
                    return place(file, number)
                row -= 1
        return None


def iterate_rows(dataset: Dataset, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of some columns, a batch in memory at a time."""
    for batch in dataset.select_columns(list(columns)).iter(batch_size=1000):
        yield from (
            dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
        )
