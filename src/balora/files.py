"""Texts read with an error that names them, and files that appear as a whole, by one rename."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balora.errors import ConfigError
from balora.staging import staged_file, writing


def finite(value: Any) -> Any:
    """Return a value of JSON with None for every NaN and infinity in it."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_text(path: Path, name: str) -> str:
    """Return the text of a UTF-8 file.

    Args:
        path: Of the file.
        name: What the user calls it, for the error.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} {str(path)!r} cannot be read: {error}.") from error


def read_filled_text(path: Path, name: str) -> str:
    """Return the text of a UTF-8 file that must have something in it, as `read_text` does.

    Raises:
        ConfigError: If it cannot be read or holds nothing but space.
    """
    text = read_text(path, name)
    if not text.strip():
        raise ConfigError(f"{name} is {str(path)!r}, which is empty; name a file of plain text.")
    return text


def write_text(path: Path, text: str, *, name: str = "the file") -> None:
    """Write a file of UTF-8 with line feeds by rename; its folder exists.

    What is no regular file, such as ``/dev/stdout``, is written to and not replaced.

    Args:
        path: Of the file.
        text: All of it.
        name: What the user calls it, for the error.

    Raises:
        WriteError: If it cannot be written, as when the disk is full; the old one is still whole.
    """
    with writing(path, name):
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        with staged_file(path) as stage, stage.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a crash of the machine can leave the name without it


def write_json(path: Path, value: Any, *, name: str = "the file") -> None:
    """Write JSON by rename, NaN and infinity as null; otherwise as `write_text`."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", name=name)
