r"""Numbers as answers are written: "$1,200.50", "1200 dollars", ``\frac{2400}{2}``, "1.2e3".

An answer is compared with the gold one as an exact fraction, so that 1200.4 is not 1200. An answer
that holds two different numbers is none, because a reader could not say which is meant.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_SUPERSCRIPT = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u00b7": "*", "\u22c5": "*", "\u2019": "'"}
)
"""Signs of minus, of a fraction and of a product, and what is typed for an apostrophe."""
_THOUSANDS = re.compile(r"(?<=\d)['_](?=\d{3}(?!\d))")
_MILLIONS = re.compile(r"([$\u20ac\u00a3\u00a5\u20b9]\s?\d[\d.,]*)\s?(?:(M|mn|mln)|B|bn)\b")
_NAME = re.compile(r"(?<=[A-Za-z])_(?:\{[^{}]*\}|\w)|(?<=\b[A-Za-z])\(\d+\)(?=\s*=)")
"""What a name has beside its letters: an index, an argument."""
_PART_IN_WORDS = re.compile(
    r"(?<=\d)\s+and\s+(a|one|two|three)\s+(half|third|quarter)s?\b", re.IGNORECASE
)
_WORDS = {"a": 1, "one": 1, "two": 2, "three": 3, "half": 2, "third": 3, "quarter": 4}
_CURRENCY = re.compile(
    r"(?i:\b(?:US|A|C|NZ|HK)?\$)|[$\u20ac\u00a3\u00a5\u20b9\u20a9\u00a2]|\\(?:pounds|euro)\b"
    r"|(?i:\b(?:USD|EUR|GBP|JPY|CNY|INR|CAD|AUD|Rs)\b\.?|\b(?:USD|EUR|GBP|INR|Rs\.?)(?=\s?-?\d))"
)
_SPACES = re.compile(r"\\[,;:! ]|\\quad\b|~")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*([-+]?\s*[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([-+]?\s*[\d.,]+)\s*\}|(\d))"
)
_UNIT_POWER = re.compile(r"(?<=[^\W\d_])\s?\^\s?\{?\s?[-+]?\d\s?\}?")
_PLAIN = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SIGNED = rf"(?:{_PLAIN})"
_NUMBER = re.compile(
    rf"(?P<sign>(?:(?<![\d)\]}}]\s)(?<![\d.)\]}}])-|(?:\b(?:minus|negative)\b))\s*)?"
    rf"(?P<whole>(?P<first>{_SIGNED})\s+(?:and\s+)?(?=\d+\s*/\s*\d))?"
    rf"(?P<value>{_SIGNED})"
    rf"(?:\s*/\s*(?P<below>{_SIGNED}))?"
    rf"(?:[eE](?P<exponent>[-+]?\d+)(?![\w.])"
    rf"|\s*(?:x|\*|\u00d7|\\times|\\cdot)\s*10\s*\^\s*\{{?\s*(?P<power>[-+]?\d+)\s*\}}?"
    rf"|\s*\^\s*\{{?\s*(?P<raised>\d+)\s*\}}?)?"
    rf"(?P<scale>k\b|\s*(?:hundred|thousand|million|billion|trillion)\b)?",
    re.IGNORECASE,
)
_SCALES = {
    "k": 10**3,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NOT_THE_NUMBER = re.compile(
    r"\bnot\b|n't\b|\b(?:more|less|fewer|greater|larger|smaller)\s+than\s+-?\d|[<>]\s*-?\d"
    r"|\\(?:sqrt|pi|infty|log|ln|sin|cos|tan)\b|[\u221a\u221e\u03c0]"
    r"|\bsqrt\b|(?:\b|(?<=\d))pi\b|\d\s+(?:squared|cubed|factorial)\b",
    re.IGNORECASE,
)
_OPERATION = re.compile(
    r"[\d)\]}]\s*(?:[-+*/\u00d7\u00f7^]|\\times|\\cdot|\\div|\bx\b)\s*[\d(\[{\\-]"
)
_REASON = re.compile(r",?\s*\b(?:because|since)\b.*", re.IGNORECASE | re.DOTALL)
_MOST_DIGITS = 400


def the_number(text: str) -> Fraction | None:
    """Return the one number that a short answer says, None where it says none or several.

    Currency, units in words, Markdown, LaTeX and a name before "=" are passed over; a sum that is
    worked out ("3 * 400 = 1200") counts by its result. The same number twice is one.
    """
    text = _plain(text)
    if _NOT_THE_NUMBER.search(text):
        return None
    *before, last = re.split(r"=|\u2248|\\approx", text)
    if _OPERATION.search(_NUMBER.sub("0", last)):  # a fraction and a power are numbers
        return None
    found = [number for part in (*filter(_is_no_sum, before), last) for number in _numbers(part)]
    return found[0] if found and None not in found and len(set(found)) == 1 else None


def last_number(text: str) -> Fraction | None:
    """Return the last number of a whole text, None where there is none."""
    found = [number for number in _numbers(_plain(text)) if number is not None]
    return found[-1] if found else None


def _plain(text: str) -> str:
    """Return a text with one way to write a number: ASCII, fractions with a slash, no markup."""
    text = _SUPERSCRIPT.sub(lambda m: f"^{_compatible(m[0])}", text)
    is_fraction = {c for c in text if "<fraction>" in unicodedata.decomposition(c)}
    text = "".join(f" {_compatible(c)}" if c in is_fraction else c for c in text)
    text = _THOUSANDS.sub("", _compatible(text).translate(_SIGNS))
    text = _MILLIONS.sub(lambda m: f"{m[1]} {'million' if m[2] else 'billion'}", text)
    text = _PART_IN_WORDS.sub(
        lambda m: f" {_WORDS[m[1].lower()]}/{_WORDS[m[2].lower()]}", _NAME.sub("", text)
    )
    text = text.replace("{,}", ",").replace("\\!", "")
    text = _TEXT_COMMAND.sub(r" \1 ", text)
    text = re.sub(r"\\(?:left|right|displaystyle|bf|rm)\b|\\[()\[\]]", " ", text)
    text = _CURRENCY.sub(" ", text.replace("\\$", "$").replace("\\%", "%"))
    text = re.sub(r"\^\s*\{?\s*\\circ\b\s*\}?", " degrees ", text)
    text = _SPACES.sub(" ", text).replace("**", " ").replace("__", " ").replace("`", " ")
    text = re.sub(r"(?<!\d)(?<!\d\s)\*|\*(?!\s*[\d(\\])", " ", text)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    text = re.sub(r"(-)\s+(?=[\d.])", r"\1", text)
    return _UNIT_POWER.sub("", _REASON.sub("", text))


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _is_no_sum(part: str) -> bool:
    return _OPERATION.search(part) is None


def _numbers(text: str) -> list[Fraction | None]:
    """Return every number of a text in its order; None for one that cannot be worked out."""
    return [_value(match) for match in _NUMBER.finditer(text)]


def _value(match: re.Match[str]) -> Fraction | None:
    digits = match[0]
    if len(digits) > _MOST_DIGITS:
        return None
    value = _decimal(match["value"])
    if match["below"] is not None:
        below = _decimal(match["below"])
        if not below:
            return None
        value /= below
    if match["first"] is not None:
        value += _decimal(match["first"])
    power = int(match["exponent"] or match["power"] or 0)
    raised = int(match["raised"] or 1)
    if abs(power) > _MOST_DIGITS or raised > _MOST_DIGITS:
        return None
    value = value**raised * Fraction(10) ** power
    value *= _SCALES[match["scale"].strip().lower()] if match["scale"] else 1
    return -value if match["sign"] else value


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", text))
