"""The files that a comparison reads: are they there, and are they still the same?"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from balora.config import DataConfig
from balora.config.classification import ClassificationConfig
from balora.data.sources import find_local
from balora.errors import ConfigError

_BYTES = 1 << 20


def data_files(data: DataConfig | ClassificationConfig) -> dict[str, dict[str, list[Path]]]:
    """Return the files on disk that rows are in, by what names them and split; none for the hub.

    Raises:
        DataError: If a file or folder is missing or is none of data.
    """
    found = {}
    for field, name in data.named_sets.items():
        local = None if name is None else find_local(name, setting=field)
        if local is not None:
            found[field] = local.files
    return found


def fingerprint(files: Mapping[str, Sequence[Path]]) -> str:
    """Return 16 hexadecimal digits that tell what files hold and of which split, not their names.

    Raises:
        ConfigError: If one cannot be read.
    """
    pairs = [(split, file) for split in sorted(files) for file in files[split]]
    digests = [f"{split}:{_digest_of(file)}" for split, file in pairs]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def _digest_of(file: Path) -> str:
    try:
        state = file.stat()
        return _digest(file, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from error


@functools.cache
def _digest(file: Path, _time: int, _size: int) -> str:
    """Return the hash of a file; read once as long as it is not written to."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_BYTES):
            digest.update(block)
    return digest.hexdigest()
