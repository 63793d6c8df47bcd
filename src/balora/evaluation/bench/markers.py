r"""Where an answer says what it comes to: "The answer is: ...", "#### ...", ``\boxed{...}``."""

from __future__ import annotations

import re

_MARKER = re.compile(
    r"####|\\boxed\s*(?=\{)|\\fbox\s*(?=\{)|\banswer\s*\**\s*(?:\s(?:is|would\s+be|=)|[:=])\s*[:=]?",
    re.IGNORECASE,
)
_BEFORE_MARKER = re.compile(r"(?:\b(?:so|thus|therefore|the|my|final)\b[\s,]*)+$", re.IGNORECASE)
"""The words that lead up to the next marker."""
_LEADING = re.compile(r"^(?:\s|[*:]|\\\[|\\\(|\$\$(?=\s*\n))+")
_CLOSING = re.compile(r"\s*\bI hope (?:it|this|that) is correct\b.*", re.IGNORECASE | re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[\w)}$%\]*])\.\**(?:\s|$)")


def final_answer(text: str) -> str | None:
    r"""Return what stands after the last marker, None where there is no marker or nothing after it.

    That is what ``\boxed`` encloses, or the first sentence on the line after the words; an
    environment of LaTeX (a matrix) is taken whole.
    """
    end = len(text)
    for match in reversed(list(_MARKER.finditer(text))):
        if match[0].startswith("\\"):
            found = braced(text[match.end() :])
        else:
            found = _first_sentence(_BEFORE_MARKER.sub("", text[match.end() : end]))
        if found and found.strip():
            return found.strip()
        end = match.start()
    return None


def last_boxed(text: str) -> str | None:
    r"""Return what the last ``\boxed`` of a solution encloses, None where there is none."""
    found = [braced(text[m.end() :]) for m in re.finditer(r"\\f?box(?:ed)?\s*(?=\{)", text)]
    bare = re.findall(r"\\boxed\s+([^\s{$.,]+)", text)
    return found[-1] if found else (bare[-1] if bare else None)


def braced(text: str) -> str | None:
    """Return what the pair of braces at the start of a text encloses, None where it never ends."""
    depth = 0
    for place, character in enumerate(text):
        if character in "{}" and (place == 0 or text[place - 1] != "\\"):
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[text.index("{") + 1 : place]
    return None


def _first_sentence(text: str) -> str:
    text = _CLOSING.sub("", _LEADING.sub("", text))
    line = text.split("\n", 1)[0]
    if line.count("\\begin{") > line.count("\\end{"):
        end = re.search(r"\\end\{[^}]*\}", text)
        return text[: end.end()] if end else line
    stops = [match.start() for match in _SENTENCE_END.finditer(line)]
    # a full stop before any digit ends an abbreviation: "Rs. 1200"
    ends = [stop for stop in stops if re.search(r"[\d}$)]", line[:stop])]
    return line[: ends[0]] if ends else line.rstrip(". ")
