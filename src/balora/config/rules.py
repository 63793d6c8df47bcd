"""What a field takes beyond its type, declared on the field itself.

.. code-block:: python

    lora_r: Annotated[int, Interval(ge=1)] = 128

Checks, help, JSON schema and tests read the rules from there and from nowhere else. Standard
library only.
"""

from __future__ import annotations

import os
import re
import shlex
import warnings
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from balora.config.words import choice_words, spelled_default, suggestion


class Rule:
    """What the values of a field have in common beside their type."""

    @property
    def words(self) -> str:
        """How the help says it; empty where it says nothing."""
        return ""

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with a value of the right type, to follow the field's name."""
        return None


@dataclass(frozen=True)
class Interval(Rule):
    """Numbers from `ge` or above `gt`, to `le` or below `lt`, and those of `also`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    also: tuple[float, ...] = ()
    hint: str = ""
    """What to write instead, at the end of the sentence."""

    @property
    def words(self) -> str:
        """Such as "1 or greater" or "greater than 0 and at most 1"."""
        if self.ge is not None and self.le is not None:
            words = f"from {self.ge} to {self.le}"
        else:
            bounds = [
                words
                for words, bound in (
                    (f"{self.ge} or greater", self.ge),
                    (f"greater than {self.gt}", self.gt),
                    (f"at most {self.le}", self.le),
                    (f"less than {self.lt}", self.lt),
                )
                if bound is not None
            ]
            words = " and ".join(bounds)
        return " or ".join([words, *map(str, self.also)])

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with a number; anything else passes."""
        if isinstance(value, bool) or not isinstance(value, int | float) or self._holds(value):
            return None
        return f"must be {self.words}, got {value}" + (f"; {self.hint}" if self.hint else "")

    def _holds(self, value: float) -> bool:
        if value in self.also:
            return True
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


@dataclass(frozen=True)
class OneOf(Rule):
    """Texts that are allowed where the type says only text; each entry of a list must be one."""

    names: tuple[str, ...]

    @property
    def words(self) -> str:
        """The names."""
        return choice_words(self.names)

    def problem(self, value: Any) -> str | None:
        """Return the first text that is none of the names."""
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and one not in self.names:
                hint = suggestion(one, self.names)
                return f"must be {choice_words(self.names)}, got the text `{one}`{hint}"
        return None


@dataclass(frozen=True)
class Named(Rule):
    """Texts with a meaning of their own, among others."""

    names: tuple[str, ...]

    @property
    def words(self) -> str:
        """Such as "also `alpaca`, `none`"."""
        return "also " + ", ".join(f"`{name}`" for name in self.names)


@dataclass(frozen=True)
class Allowed(Rule):
    """The only values that leave a run what it is; the first is the one to set."""

    values: tuple[Any, ...]
    why: str
    """What any other value does."""

    @property
    def words(self) -> str:
        """Such as "only `nll` or `chunked_nll`"."""
        return "only " + " or ".join(f"`{spelled_default(value)}`" for value in self.values)

    def problem(self, value: Any) -> str | None:
        """Return what another value does, and what to set."""
        if value in self.values:
            return None
        instead = spelled_default(self.values[0])
        return f"is {spelled_default(value)}, which {self.why}; set it to {instead}"


@dataclass(frozen=True)
class NotEmpty(Rule):
    """A list or mapping with an entry."""

    fix: str = "fill it or leave it out"

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with an empty list or mapping, or a list with an empty text."""
        has_blank = isinstance(value, list) and any(
            isinstance(one, str) and not one.strip() for one in value
        )
        if has_blank or (isinstance(value, Sized) and not len(value)):
            return f"is empty; {self.fix}"
        return None


@dataclass(frozen=True)
class Command(Rule):
    """A program with its arguments, as a shell reads them."""

    def problem(self, value: Any) -> str | None:
        """Return why there is no program, or where the quotes go wrong."""
        if value is None:
            return None
        try:
            return None if "".join(shlex.split(value)[:1]) else f"is {value}; name a program"
        except ValueError as error:
            return f"is {value!r}, which no shell reads ({str(error).lower()}); mend the quotes"


@dataclass(frozen=True)
class Distinct(Rule):
    """A list without an entry twice."""

    def problem(self, value: Any) -> str | None:
        """Return the first entry that is there twice."""
        twice = [entry for entry in value or () if value.count(entry) > 1]
        return f"has {twice[0]} twice; keep one" if twice else None


@dataclass(frozen=True)
class Name(Rule):
    """Text that names something in a table and a folder."""

    def problem(self, value: Any) -> str | None:
        """Return what a name that is none should be."""
        is_name = value.strip() and value.isprintable() and "/" not in value
        return None if is_name else "must be a line of text without / in it"


@dataclass(frozen=True)
class Pattern(Rule):
    """Text that is a regular expression."""

    def problem(self, value: Any) -> str | None:
        """Return what keeps a text from being one."""
        if not isinstance(value, str):
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what may mean something else one day
                re.compile(value)
        except re.error as error:
            return (
                f"is the text `{value}`, which is no regular expression: {error}; write a list of "
                "names or correct it"
            )
        return None


@dataclass(frozen=True)
class Form(Rule):
    """How a list or mapping is written, shown where one is not."""

    example: str

    @property
    def words(self) -> str:
        """The example."""
        return f"such as {self.example}"


@dataclass(frozen=True)
class Checked(Rule):
    """Values that a function of their own looks at: a structure, entry by entry."""

    check: Callable[[Any], str | None]

    def problem(self, value: Any) -> str | None:
        """Return what the function finds."""
        return self.check(value)


@dataclass(frozen=True)
class PathTo(Rule):
    """A path; what it leads to is looked at when a command runs, not when a recipe is read.

    A data set or a model may be named on the hub instead, an output folder may be missing.
    """

    what: Literal["file", "new file", "folder", "data", "model"]

    def missing(self, value: str | Path) -> str | None:
        """Return what is wrong with the path of a file that is to be read or written."""
        if self.what not in ("file", "new file"):
            return None
        try:
            return self._missing(Path(value))
        except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL byte
            reason = getattr(error, "strerror", None) or error
            return f"is {str(value)!r}, which is no path: {reason}"

    def _missing(self, path: Path) -> str | None:
        if path.is_dir():
            return f"is {str(path)!r}, which is a folder; name a file"
        if self.what == "new file":
            if path.parent.is_dir():
                return None
            return f"is {str(path)!r}, but there is no folder {str(path.parent)!r}; name another"
        if not path.is_file():
            return f"is {str(path)!r}, which does not exist; name a file that is there"
        return None if os.access(path, os.R_OK) else f"is {str(path)!r}, which cannot be read"
