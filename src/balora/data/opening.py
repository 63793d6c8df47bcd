"""Data files as bytes: what their names say they hold, and how a compressed one is read.

A compressed file is read through its codec, never unpacked to disk: gzip (``.gz``), bzip2
(``.bz2``), xz (``.xz``) and Zstandard (``.zst``). Archives of several files (``.zip``, ``.tar``)
and LZ4 are not read.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from balora.errors import DataError

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
"""From the ending of a data file to what it holds."""


def _open_zst(file: Path) -> IO[bytes]:
    stream = io.BufferedReader(pa.input_stream(str(file), compression="zstd"))
    return cast("IO[bytes]", stream)


_CODECS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda file: cast("IO[bytes]", gzip.open(file, "rb")),
    ".bz2": lambda file: cast("IO[bytes]", bz2.open(file, "rb")),
    ".xz": lambda file: cast("IO[bytes]", lzma.open(file, "rb")),
    ".zst": _open_zst,
}
ENDINGS = f"{', '.join(KINDS)}; all but the last may be compressed ({', '.join(_CODECS)})"
"""The endings of data files, for messages."""


def ending(file: Path) -> str:
    """Return what the name of a file ends in, in lower case, without that of a compressed file."""
    return _plain(file).suffix.lower()


def stem(file: Path) -> str:
    """Return the name of a file without its endings, in lower case."""
    return _plain(file).stem.lower()


def _plain(file: Path) -> Path:
    return file.with_suffix("") if file.suffix.lower() in _CODECS else file


def is_data_file(file: Path) -> bool:
    """Say whether the ending of a file is one of data."""
    return ending(file) in KINDS and (ending(file) != ".parquet" or _plain(file) == file)


def is_hidden(file: Path) -> bool:
    """Say whether a file is an editor's or the system's own, as ``.x``, ``._x`` and ``~$x`` are."""
    return file.name.startswith((".", "~$"))


def is_tsv(file: Path) -> bool:
    """Say whether a file that is read as a table is separated by tabs."""
    return ending(file) in (".tsv", ".txt")


def kind_of(file: Path) -> str:
    """Return what a data file holds: json, csv, tsv or parquet."""
    return "tsv" if is_tsv(file) else KINDS[ending(file)]


@contextmanager
def open_data(file: Path) -> Iterator[IO[bytes]]:
    """Open a file of data for reading, through its codec where it is compressed.

    Raises:
        DataError: If it cannot be read, or is damaged or not compressed as its ending says; also
            where that shows only while it is read.
    """
    codec = _CODECS.get(file.suffix.lower())
    try:
        with codec(file) if codec else file.open("rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        # a failed system call has a number; a codec's complaint has none
        reason = getattr(error, "strerror", None)
        if codec and not reason:
            reason = f"it is damaged, or not compressed as its ending says ({error})"
        raise DataError(f"{file} cannot be read: {reason or error}.") from error


def undecodable(file: Path) -> str | None:
    """Return where a text file is not UTF-8, for an error message; None when all of it is."""
    with open_data(file) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{file}, line {number}: not UTF-8 text"
    return None
