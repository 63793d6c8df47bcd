"""The code blocks of README.md and docs/: where they stand, what they are, how commands are tried.

A block is run by its language, unless the line above it says ``<!-- not run: the reason -->``; then
it is still parsed as far as it can be. Blocks of one section (a heading of level 2) share their
names. A title in the info string (``title="recipe.yaml"``) makes a file of the block, which later
commands of the page read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)(?P=fence) *$",
    re.M | re.S,
)
_REASON = re.compile(r"<!-- not run: (\S[^\n]*?) -->\s*\Z")
_LAUNCHERS = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:(?:accelerate launch|torchrun)\b.*? -m |python -m )?(?=balora )"
)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    code: str
    section: str
    reason: str
    """Why it is not run; empty if it is."""

    @property
    def name(self) -> str:
        """Return what a test calls it."""
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a page, in its order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            page=path.relative_to(ROOT).as_posix(),
            line=text.count("\n", 0, found.start()) + 1,
            language=found["info"].split(" ")[0],
            title="".join(re.findall(r'title="([^"]+)"', found["info"])),
            code=dedent(found["code"]),
            section=_section(text[: found.start()]),
            reason="".join(_REASON.findall(text[: found.start()])),
        )
        for found in _FENCE.finditer(text)
    ]


def _section(above: str) -> str:
    """Return the last heading of level 2."""
    return (re.findall(r"^## (.*)$", above, re.M) or [""])[-1]


def commands_of(code: str) -> Iterator[list[str]]:
    """Return the commands of a shell's block as words; a line that ends in a backslash goes on."""
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        words = shlex.split(_LAUNCHERS.sub("", line.strip()), comments=True)
        if words:
            yield words
