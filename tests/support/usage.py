"""The lines that a command prints last, which use what it has left."""

from __future__ import annotations

from typing import Any


def lines_of_use(printed: str) -> str:
    """Return the Python that a command prints last."""
    return printed[printed.rindex(":\n\n") + 3 :]


def rows_read_by(printed: str) -> list[dict[str, Any]]:
    """Run the lines that a command prints last, and return the rows that they read."""
    found: dict[str, Any] = {}
    exec(lines_of_use(printed), found)
    return found["rows"]
