"""Where rows come from: local files or the hub, and which of their rows a split takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetsError

from balora.data.lines import csv_header, first_bad_record, undecodable
from balora.errors import DataError
from balora.field_types import suggestion

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_ENDINGS = ", ".join(BUILDERS)
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
    files: dict[str, list[Path]]

    @property
    def builder(self) -> str:
        """The name of the `datasets` loader for these files."""
        return BUILDERS[self._any_file().suffix.lower()]

    def _any_file(self) -> Path:
        return next(iter(self.files.values()))[0]


def find_local(name: str) -> LocalFiles | None:
    """Return the local files that a data set's `name` stands for, None when it is a hub id.

    A single file is the split ``train``. In a folder the files whose name has a word such as test
    or validation belong to that split, all others to ``train``.

    Raises:
        DataError: If it must be a file and is missing, has an ending that is not read, or is a
            folder without readable files or with files of several kinds.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return LocalFiles(name, _folder(path))
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            raise DataError(f"{name} ends in `{path.suffix}`; data files end in {_ENDINGS}.")
        return LocalFiles(name, {"train": [path]})
    looks_local = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if looks_local or path.suffix.lower() in BUILDERS:
        raise DataError(f"{name} does not exist{_neighbours(path)}.")
    return None


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    return suggestion(path.name, sorted(file.name for file in path.parent.iterdir()))


def _folder(path: Path) -> dict[str, list[Path]]:
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in BUILDERS)
    if not found:
        raise DataError(f"{path} holds no file that ends in {_ENDINGS}.")
    kinds = sorted({BUILDERS[file.suffix.lower()] for file in found})
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
    """Return the rows of a split as they are stored, and the size of each whole split.

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
    for part in split.split("+"):
        wanted = re.split(r"[\[(]", part.strip())[0]
        if wanted not in files.files:
            raise DataError(f"{files.name} has no split `{wanted}`, only {', '.join(files.files)}.")
    every_file = [file for of_split in files.files.values() for file in of_split]
    for file in every_file:
        _check_file(file, files.builder)
    options: dict[str, Any] = {}
    if files.builder == "csv":
        # every value is text as it stands: no numbers, and "None" and "NA" are no gaps
        columns = csv_header(every_file[0])
        options = {"features": Features({column: Value("string") for column in columns})}
        options["keep_default_na"] = False
    data_files = {key: [str(file) for file in of] for key, of in files.files.items()}
    try:
        return datasets.load_dataset(files.builder, data_files=data_files, split=split, **options)
    except (DatasetsError, ValueError, OSError, StopIteration, TypeError) as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{files.name} has no rows in `{split}`.") from error
        problem = next((found for file in every_file if (found := first_bad_record(file))), None)
        reason = problem or f"{files.name} cannot be read: {_reason(error)}"
        raise DataError(reason.rstrip(".") + ".") from error


def _check_file(file: Path, builder: str) -> None:
    """Refuse what the loader would take silently: shifted or padded CSV rows, broken text."""
    if not file.stat().st_size:
        raise DataError(f"{file} is empty.")
    checks = {"csv": first_bad_record, "json": undecodable}
    if builder in checks and (problem := checks[builder](file)):
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
