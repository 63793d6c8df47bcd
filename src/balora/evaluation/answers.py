"""The answer in a generated text: what follows "The answer is:", or GSM8K's "####"."""

from __future__ import annotations

import re

_MARKERS = re.compile(r"(?:the answer is:?|####)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def extract_answer(text: str) -> str | None:
    """Return the normalised final answer of ``text``, None where no marker is followed by one.

    The last marker counts. The answer is the first line after it without a final full stop; a
    number loses thousands separators, a currency sign, and zeros that change nothing, so that
    "$1,200.50" and "1200.5" agree.
    """
    parts = _MARKERS.split(text)
    if len(parts) < 2:
        return None
    answer = parts[-1].strip().split("\n")[0].strip().rstrip(".").strip()
    return _normalised(answer) or None


def _normalised(answer: str) -> str:
    number = re.sub(r"[,$%\s]", "", answer)
    if not _NUMBER.fullmatch(number):
        return answer.lower()
    value = float(number)
    return str(int(value)) if value == int(value) else repr(value)
