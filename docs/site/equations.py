"""Equations as MathML, which browsers draw themselves: no script, no font, no network."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

_MARKED = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)


def with_mathml(page: str) -> str:
    """Return a page in which every equation that arithmatex marked is MathML."""
    return _MARKED.sub(_rendered, page)


def _rendered(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    latex = " ".join(html.unescape(found[3]).split())
    made = convert(latex, display=display)
    return f'<div class="equation">{made}</div>' if display == "block" else made
