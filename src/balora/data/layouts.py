"""What the columns of a data set mean: instruction and response, or the turns of a chat.

A layout knows its columns, says what is wrong with a row, and turns a row into what the trainer
reads: ``prompt`` and ``completion``, or ``messages``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from balora.data.templates import PLAIN, PromptTemplate

Row = Mapping[str, Any]

_ROLES = {  # ShareGPT's names for the speakers
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_KINDS = {
    str: "text",
    list: "a list",
    dict: "a mapping",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


class Layout(Protocol):
    """How the rows of one data set are read."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""

    def problem(self, row: Row) -> str | None:
        """Return why this row cannot be trained on, None when it can."""

    def drops(self, row: Row) -> bool:
        """Say whether something of a row that can be trained on does not reach the trainer."""

    def render(self, row: Row) -> dict[str, Any]:
        """Return the row as the trainer reads it."""


def text_problem(name: str, value: Any) -> str | None:
    """Return what is wrong with a value that must be text with something in it."""
    if value is None:
        return f"`{name}` is missing or null"
    if not isinstance(value, str):
        return f"`{name}` is {_KINDS.get(type(value), 'a ' + type(value).__name__)}, not text"
    return None if value.strip() else f"`{name}` is empty"


def texts_problem(texts: Row) -> str | None:
    """Return what is wrong with the first of several values that is no such text."""
    return next((p for name, value in texts.items() if (p := text_problem(name, value))), None)


@dataclass(frozen=True)
class InstructionLayout:
    """Columns of plain text: an instruction, its response, and perhaps an input."""

    prompt: str
    response: str
    input: str | None = None
    template: PromptTemplate = PLAIN

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.prompt, self.response) + ((self.input,) if self.input else ())

    def problem(self, row: Row) -> str | None:
        """Return why this row cannot be trained on, None when it can."""
        for name in (self.prompt, self.response):
            if problem := text_problem(name, row[name]):
                return problem
        given = row[self.input] if self.input else None
        if given is not None and not isinstance(given, str):
            return text_problem(str(self.input), given)
        if given and given.strip() and not self.template.takes_input:
            return (
                f"`{self.input}` is not empty, but `prompt_template` has no place for it; use "
                "alpaca or a text with {input} in it"
            )
        return None

    def drops(self, row: Row) -> bool:
        """Nothing of a row is dropped."""
        return False

    def render(self, row: Row) -> dict[str, Any]:
        """Return prompt and completion."""
        given = (row[self.input] if self.input else None) or ""
        return {
            "prompt": self.template.prompt(row[self.prompt], given),
            "completion": self.template.completion(row[self.response]),
        }


@dataclass(frozen=True)
class ChatLayout:
    """One column with the turns of a chat, as role/content or as ShareGPT's from/value."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The column that is read."""
        return (self.column,)

    def problem(self, row: Row) -> str | None:
        """Return why this row cannot be trained on, None when it can."""
        return turns_problem(self.column, row[self.column])

    def drops(self, row: Row) -> bool:
        """Nothing of a row is dropped."""
        return False

    def render(self, row: Row) -> dict[str, Any]:
        """Return the turns as ``messages``."""
        return {"messages": as_messages(row[self.column])}


@dataclass(frozen=True)
class FirstPairLayout:
    """The first question and its answer from a column of chat turns, as a plain instruction."""

    column: str
    template: PromptTemplate

    @property
    def columns(self) -> tuple[str, ...]:
        """The column that is read."""
        return (self.column,)

    def problem(self, row: Row) -> str | None:
        """Return why this row cannot be trained on, None when it can."""
        if problem := turns_problem(self.column, row[self.column]):
            return problem
        pair = _first_pair(row[self.column])
        if pair is None:
            return f"`{self.column}` has no user turn with an assistant turn after it"
        return text_problem(f"{self.column}, user turn", pair[0]) or text_problem(
            f"{self.column}, assistant turn", pair[1]
        )

    def drops(self, row: Row) -> bool:
        """Say whether the chat has more turns than the pair."""
        return len(row[self.column]) > 2

    def render(self, row: Row) -> dict[str, Any]:
        """Return prompt and completion of the first pair."""
        instruction, response = _first_pair(row[self.column]) or ("", "")
        return {
            "prompt": self.template.prompt(instruction),
            "completion": self.template.completion(response),
        }


@dataclass(frozen=True)
class ChatPairLayout:
    """``prompt`` and ``completion`` that are lists of turns, kept as they are."""

    prompt: str = "prompt"
    completion: str = "completion"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.prompt, self.completion)

    def problem(self, row: Row) -> str | None:
        """Return why this row cannot be trained on, None when it can."""
        return turns_problem(self.prompt, row[self.prompt], needs_assistant=False) or turns_problem(
            self.completion, row[self.completion]
        )

    def drops(self, row: Row) -> bool:
        """Nothing of a row is dropped."""
        return False

    def render(self, row: Row) -> dict[str, Any]:
        """Return both lists as messages."""
        return {
            "prompt": as_messages(row[self.prompt]),
            "completion": as_messages(row[self.completion]),
        }


def turns_problem(name: str, turns: Any, *, needs_assistant: bool = True) -> str | None:
    """Return what is wrong with a list of turns, None when it can be trained on."""
    if turns is None:
        return f"`{name}` is missing or null"
    if not isinstance(turns, list):
        return f"`{name}` is {_KINDS.get(type(turns), type(turns).__name__)}, not a list of turns"
    if not turns:
        return f"`{name}` is an empty list"
    roles = []
    for number, turn in enumerate(turns, start=1):
        if problem := _turn_problem(turn):
            return f"`{name}`, turn {number}: {problem}"
        roles.append(_role(turn))
    if needs_assistant and "assistant" not in roles:
        return f"`{name}` has no assistant turn, only {', '.join(dict.fromkeys(map(str, roles)))}"
    return None


def _turn_problem(turn: Any) -> str | None:
    if not isinstance(turn, dict):
        return f"it is {_KINDS.get(type(turn), 'no mapping')}, not a mapping with role and content"
    if turn.get("role") is None and turn.get("from") is None:
        return "it has no role"
    if turn.get("role") is None and _role(turn) is None:
        return f"`from` is `{turn['from']}`, which is none of {', '.join(_ROLES)}"
    if not isinstance(_role(turn), str):
        return "its role is not text"
    may_be_empty = _role(turn) not in ("user", "assistant") or bool(turn.get("tool_calls"))
    if may_be_empty and _content(turn) in (None, ""):
        return None
    return text_problem("value" if "value" in turn else "content", _content(turn))


def _role(turn: Mapping[str, Any]) -> Any:
    role = turn.get("role")
    return role if role is not None else _ROLES.get(str(turn.get("from")).lower())


def _content(turn: Mapping[str, Any]) -> Any:
    content = turn.get("content")
    return content if content is not None else turn.get("value")


def as_messages(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return ShareGPT's turns under the names role and content."""
    return [{"role": _role(turn), "content": _content(turn)} for turn in turns]


def _first_pair(turns: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    for asked, answered in pairwise(turns):
        if _role(asked) == "user" and _role(answered) == "assistant":
            return _content(asked), _content(answered)
    return None
