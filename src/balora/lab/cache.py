"""Folders that are built once and kept by their recipe.

An entry is built in a folder beside it and put in place by one rename: it is there as a whole or
not at all. Of two processes that build the same one, the second to finish throws its own away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balora.errors import BaloraError, ConfigError

CACHE_VARIABLE = "BALORA_CACHE"
_BUILDING = ".building-"
_LEFT_SECONDS = 7 * 24 * 3600
"""After which a folder that is being built belongs to a process that was killed."""


def default_cache() -> Path:
    """Return ``$BALORA_CACHE``, else ``~/.cache/balora``."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "balora"


def cache_key(recipe: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits; the order of the keys, and 0 or 0.0, make no difference."""
    text = json.dumps(_plain(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else value


def cached(
    root: Path,
    recipe: Mapping[str, Any],
    *,
    record: str,
    build: Callable[[Path], Mapping[str, Any]],
) -> Path:
    """Return the entry of a recipe, built if it is not there; an entry is never changed.

    Args:
        root: The folder of the entries; made if it is not there.
        recipe: Everything that decides the entry; what JSON can hold.
        record: The entry's file with its ``recipe`` and what ``build`` returned.
        build: Fills the new folder that it is given.

    Raises:
        ConfigError: If the entry in place is of another recipe, or of none.
        BaloraError: If the folder cannot be written.
    """
    entry = root / cache_key(recipe)
    if not entry.exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove_left(root)
            scratch = tempfile.TemporaryDirectory(dir=root, prefix=_BUILDING)
        except OSError as error:
            raise BaloraError(
                f"the cache {str(root)!r} cannot be written: {error.strerror}; set "
                f"{CACHE_VARIABLE} to a folder that can."
            ) from error
        with scratch as folder:
            new = Path(folder) / "entry"
            new.mkdir()
            content = {"recipe": dict(recipe), **build(new)}
            (new / record).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            _put_in_place(new, entry)
    _compare(entry / record, recipe)
    return entry


def _remove_left(root: Path) -> None:
    """Remove what killed processes left half built, once it is old."""
    for folder in root.glob(f"{_BUILDING}*"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if time.time() - folder.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(new: Path, entry: Path) -> None:
    try:
        new.rename(entry)
    except OSError:
        # a folder that holds files is not replaced: another process was first
        if not entry.is_dir():
            raise


def _compare(path: Path, recipe: Mapping[str, Any]) -> None:
    try:
        found = json.loads(path.read_text("utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(path.parent)!r} is no entry of the cache: {path.name} is missing or damaged; "
            "remove the folder."
        ) from error
    # as JSON gives it back: lists for tuples
    wanted = json.loads(json.dumps(recipe))
    if found != wanted:
        raise ConfigError(
            f"{str(path.parent)!r} was built by another recipe, which differs in "
            f"{', '.join(_differences(found, wanted))}; remove the folder."
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for name in dict.fromkeys([*found, *wanted]):
        one, other = found.get(name), wanted.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += _differences(one, other)
        elif one != other:
            names.append(f"`{name}` ({one}, not {other})")
    return names
