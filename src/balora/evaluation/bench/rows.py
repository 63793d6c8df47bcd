"""The problems of a benchmark as rows of a data set: read, and checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
from datasets import Dataset

from balora.data.columns import listed
from balora.data.provenance import LocatedRows, iterate_rows
from balora.data.sources import find_local, load_rows
from balora.errors import DataError
from balora.evaluation.bench.config import BenchmarkData

Row = Mapping[str, Any]


def read_rows(
    data: BenchmarkData,
    benchmark: str,
    *,
    published: BenchmarkData,
    configs: Sequence[str | None] = (None,),
    columns: Callable[[list[str]], str | None],
    problem: Callable[[Row], str | None],
) -> list[dict[str, Any]]:
    """Return the rows of a benchmark, all of them.

    Args:
        data: What the user set.
        benchmark: By its name, for messages.
        published: Where the hub keeps it, and the split that is scored.
        configs: The configurations of the hub that are read one after the other.
        columns: Returns what is missing among columns, None if all are there.
        problem: Returns what is wrong with a row, in half a sentence, None if nothing is.

    Raises:
        DataError: If the rows cannot be read, lack a column, or one cannot be measured on.
    """
    name = data.dataset_name or published.dataset_name
    assert name is not None
    files = find_local(name, setting=f"{benchmark}.dataset_name")
    split = data.dataset_split or published.dataset_split or "test"
    if files is not None and data.dataset_split is None:
        split = split if split in files.files else "+".join(files.files)
    if data.dataset_config is not None or data.dataset_name is not None:
        configs = (data.dataset_config,)
    parts: list[Dataset] = []
    sizes: dict[str, int] = {}
    for config in configs:
        rows, sizes = load_rows(name, files, config, split, setting=f"{benchmark}.dataset_split")
        parts.append(rows)
    found = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    if (missing := columns(found.column_names)) is not None:
        raise DataError(
            f"{name} is no data set of {benchmark}: it has no column {missing}; its columns are "
            f"{listed(found.column_names)}. Name another with `{benchmark}.dataset_name`."
        )
    located = LocatedRows(found, name, split, (), files, tuple(sizes.items()))
    result = list(iterate_rows(found, found.column_names))
    problems = [(number, what) for number, row in enumerate(result) if (what := problem(row))]
    if problems:
        located.refuse([number for number, _ in problems], problems[0][1], purpose="measured on")
    return result


def missing_column(*names: str) -> Callable[[list[str]], str | None]:
    """Return a check that all of these columns are there."""

    def check(columns: list[str]) -> str | None:
        return next((f"`{name}`" for name in names if name not in columns), None)

    return check
