"""The program in an answer, and pass@k."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator

_LONGEST = 100_000
"""Characters of an answer that are looked at."""
_MOST_DROPPED = 50
"""Lines that are dropped from the end, at most, until the rest compiles."""

_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_FIRST_LINE = re.compile(r"^(?:async def |def |class |import |from |@)", re.MULTILINE)
_AFTER = re.compile(
    r"^(?:if __name__\b|assert\b|# ?(?:Example usage|Test cases?)\b|```)",
    re.MULTILINE | re.IGNORECASE,
)
"""Where a program ends and the trying of it begins, at the left margin."""


def program_of(answer: str, entry_point: str, prompt: str = "") -> str:
    """Return the program that an answer holds.

    Of several fenced blocks it is the first that defines the entry point. Without a fence it is the
    whole answer if that is a program, else it begins at the first definition or import. It ends
    where the program is tried (``if __name__``, a bare ``assert``, "# Example usage"), and a rest
    at the end that is cut off is dropped.

    Args:
        answer: What the model wrote.
        entry_point: The function or class that is asked for.
        prompt: The beginning of the program, if the model was given one; it is put before an answer
            that does not define the entry point itself.
    """
    text = answer[:_LONGEST].replace("\r\n", "\n").replace("\r", "\n")
    blocks = [_ended(match[1]) for match in _FENCED.finditer(text)]
    for block in blocks:
        if defines(block, entry_point):
            return _whole(block)
    plain = blocks[0] if blocks else text
    if defines(_ended(plain), entry_point) and compiles(_ended(plain)):
        return _whole(_ended(plain))  # also what stands before the first definition
    starts = [_FIRST_LINE.search(plain), _definition(entry_point).search(plain)]
    start = min((found.start() for found in starts if found is not None), default=0)
    rest = _ended(plain[start:])
    if prompt and not defines(rest, entry_point):
        return _completed(prompt, _ended(plain))
    return _whole(rest)


def defines(text: str, name: str) -> bool:
    """Return whether a line at the left margin defines a name."""
    return _definition(name).search(text) is not None


def _definition(name: str) -> re.Pattern[str]:
    word = re.escape(name)
    return re.compile(rf"^(?:(?:async )?def {word}\b|class {word}\b|{word} ?=)", re.MULTILINE)


def _ended(text: str) -> str:
    found = _AFTER.search(text)
    return text if found is None else text[: found.start()]


def _completed(prompt: str, body: str) -> str:
    """Return the prompt with the body of its function, which may have lost its indentation."""
    body = body.strip("\n")
    head = prompt.rstrip("\n") + "\n"
    indented = "\n".join(f"    {line}" if line.strip() else "" for line in body.split("\n"))
    candidates = [head + body, head + indented, head + "    " + body]
    if body[:1] not in (" ", "\t"):  # left of the function: so the prompt alone would compile
        candidates = candidates[1:]
    for candidate in candidates:
        if compiles(candidate):
            return candidate + "\n"
    return _whole(candidates[0])


def _whole(program: str) -> str:
    """Return a program without the rest at its end that does not compile, if that helps."""
    for shorter in _shorter(program):
        if compiles(shorter):
            return shorter.rstrip() + "\n"
    return program


def _shorter(program: str) -> Iterator[str]:
    lines = program.rstrip().split("\n")
    for dropped in range(min(_MOST_DROPPED, len(lines) - 1) + 1):
        yield "\n".join(lines[: len(lines) - dropped])


def compiles(program: str) -> bool:
    """Return whether a text is a program; it is not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(program, "<answer>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    r"""Return the unbiased estimate of pass@k: :math:`1 - \binom{n-c}{k} / \binom{n}{k}` [1]_.

    It is the chance that of k samples, drawn without return from the n, one is right; with k = 1
    the share that is right.

    Args:
        num_samples: n, at least k.
        num_right: c, from 0 to n.
        k: At least 1.

    Raises:
        ValueError: If k is not from 1 to n, or c not from 0 to n.

    References:
        .. [1] Chen et al. Evaluating Large Language Models Trained on Code. arXiv:2107.03374.
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"pass@{k} of {num_right} right among {num_samples} does not exist.")
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
