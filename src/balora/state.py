"""Saved state, read in one way: what is damaged or of another kind is one sentence on its file.

JSON, safetensors, and the pickles of a trainer (``optimizer.pt``, ``scheduler.pt``,
``rng_state.pth``). A pickle is read as tensors and plain values only, so a payload never runs.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balora.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_DAMAGED_PICKLE = (
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch raises for a file that is cut short, changed, or none of its own."""

_WORDS = {dict: "object", list: "list", str: "text", int: "whole number", float: "number"}
"""JSON's own words for the types."""


def damaged(path: Path, problem: str, fix: str) -> ConfigError:
    """Return the error for a file of state that cannot be used.

    Args:
        path: Of the file.
        problem: Half a sentence on the file: ``is empty``.
        fix: A sentence: what the user can do.
    """
    return ConfigError(f"`{path}` {problem}. {fix}")


def parse_json(text: str) -> Any:
    """Return the value of a text of JSON.

    Raises:
        ValueError: If it is none, with half a sentence on the text.
    """
    if not text.strip():
        raise ValueError("is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is damaged: it is no JSON at {where}") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, a deep nesting
        raise ValueError("is damaged: its JSON cannot be read") from error


def read_json(
    path: Path, fix: str, *, kind: type = dict, fields: Mapping[str, type] | None = None
) -> Any:
    """Return the value of a JSON file.

    Args:
        path: Of the file.
        fix: What the user can do where it cannot be read; a sentence.
        kind: What the value must be.
        fields: What the object must have, and of which type each is (``object`` for any).

    Raises:
        ConfigError: If it is missing, empty, damaged, or of another shape.
    """
    try:
        value = parse_json(_bytes(path, fix).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise damaged(path, "is damaged: it is no text", fix) from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise damaged(path, str(error), fix) from error
    if not _is_of(value, kind):
        raise damaged(path, f"is damaged: it holds no {_WORDS.get(kind)}", fix)
    for name, wanted in (fields or {}).items():
        if name not in value:
            raise damaged(path, f"is damaged: it has no `{name}`", fix)
        if not _is_of(value[name], wanted):
            raise damaged(path, f"is damaged: `{name}` is no {_WORDS.get(wanted)}", fix)
    return value


def read_json_lines(path: Path, fix: str) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object on each line; empty lines are passed over.

    Raises:
        ConfigError: If it is missing or damaged, naming the line.
    """
    try:
        lines = _bytes(path, fix).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise damaged(path, "is damaged: it is no text", fix) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise damaged(path, f"is damaged: line {number} is no JSON", fix) from error
        if not isinstance(row, dict):
            raise damaged(path, f"is damaged: line {number} holds no object", fix)
        rows.append(row)
    return rows


def read_tensors(path: Path, fix: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        ConfigError: If it is missing, damaged or no safetensors file.
    """
    with open_tensors(path, fix) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@contextmanager
def open_tensors(path: Path, fix: str) -> Iterator[Any]:
    """Yield a safetensors file as ``safetensors.safe_open`` does, with its metadata.

    The header is checked against the length of the file at once.

    Raises:
        ConfigError: If it is missing, damaged or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    head = _bytes(path, fix, 4)
    if not head:
        raise damaged(path, "is empty", fix)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        problem = "is damaged: it is cut short, or no safetensors file"
        # asked only now: a safetensors file, which begins with a length, may begin like a pickle
        if head.startswith((b"PK\x03\x04", b"\x80")):
            problem = "is a pickle and no safetensors file, and is not opened"
        raise damaged(path, problem, fix) from error


def read_torch(path: Path, fix: str, *, kind: type = dict) -> Any:
    """Return what ``torch.save`` wrote, on the CPU: tensors, numpy arrays and plain values.

    Files of torch's present format are mapped into memory, so that looking at one costs little.

    Raises:
        ConfigError: If it is missing, damaged, of another kind, or holds anything that would have
            to be run; nothing in it is.
    """
    import torch
    from transformers.trainer_pt_utils import safe_globals

    if not _bytes(path, fix, 4):
        raise damaged(path, "is empty", fix)
    try:
        with safe_globals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that is none of torch's: it is refused
            value = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except _DAMAGED_PICKLE as error:
        problem = "is damaged, or holds something other than tensors; nothing in it was run"
        raise damaged(path, problem, fix) from error
    if not _is_of(value, kind):
        raise damaged(path, f"is damaged: it holds no {kind.__name__}", fix)
    return value


def _bytes(path: Path, fix: str, number: int = -1) -> bytes:
    """Return the first bytes of a file, -1 for all."""
    try:
        with path.open("rb") as file:
            return file.read(number)
    except FileNotFoundError as error:
        raise damaged(path, "is missing", fix) from error
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else str(error.strerror)
        raise damaged(path, f"cannot be read: {reason}", fix) from error


def _is_of(value: Any, kind: type) -> bool:
    """Say whether a value is of a type; a truth value is no number."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
