"""Where rows come from: local files or the hub, and which of their rows a split takes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetsError

from balora.data.lines import (
    csv_header,
    first_bad_record,
    first_values,
    is_tsv,
    record_lines,
    undecodable,
)
from balora.errors import DataError
from balora.field_types import suggestion

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_ENDINGS = ", ".join(KINDS)
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
        return "tsv" if is_tsv(self._any_file()) else KINDS[self._any_file().suffix.lower()]

    @property
    def is_table(self) -> bool:
        """True for CSV and TSV, where every value is text."""
        return self.kind in ("csv", "tsv")

    def lines(self, file: Path) -> Iterator[int] | None:
        """Yield the line each record of one of the files starts on, as `record_lines` does."""
        return record_lines(file, has_header=self.column_names is None)

    def _any_file(self) -> Path:
        return next(iter(self.files.values()))[0]


def find_local(name: str) -> LocalFiles | None:
    """Return the local files that a data set's `name` stands for, None when it is a hub id.

    A single file is the split ``train``. In a folder the files whose name has a word such as test
    or validation belong to that split, all others to ``train``. Tab-separated files (.tsv, and
    .txt with a tab on its first line) are read by the tab alone: quotes are ordinary characters.

    Raises:
        DataError: If it must be a file and is missing, has an ending that is not read, or is a
            folder without readable files or with files of several kinds.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return LocalFiles(name, _folder(path))
    if path.is_file():
        if path.suffix.lower() not in KINDS and not _is_tabbed_text(path):
            raise DataError(f"{name} ends in `{path.suffix}`; data files end in {_ENDINGS}.")
        return LocalFiles(name, {"train": [path]})
    looks_local = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if looks_local or path.suffix.lower() in KINDS:
        raise DataError(f"{name} does not exist{_neighbours(path)}.")
    return None


def _is_tabbed_text(path: Path) -> bool:
    return path.suffix.lower() == ".txt" and len(first_values(path)) > 1


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    return suggestion(path.name, sorted(file.name for file in path.parent.iterdir()))


def _folder(path: Path) -> dict[str, list[Path]]:
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in KINDS)
    if not found:
        raise DataError(f"{path} holds no file that ends in {_ENDINGS}.")
    kinds = sorted({KINDS[file.suffix.lower()] for file in found})
    if len(kinds) > 1:
        raise DataError(
            f"{path} holds files of several kinds ({', '.join(kinds)}); name one file, or keep one "
            "kind in the folder."
        )
    files: dict[str, list[Path]] = {}
    for file in found:
        words = re.split(r"[^a-z]+", file.stem.lower())
        split = next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), "train")
        files.setdefault(split, []).append(file)
    return files


def load_rows(
    name: str, files: LocalFiles | None, subset: str | None, split: str
) -> tuple[Dataset, dict[str, int]]:
    """Return the rows of a split as they are stored, and the size of each whole split read.

    Raises:
        DataError: If the split or a file cannot be read, or the split has no rows.
    """
    if not all(_SPLIT.fullmatch(part.strip()) for part in split.split("+")):
        raise DataError(
            f"the split `{split}` of {name} cannot be read; write for example train, "
            "train[:1000] or train[10%:20%]."
        )
    rows = _load_local(files, subset, split) if files else _load_hub(name, subset, split)
    sizes = {key: info.num_examples for key, info in (rows.info.splits or {}).items()}
    if not len(rows) or any(stop <= start for _, start, stop in split_ranges(split, sizes)):
        raise DataError(f"{name} has no rows in `{split}`.")
    return rows, sizes


def split_ranges(split: str, sizes: dict[str, int]) -> list[tuple[str, int, int]]:
    """Return split, first row and row after the last for each part of a split text."""
    parts = [part.strip() for part in split.split("+")]
    if not sizes or any(re.split(r"[\[(]", part)[0] not in sizes for part in parts):
        return []
    absolute = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    return [(part.splitname, part.from_ or 0, part.to) for part in absolute]


def _load_local(files: LocalFiles, subset: str | None, split: str) -> Dataset:
    if subset is not None:
        raise DataError(
            f"`dataset_config` is {subset}, but {files.name} is on disk and has no "
            "configurations; leave it out."
        )
    # of the other splits nothing is read: their files may have other columns
    wanted: dict[str, list[Path]] = {}
    for part in split.split("+"):
        name = re.split(r"[\[(]", part.strip())[0]
        if name not in files.files:
            raise DataError(f"{files.name} has no split `{name}`, only {', '.join(files.files)}.")
        wanted[name] = files.files[name]
    every_file = [file for of_split in wanted.values() for file in of_split]
    for file in every_file:
        _check_file(file, files)
    builder, options = _loader(files, every_file[0])
    data_files = {key: [str(file) for file in of] for key, of in wanted.items()}
    try:
        return datasets.load_dataset(builder, data_files=data_files, split=split, **options)
    except (DatasetsError, ValueError, OSError, StopIteration, TypeError) as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{files.name} has no rows in `{split}`.") from error
        found = (first_bad_record(file, files.column_names) for file in every_file)
        problem = next((problem for problem in found if problem), None)
        reason = problem or f"{files.name} cannot be read: {_reason(error)}"
        raise DataError(reason.rstrip(".") + ".") from error


def _loader(files: LocalFiles, file: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the `datasets` loader and its options."""
    if not files.is_table:
        return files.kind, {}
    # every value is text as it stands: no numbers, and "None" and "NA" are no gaps
    columns = list(files.column_names or csv_header(file))
    options: dict[str, Any] = {
        "features": Features({column: Value("string") for column in columns}),
        "keep_default_na": False,
    }
    if files.kind == "tsv":
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    if files.column_names:
        options["column_names"] = columns
    return "csv", options


def _check_file(file: Path, files: LocalFiles) -> None:
    """Refuse what the loader would take silently: shifted or padded CSV rows, broken text."""
    if not file.stat().st_size:
        raise DataError(f"{file} is empty.")
    problem = first_bad_record(file, files.column_names) if files.is_table else None
    if files.kind == "json":
        problem = undecodable(file)
    if problem:
        raise DataError(problem + ".")


def _load_hub(name: str, subset: str | None, split: str) -> Dataset:
    try:
        return datasets.load_dataset(name, subset, split=split)
    except (DatasetsError, ValueError, OSError, RuntimeError) as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{name} has no rows in `{split}`.") from error
        raise DataError(
            f"{name} is no file or folder here, and the hub does not give it: "
            f"{_reason(error).rstrip('.')}. Check the name, the split `{split}` and the connection."
        ) from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= 300 else text[:297] + "..."
