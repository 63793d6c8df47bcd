"""Local files as a data set: read once, stored in the cache of `datasets`, mapped into memory.

What is stored belongs to the files as they are: their paths, sizes and times of change are in its
name, so that a file that was changed is read anew. Memory holds one batch of rows at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import datasets
import pyarrow as pa
from datasets import Dataset, Features

from balora.data.opening import kind_of as kind_of_file
from balora.data.parquet import store_parquet
from balora.data.records import place, records
from balora.data.values import features_of, kind_of, stored, wider
from balora.distributed import rank_and_world
from balora.errors import BaloraError, DataError

_FORMAT = 1  # to be raised when the same files are stored in another way
_FIRST_ROWS, _ROWS = 100, 1000  # of a batch, the first and every other
_BYTES = 8 << 20  # of a batch of more than one row

Files: TypeAlias = Mapping[str, Sequence[Path]]
"""The files of each split."""
Kinds: TypeAlias = dict[str, type | None]
Batch: TypeAlias = list[tuple[int, dict[str, Any]]]
Columns: TypeAlias = dict[str, list[Any]]


def stored_splits(files: Files, columns: Sequence[str] | None = None) -> dict[str, Dataset]:
    """Return the rows of each split; all have the same columns, null where a file has none.

    Args:
        files: All of one kind, at least one.
        columns: Those of TSV files that do not name them on their first line.

    Raises:
        DataError: If a file cannot be read: the first row that cannot, by file and line.
        BaloraError: If the rows cannot be stored.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "balora"
    # a folder for each: `datasets` stores what it maps beside it and looks through all of that
    own = folder / _key(files, columns)
    found = {split: own / f"{split}.arrow" for split in files}
    if not all(file.is_file() for file in found.values()):
        with _storing(folder), tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as stage:
            _store(files, columns, Path(stage))
            own.mkdir(exist_ok=True)
            for split, file in found.items():
                os.replace(Path(stage) / split, file)
    return {split: Dataset.from_file(str(file)) for split, file in found.items()}


def in_file(dataset: Dataset) -> Dataset:
    """Return rows that several processes have in memory as those of a file that they share.

    `datasets` stores what it makes of rows beside their file, and of rows in memory nothing: every
    process would make it anew. The file belongs to the rows' fingerprint.

    Args:
        dataset: Rows; they are returned as they are where there is one process, where they have a
            file already, or a transform of the user's own.
    """
    has_file, is_custom = bool(dataset.cache_files), dataset.format["type"] == "custom"
    if rank_and_world()[1] == 1 or has_file or is_custom or not len(dataset):
        return dataset
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "balora"
    own = folder / f"memory-{dataset._fingerprint}"
    with _storing(folder):
        if not own.is_dir():
            with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as stage:
                dataset.save_to_disk(Path(stage) / own.name)
                with suppress(OSError):  # another process was faster
                    os.rename(Path(stage) / own.name, own)
    return datasets.load_from_disk(str(own))


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, and say in one sentence where the body cannot write to it.

    Raises:
        BaloraError: If there is no room, or no right to write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise BaloraError(
            f"the rows cannot be stored in {folder}: {error.strerror or error}. Make room "
            "there, or set HF_DATASETS_CACHE to another folder."
        ) from error


def _key(files: Files, columns: Sequence[str] | None) -> str:
    """Return what tells these files from others, and from themselves after a change."""
    states = {split: [_state(file) for file in of_split] for split, of_split in files.items()}
    content = json.dumps([_FORMAT, states, list(columns or ())])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _state(file: Path) -> tuple[str, int, int, int]:
    try:
        state = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    # the time of change is the system's own: a copy that keeps the other time does not keep it
    return str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _store(files: Files, columns: Sequence[str] | None, stage: Path) -> None:
    every = [file for of_split in files.values() for file in of_split]
    if kind_of_file(every[0]) == "parquet":
        store_parquet(files, stage)
        return
    kinds: Kinds = {}
    for file in every:
        _add_kinds(kinds, file, list(islice(records(file, columns), _FIRST_ROWS)))
    if not _store_rows(files, columns, stage, kinds):
        # a later row did not fit the columns of the first ones; now those of all rows are known
        _store_rows(files, columns, stage, kinds)


def _store_rows(files: Files, columns: Sequence[str] | None, stage: Path, kinds: Kinds) -> bool:
    """Write a file for each split, with columns of `kinds`, and add to these what rows have more.

    Returns:
        Whether every row fitted; if not, what was written is of no use.
    """
    features, fits = features_of(kinds), True
    for split, of_split in files.items():
        with (
            pa.OSFile(str(stage / split), "wb") as sink,
            pa.ipc.new_stream(sink, features.arrow_schema) as writer,
        ):
            for file in of_split:
                rows, size = records(file, columns), _FIRST_ROWS
                while batch := list(islice(rows, size)):
                    values = _add_kinds(kinds, file, batch)
                    fits = fits and features_of(kinds) == features
                    if fits:
                        arrow = _arrow(file, batch, values, features)
                        writer.write_batch(arrow)
                        per_row = arrow.nbytes // len(batch) + 1
                        size = min(max(_BYTES // per_row, 1), _ROWS)
    return fits


def _add_kinds(kinds: Kinds, file: Path, batch: Batch) -> Columns:
    """Return the values of each column that rows of a batch have, and add its kind to `kinds`."""
    rows = [row for _, row in batch]
    values = {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain(*rows))}
    for name in values:
        if not _is_unicode(name):
            _refuse_half_pair(file, batch)
        if "\0" in name:  # where Arrow ends the name
            number = next(number for number, row in batch if name in row)
            raise DataError(
                f"{place(file, number)}: the column {name!r} has a NUL character in its name; "
                "rename it."
            )
        kinds[name] = wider(kinds.get(name), kind_of(values[name]))
    return values


def _arrow(file: Path, batch: Batch, values: Columns, features: Features) -> pa.RecordBatch:
    nulls = [None] * len(batch)
    try:
        columns = [stored(values.get(name, nulls), feature) for name, feature in features.items()]
    except UnicodeEncodeError:
        _refuse_half_pair(file, batch)
    return pa.record_batch(columns, schema=features.arrow_schema)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_half_pair(file: Path, batch: Batch) -> NoReturn:
    """Raise DataError for the first row that holds a character which is none."""
    for number, row in batch:
        half = re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False))
        if half:
            raise DataError(
                f"{place(file, number)}: `\\u{ord(half[0]):04x}` is half of a surrogate pair and "
                "no character. Correct or remove the row."
            )
    raise AssertionError("no row holds half of a surrogate pair")
