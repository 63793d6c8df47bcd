"""Who imports whom in ``src/balora``: also where a function is called, or for an annotation."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import balora

SOURCE = Path(balora.__file__).parent
DOOR = {"cli", "cli_help", "quickstart", "schema", "schema_compare"}
"""Files that call everything else."""
GROUND = {
    *("cache", "card_results", "distributed", "environment", "errors", "files"),
    *("folders", "rows", "staging", "state"),
}
"""Files that any room may import."""


@cache
def file_imports() -> dict[str, set[str]]:
    """Return the files that each file names, as ``room.file``, the package's own two left out."""
    paths = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
    return {
        name: {one for one in named(ast.parse(path.read_text(encoding="utf-8")), paths)} - {name}
        for name, path in paths.items()
        if name not in ("", "__main__")
    }


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def named(tree: ast.Module, known: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "balora":
            module = (node.module or "").partition(".")[2]
            inner = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {one if one in known else module for one in inner}
    return found - {""}


@cache
def room_imports() -> dict[str, set[str]]:
    """Return the rooms that each room imports: folders, and the files that are rooms themselves."""
    rooms: dict[str, set[str]] = {}
    for name, imported in file_imports().items():
        own, others = name.split(".")[0], {one.split(".")[0] for one in imported}
        if own not in DOOR | GROUND:
            rooms.setdefault(own, set()).update(others - DOOR - GROUND - {own})
    return rooms
