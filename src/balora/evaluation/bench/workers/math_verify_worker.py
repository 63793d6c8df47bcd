"""Compares answers with math-verify.

One JSON object a line comes in (``gold``, ``answer``), one goes out (``equal``). Of its own because
a comparison may take for ever, and only a process can be stopped.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

_WORDS_AFTER = re.compile(r"(?<=[\d})])\s+(?:[A-Za-z]{2,}(?:\^\{?\d\}?)?[\s.]*)+$")
_ABOUT = re.compile(r"^(?:about|approximately|exactly|roughly)\s+", re.IGNORECASE)
_IN_WORDS = [
    (re.compile(pattern), into)
    for pattern, into in (
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])pi\b", r"\\pi"),
        (r"(?<=\d)\s+squared\b", "^2"),
        (r"(?<=\d)\s+cubed\b", "^3"),
        (r"(?<=\d)\s+factorial\b", "!"),
        (r"(?<=\d)\s+hundred\b", r" \\cdot 10^{2}"),
        (r"(?<=\d)\s+thousand\b", r" \\cdot 10^{3}"),
        (r"(?<=\d)\s+million\b", r" \\cdot 10^{6}"),
        (r"(?<=\d)\s+billion\b", r" \\cdot 10^{9}"),
        (r"^(-?)(\d+) (\d+)/(\d+)$", r"\1\2\\frac{\3}{\4}"),
        (r"(?<=\d) (?=\d{3}(?:\D|$))", ""),
    )
]
"""What plain text has in place of a formula."""
_UNFINISHED = re.compile(r"(?<=\d)\s+(?:or|plus|minus|not)\b[^\d\\]*$", re.IGNORECASE)
_OF_A_BASE = re.compile(r"(\d+)_\{?(\d+)\}?")
_DIGITS = re.compile(r"\d")
_MOST_BYTES = 4 << 30


def equal(gold: str, answer: str) -> bool:
    """Say whether two answers in LaTeX, or plain text, are the same."""
    from math_verify import verify

    if gold.strip() == answer.strip():
        return True
    read_gold, read_answer = _read(gold), _read(answer)
    if not read_gold or not read_answer or not _of_one_base(_bare(gold), _bare(answer)):
        return False
    return bool(verify(read_gold, read_answer, timeout_seconds=None))


def _of_one_base(gold: str, answer: str) -> bool:
    """Say whether two numbers can be of one base, which math-verify passes over.

    Of a gold answer in base 5 the base may be left out; to one without a base none may be added.
    """
    of_gold, of_answer = _OF_A_BASE.fullmatch(gold), _OF_A_BASE.fullmatch(answer)
    if of_answer is None:
        return True
    return of_gold is not None and of_gold.groups() == of_answer.groups()


def _read(text: str) -> list[Any]:
    from math_verify import parse
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    found: list[Any] = parse(
        f"${_bare(text)}$",
        extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()],
        parsing_timeout=None,
    )
    return found


def _bare(text: str) -> str:
    r"""Return a formula without what encloses it: ``$``, ``\(``, a unit in words after a number.

    Words that say a part of the formula ("2 pi", "5 hundred") are written as one. Of what goes on
    without saying how ("5 or more") nothing is left.

    Of a sentence around one formula the formula counts; of two formulas neither.
    """
    formulas = re.findall(r"\$([^$]+)\$", re.sub(r"\\\$", "", text))
    if len(set(formulas)) == 1 and not _DIGITS.search(re.sub(r"\$[^$]+\$", "", text)):
        text = formulas[0]
    text = re.sub(r"(?<!\\)\$|\\[()\[\]]|\*\*", "", text)
    text = _ABOUT.sub("", text.strip().rstrip("."))
    for pattern, into in _IN_WORDS:
        text = pattern.sub(into, text)
    return "" if _UNFINISHED.search(text) else _WORDS_AFTER.sub("", text)


def _limit_memory() -> None:
    """Let a number such as 9^9^9 end in an error of this process, and not of the machine."""
    try:
        import resource
    except ImportError:  # there is no such limit on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))


def main() -> None:
    """Answer each line until the input ends."""
    logging.disable(logging.CRITICAL)  # it warns that its own time limit is off
    _limit_memory()
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            is_equal = equal(pair["gold"], pair["answer"])
        except Exception:  # noqa: BLE001  sympy raises anything on what a model wrote
            is_equal = False
        print(json.dumps({"equal": is_equal}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
