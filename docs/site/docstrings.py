"""Docstrings as Markdown: their equations, names and literals are written as in Sphinx."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe

_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. (?P<kind>math|code-block)::(?P<first>[^\n]*)\n"
    r"(?P<body>(?:[ ]*\n|(?P=indent) +[^\n]*\n?)*)",
    re.MULTILINE,
)
_ROLE = re.compile(r":(?:class|data|func|meth|mod|attr|exc):`~?([^`]+)`")


class Markdown(griffe.Extension):
    """Rewrite every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring with Markdown's equations, code blocks and literals."""
    text = _BLOCK.sub(_block, text + "\n")
    text = re.sub(r":math:`([^`]+)`", lambda one: "$" + " ".join(one[1].split()) + "$", text)
    text = _ROLE.sub(lambda one: f"`{one[1].rpartition('.')[2]}`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _block(found: re.Match[str]) -> str:
    indent, first, body = found["indent"], found["first"].strip(), dedent(found["body"]).strip("\n")
    if found["kind"] == "math":
        lines = ["$$", *filter(None, [first]), *body.splitlines(), "$$"]
    else:
        lines = [f"```{first}", *body.splitlines(), "```"]
    return "\n" + "\n".join(indent + line if line else "" for line in lines) + "\n\n"
