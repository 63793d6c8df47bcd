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

_WORDS_AFTER = re.compile(r"(?<=[\d})])\s+(?:[A-Za-z]{2,}[\s.]*)+$")
_DIGITS = re.compile(r"\d")
_MOST_BYTES = 4 << 30


def equal(gold: str, answer: str) -> bool:
    """Say whether two answers in LaTeX, or plain text, are the same."""
    from math_verify import verify

    read_gold, read_answer = _read(gold), _read(answer)
    if not read_gold or not read_answer:
        return False
    return bool(verify(read_gold, read_answer, timeout_seconds=None))


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

    Of a sentence around one formula the formula counts; of two formulas neither.
    """
    formulas = re.findall(r"\$([^$]+)\$", re.sub(r"\\\$", "", text))
    if len(set(formulas)) == 1 and not _DIGITS.search(re.sub(r"\$[^$]+\$", "", text)):
        text = formulas[0]
    text = re.sub(r"(?<!\\)\$|\\[()\[\]]|\*\*", "", text)
    return _WORDS_AFTER.sub("", text.strip().rstrip("."))


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
