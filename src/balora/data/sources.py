"""Where rows come from: local files or the hub, and which of their rows a split takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetsError

from balora.config.words import suggestion
from balora.data.opening import ENDINGS, ending, is_data_file, is_hidden, kind_of, stem
from balora.data.records import records
from balora.data.stored import stored_splits
from balora.data.tables import first_values
from balora.errors import DataError

_SPLIT = re.compile(
    r"\w+(\.\w+)*(\[(-?[\d_]+%?)?:(-?[\d_]+%?)?\])?(\((closest|pct1_dropremainder)\))?"
)
_SPLIT_WORDS = {  # words in file names, as the hub reads them
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}


@dataclass(frozen=True)
class LocalFiles:
    """Files of one kind, sorted, by the split they belong to."""

    name: str
    """The file or folder as the user named it."""
    files: dict[str, list[Path]]
    """Split to files."""
    column_names: tuple[str, ...] | None = None
    """The columns of TSV files that do not name them on their first line."""

    @property
    def kind(self) -> str:
        """What the files are: json, csv, tsv or parquet."""
        return kind_of(self._any_file())

    def records(self, file: Path) -> Iterator[tuple[int, dict[str, Any]]] | None:
        """Yield the rows of one of the files as `records` does; None where rows have no place."""
        return None if self.kind == "parquet" else records(file, self.column_names)

    def _any_file(self) -> Path:
        return next(iter(self.files.values()))[0]


def find_local(name: str, *, setting: str = "dataset_name") -> LocalFiles | None:
    """Return the local files that a data set's `name` stands for, None when it is a hub id.

    A single file is the split ``train``. In a folder the files whose name has a word such as test
    or validation belong to that split, all others to ``train``; hidden files are left out.
    Tab-separated files (.tsv, and .txt with a tab on its first line) are read by the tab alone:
    quotes are ordinary characters.

    Args:
        name: A file, a folder, or an id of the hub.
        setting: What names it, for messages.

    Raises:
        DataError: If it must be a file and is missing, has an ending that is not read, or is a
            folder without readable files or with files of several kinds.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return LocalFiles(name, _folder(path, setting))
    if path.is_file():
        if not is_data_file(path) and not _is_tabbed_text(path):
            raise DataError(
                f"`{setting}` is {name}, which ends in `{path.suffix}`; data files end in "
                f"{ENDINGS}."
            )
        return LocalFiles(name, {"train": [path]})
    looks_local = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if looks_local or is_data_file(path):
        raise DataError(f"`{setting}` is {name}, which does not exist{_neighbours(path)}.")
    return None


def _is_tabbed_text(path: Path) -> bool:
    return ending(path) == ".txt" and len(first_values(path)) > 1


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    return suggestion(path.name, sorted(file.name for file in path.parent.iterdir()))


def _folder(path: Path, setting: str) -> dict[str, list[Path]]:
    found = sorted(file for file in path.iterdir() if is_data_file(file) and not is_hidden(file))
    if not found:
        raise DataError(f"`{setting}` is {path}, which holds no file that ends in {ENDINGS}.")
    kinds = sorted({kind_of(file) for file in found})
    if len(kinds) > 1:
        raise DataError(
            f"`{setting}` is {path}, which holds files of several kinds ({', '.join(kinds)}); name "
            "one file, or keep one kind in the folder."
        )
    files: dict[str, list[Path]] = {}
    for file in found:
        words = re.split(r"[^a-z]+", stem(file))
        split = next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), "train")
        files.setdefault(split, []).append(file)
    return files


