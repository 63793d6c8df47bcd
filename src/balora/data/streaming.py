"""Rows that are read while a run goes on: nothing is stored, and no row is seen before its step.

A row that cannot be trained on therefore ends the run when it is read, and no number of rows is
known. Held-out rows are read whole as ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets import Dataset, IterableDataset

from balora.config import DataConfig
from balora.data.columns import pick_layout, template_of
from balora.data.examples import FOR_THE_CHAT_TEMPLATE
from balora.data.json_records import RawJson
from balora.data.layouts import ChatLayout, ChatPairLayout, Layout
from balora.data.records import place, records
from balora.data.sources import LocalFiles, files_of_split, find_local, naming_the_hub
from balora.errors import DataError

_NUM_FIRST = 100
"""Rows that are looked at for the columns."""
_PLACE = "place in the data"

Row = dict[str, Any]


class Streamed(NamedTuple):
    """Rows that nobody has seen yet, and how they are laid out."""

    rows: IterableDataset
    """As the trainer reads them."""
    template: str
    """As `Examples` has it."""


def stream_examples(config: DataConfig) -> Streamed:
    """Return the rows to train on, as the trainer reads them, each checked when it is read.

    Args:
        config: Names the data set, its columns and the prompt template.

    Raises:
        DataError: If the data cannot be opened, have no rows or not the columns; for a row that
            cannot be trained on when it is read.
    """
    name, split = config.dataset_name, config.dataset_train_split
    files = find_local(name)
    raw = _open(config, files)
    first = list(raw.take(_NUM_FIRST))
    if not first:
        raise DataError(f"{name} has no rows in `{split}`; name other data.")
    columns = [column for column in dict.fromkeys(chain(*first)) if column != _PLACE]
    row = {column: first[0].get(column) for column in columns}
    layout = pick_layout(Dataset.from_list([row]), config, name)
    kept = [column for column in FOR_THE_CHAT_TEMPLATE if column in columns]
    rows = raw.map(
        _ready,
        with_indices=True,
        fn_kwargs={
            "layout": layout,
            "kept": kept,
            "where": f"{name} ({split})",
            "is_rendered": _is_rendered(layout, row),
        },
        remove_columns=[*columns, _PLACE] if _PLACE in first[0] else columns,
    )
    return Streamed(rows, template_of(layout))


def _open(config: DataConfig, files: LocalFiles | None) -> IterableDataset:
    """Return the rows as they are stored; those of text files with their place."""
    name, split = config.dataset_name, config.dataset_train_split
    if files is None:
        with naming_the_hub(name, split, "dataset_train_split"):
            return datasets.load_dataset(name, config.dataset_config, split=split, streaming=True)
    paths = [str(file) for file in files_of_split(files, config.dataset_config, split)]
    if files.kind == "parquet":
        return datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True)
    names = tuple(files.column_names or ())
    return IterableDataset.from_generator(_records, gen_kwargs={"files": paths, "names": names})


def _records(files: Sequence[str], names: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of files with their places; all with the columns of the first ones."""
    columns: dict[str, None] = {}
    for number, (where, row) in enumerate(_placed(files, names)):
        if number < _NUM_FIRST:
            columns |= dict.fromkeys(row)
        yield {**{column: row.get(column) for column in columns}, _PLACE: where}


def _placed(files: Sequence[str], names: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    for file in map(Path, files):
        for number, row in records(file, names or None):
            read = {n: json.loads(v) if type(v) is RawJson else v for n, v in row.items()}
            yield place(file, number), read


def _is_rendered(layout: Layout, row: Row) -> bool:
    """Say whether rows are to be laid out; chats that are written as the trainer reads them not."""
    if not isinstance(layout, ChatLayout | ChatPairLayout):
        return True
    turns = row[layout.columns[-1]]
    return bool(turns) and "from" in turns[0]


def _ready(
    row: Row, index: int, *, layout: Layout, kept: Sequence[str], where: str, is_rendered: bool
) -> Row:
    read = {column: row.get(column) for column in layout.columns}
    problem = layout.problem(read)
    if problem is not None:
        at = row.get(_PLACE) or f"row {index} of {where}, counted from 0"
        raise DataError(f"{at}: {problem}. Correct or remove it.")
    if is_rendered:
        made = layout.render(read)
    else:
        is_pair = isinstance(layout, ChatPairLayout)
        made = read if is_pair else {"messages": read[layout.columns[0]]}
    return {**made, **{column: row[column] for column in kept}}
