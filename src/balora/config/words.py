"""How a message spells values, choices, and what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def choice_words(names: tuple[str, ...]) -> str:
    """Say which texts are allowed; of a long list only its length and the first few."""
    shown = ", ".join(f"`{name}`" for name in names[:12])
    return f"one of {shown}" if len(names) <= 12 else f"one of {len(names)} names ({shown}, ...)"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean `x`?"`` for the closest of `known`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def spelled(value: Any) -> str:
    """Return a value as a recipe spells it; a text is called one, and cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"the text `{shortened(value)}`" if isinstance(value, str) else shortened(repr(value))


def spelled_default(value: Any) -> str:
    """Return a default as a recipe spells it; of a required field the word itself."""
    return value if isinstance(value, str) else spelled(value)


def shortened(text: str, most: int = 120) -> str:
    """Return a text on one line and cut where it is long; a short one as it is."""
    text = " ".join(text.split()) if len(text) > most else text
    return text if len(text) <= most else f"{text[:most]}..."