def load_rows(
    name: str,
    files: LocalFiles | None,
    subset: str | None,
    split: str,
    *,
    setting: str = "dataset_train_split",
) -> tuple[Dataset, dict[str, int]]:
    """Return the rows of a split as they are stored, and the size of each whole split read.

    Args:
        name: The data set as the user named it.
        files: Its files; None for a data set of the hub.
        subset: The configuration on the hub.
        split: Which rows, such as ``train[:1000]`` or ``train+test``.
        setting: What names the split, for messages.

    Raises:
        DataError: If the split or a file cannot be read, or the split has no rows.
    """
    parts = split.split("+")
    if not all(_SPLIT.fullmatch(part.strip()) for part in parts):
        raise DataError(
            f"`{setting}` is `{split}`, which cannot be read; write for example train, "
            "train[:1000] or train[10%:20%]."
        )
    if files is None:
        rows = _load_hub(name, subset, split, setting)
        sizes = {key: info.num_examples for key, info in (rows.info.splits or {}).items()}
    else:
        rows, sizes = _load_local(files, subset, split, setting)
    if not len(rows) or any(stop <= start for _, start, stop in split_ranges(split, sizes)):
        raise _no_rows(name, split, setting)
    return rows, sizes


def _no_rows(name: str, split: str, setting: str) -> DataError:
    return DataError(
        f"{name} has no rows in `{split}`; set `{setting}` to rows that are there, or name other "
        "data."
    )


def split_ranges(split: str, sizes: dict[str, int]) -> list[tuple[str, int, int]]:
    """Return split, first row and row after the last for each part of a split text."""
    parts = [part.strip() for part in split.split("+")]
    if not sizes or any(re.split(r"[\[(]", part)[0] not in sizes for part in parts):
        return []
    absolute = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    return [(part.splitname, part.from_ or 0, part.to) for part in absolute]


def files_of_split(files: LocalFiles, subset: str | None, split: str) -> list[Path]:
    """Return the files of whole splits, such as ``train`` or ``train+validation``.

    Raises:
        DataError: If a split is missing, or a file is empty.
    """
    wanted = _wanted(files, subset, split, "dataset_train_split")
    return [file for of_split in wanted.values() for file in of_split]


def _wanted(
    files: LocalFiles, subset: str | None, split: str, setting: str
) -> dict[str, list[Path]]:
    """Return the files of the splits that are named; those of others may have other columns."""
    if subset is not None:
        raise DataError(
            f"`dataset_config` is {subset}, but {files.name} is on disk and has no "
            "configurations; leave it out."
        )
    wanted: dict[str, list[Path]] = {}
    for part in split.split("+"):
        name = re.split(r"[\[(]", part.strip())[0]
        if name not in files.files:
            raise DataError(
                f"{files.name} has no split `{name}`, only {', '.join(files.files)}; set "
                f"`{setting}` to one that is there."
            )
        wanted[name] = files.files[name]
    for file in (file for of_split in wanted.values() for file in of_split):
        if not file.stat().st_size:
            raise DataError(f"{file} is empty.")
    return wanted


def _load_local(
    files: LocalFiles, subset: str | None, split: str, setting: str
) -> tuple[Dataset, dict[str, int]]:
    wanted = _wanted(files, subset, split, setting)
    splits = stored_splits(wanted, files.column_names)
    sizes = {name: len(rows) for name, rows in splits.items()}
    try:
        ranges = split_ranges(split, sizes)
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"`{setting}` is `{split}`, which cannot be read: {str(error).rstrip('.')}."
        ) from error
    chosen = [
        splits[name].select(range(start, stop)) for name, start, stop in ranges if start < stop
    ]
    if not chosen:
        raise _no_rows(files.name, split, setting)
    return datasets.concatenate_datasets(chosen), sizes


def _load_hub(name: str, subset: str | None, split: str, setting: str) -> Dataset:
    with naming_the_hub(name, split, setting):
        return datasets.load_dataset(name, subset, split=split)


@contextmanager
def naming_the_hub(name: str, split: str, setting: str) -> Iterator[None]:
    """Turn what `datasets` raises where the hub does not give a data set into one sentence."""
    try:
        yield
    except (DatasetsError, ValueError, OSError, RuntimeError) as error:
        if "corresponds to no data" in str(error):
            raise _no_rows(name, split, setting) from error
        raise DataError(
            f"{name} is no file or folder here, and the hub does not give it: "
            f"{_reason(error).rstrip('.')}. Check the name, the split `{split}` (`{setting}`) and "
            "the connection."
        ) from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= 300 else text[:297] + "..."
