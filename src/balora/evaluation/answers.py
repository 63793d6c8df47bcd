"""The answer in a generated text: what follows "The answer is:", or GSM8K's "####"."""

from __future__ import annotations

import re
from decimal import Decimal

_MARKERS = re.compile(r"(?:the answer is:?|####)\s*", re.IGNORECASE)
# a number, and after it at most a unit in words: "18 dollars", never "3 1/2"
_NUMBER = re.compile(r"([-+]?\$?(?:\d[\d,]*(?:\.\d*)?|\.\d+))\s*(?:%|[^\W\d]+[^\d=+*/^\\]*)?")


def extract_answer(text: str) -> str | None:
    """Return the normalised final answer of ``text``, None where no marker is followed by one.

    The last marker counts. The answer is the first line after it without a final full stop; a
    number loses thousands separators, a currency sign, a unit in words after it, and zeros that
    change nothing, so that "$1,200.50", "1200.5 dollars" and "1200.5" agree. Digits are compared
    as they are written, not as floats.
    """
    parts = _MARKERS.split(text)
    if len(parts) < 2:
        return None
    answer = parts[-1].strip().split("\n")[0].strip().rstrip(".").strip()
    return _normalised(answer) or None


def _normalised(answer: str) -> str:
    number = _NUMBER.fullmatch(answer.replace("$ ", "$"))
    if number is None:
        return answer.lower()
    value = Decimal(re.sub(r"[,$]", "", number[1]))
    digits = f"{value:f}"
    plain = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if value == 0 else plain
