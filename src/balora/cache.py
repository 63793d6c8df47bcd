"""Folders that are built once and kept by their recipe.

An entry is built in a work folder beside it and put in place by one rename: it is there as a whole
or not at all. Of two processes that build the same one, the second to finish throws its own away.
What a process that was killed had half built is removed by the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balora.errors import ConfigError
from balora.files import write_text
from balora.folders import made_folder
from balora.staging import recover, staged_folder, writing
from balora.state import read_json

CACHE_VARIABLE = "BALORA_CACHE"
_SETTING = f"the cache (set by {CACHE_VARIABLE})"


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
    recover(root)
    if not entry.exists():
        with (
            writing(root, _SETTING),
            made_folder(root, _SETTING),
            # of two that build it the first to finish stays
            staged_folder(entry, replaces=False) as new,
        ):
            content = {"recipe": dict(recipe), **build(new)}
            write_text(new / record, json.dumps(content, indent=1) + "\n")
    _compare(entry / record, recipe)
    return entry


def _compare(path: Path, recipe: Mapping[str, Any]) -> None:
    fix = f"Remove the folder `{path.parent}`; it is then built again."
    found = read_json(path, fix, fields={"recipe": dict})["recipe"]
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
