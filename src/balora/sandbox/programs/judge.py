"""The tests' own process: it runs them, and asks the program in its process for values.

What comes back is data; no code of the program is ever run here. The verdict leaves on a
descriptor that only this process has.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from balora.sandbox.programs import plain, start


class _Broken(BaseException):
    """The program's process is gone or sent what is no answer; no test may catch this."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class _Remote(Exception):
    """An exception of the program that is none of the built-in ones."""


class _Asked:
    """The program, asked over the two pipes."""

    def __init__(self, requests: int, replies: int) -> None:
        self._writer, self._reader = os.fdopen(requests, "wb"), os.fdopen(replies, "rb")
        self.broken: _Broken | None = None
        self.raised: list[BaseException] = []

    def loaded(self) -> None:
        """Wait until the program has been loaded.

        Raises:
            Exception: What it raised.
        """
        self._reply()

    def ask(self, do: str, of: Any, *arguments: Any, **keywords: Any) -> Any:
        """Have something done to one of the program's objects and return the value.

        Raises:
            Exception: What the program raised, of the same built-in class.
        """
        given = list(arguments)
        values = {"tuple": [self._encode(given), self._encode(keywords)]}
        try:
            plain.send(self._writer, {"do": do, "of": of, "values": values})
        except OSError:
            self._break("died", "the program ended its process")
        except plain.Unreadable as error:
            self._break("error", f"a test hands over {error}")
        reply = self._reply(may_end=do == "next")
        try:
            result = plain.decode(reply.get("result"), self._handle)
            if (changed := reply.get("changed")) is not None:
                for old, new in zip(given, plain.decode(changed, self._handle), strict=True):
                    _take_over(old, new)
        except (plain.Unreadable, RecursionError, MemoryError, ValueError, TypeError):
            self._break("unreadable", "the program sent what is no answer")
        return result

    def _reply(self, *, may_end: bool = False) -> dict[str, Any]:
        """Return what the program says next; `may_end` where an iteration may come to its end."""
        try:
            reply = plain.receive(self._reader)
        except (EOFError, OSError):
            self._break("died", "the program ended its process")
        except (plain.Unreadable, MemoryError) as error:
            self._break("unreadable", f"the program sent {error}")
        if not isinstance(reply, dict):
            self._break("unreadable", "the program sent what is no answer")
        answer: dict[str, Any] = reply
        if "raised" in answer:
            self._raise(answer["raised"], answer.get("text"), may_end=may_end)
        return answer

    def _raise(self, names: Any, text: Any, *, may_end: bool) -> NoReturn:
        # elsewhere `map` and `filter` of a test would take it for their own end, and stop testing
        ends = () if may_end else (StopIteration, StopAsyncIteration)
        known = [
            kind
            for name in (names if isinstance(names, list) else [])
            if isinstance(name, str)
            and isinstance(kind := getattr(builtins, name, None), type)
            and issubclass(kind, Exception)
            and kind not in (Exception, UnicodeDecodeError, UnicodeEncodeError, *ends)
        ]
        error: Exception
        try:
            error = known[0](str(text))
        except (IndexError, TypeError):
            error = _Remote(f"{names[0] if isinstance(names, list) and names else ''}: {text}")
        self.raised.append(error)
        raise error

    def _break(self, outcome: str, detail: str) -> NoReturn:
        self.broken = _Broken(outcome, detail)
        raise self.broken

    def _encode(self, value: Any) -> Any:
        return plain.encode(value, _handle_of)

    def _handle(self, content: Any) -> Any:
        number, is_true = content
        if type(number) is not int or type(is_true) is not bool:
            raise TypeError
        return Handle(self, number, is_true)


def _handle_of(value: Any) -> Any:
    if isinstance(value, Handle):
        return object.__getattribute__(value, "_of")
    raise TypeError(f"a test hands over a {type(value).__name__}, which does not cross")


class Handle:
    """Stands for an object of the program; equal to itself alone."""

    __slots__ = ("_asked", "_is_true", "_of")

    def __init__(self, asked: _Asked, of: int | str, is_true: bool = True) -> None:
        object.__setattr__(self, "_asked", asked)
        object.__setattr__(self, "_of", of)
        object.__setattr__(self, "_is_true", is_true)

    def _ask(self, do: str, *arguments: Any, **keywords: Any) -> Any:
        return self._asked.ask(do, self._of, *arguments, **keywords)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the object, and let what the call changes among the arguments change here."""
        return self._ask("call", *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._ask("iterate")
        while True:
            try:
                yield iterator._ask("next")
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._ask("next")

    def __bool__(self) -> bool:
        return bool(self._is_true)

    def __repr__(self) -> str:
        return "<an object of the program>"


def _take_over(old: Any, new: Any) -> None:
    """Give a list, dictionary or set that was handed over the content that it has now.

    Raises:
        TypeError: If the program sent another kind.
    """
    for kind in (list, bytearray, dict, set):
        if isinstance(old, kind) and not isinstance(new, kind):
            raise TypeError
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)
    elif isinstance(old, tuple):
        for one, other in zip(old, new, strict=True):
            _take_over(one, other)


def run_tests(task: Mapping[str, Any], asked: _Asked) -> tuple[str, str]:
    """Return the outcome and half a sentence on it.

    Args:
        task: ``names`` of the program that the tests use, ``setup`` that runs before them, and
            ``tests``, each of which has to run through.
        asked: The program.
    """
    doing = "loading the program"
    try:
        asked.loaded()
        scope: dict[str, Any] = {"__name__": "tests"}
        scope |= {name: Handle(asked, name) for name in task["names"]}
        doing = "what the tests need"
        exec(compile(task["setup"], "<setup>", "exec"), scope)
        for number, test in enumerate(task["tests"], start=1):
            doing = f"test {number}"
            exec(compile(test, "<test>", "exec"), scope)
    except BaseException as error:  # noqa: BLE001
        if asked.broken is None:
            return _explained(error, asked, doing)
    if asked.broken is not None:  # also where a test has caught it
        return asked.broken.outcome, f"{doing}: {asked.broken}"
    return "passed", ""


def _explained(error: BaseException, asked: _Asked, doing: str) -> tuple[str, str]:
    """Return the outcome of an exception: of the program, of a comparison, or of the tests."""
    said = f"{type(error).__name__}: {str(error)[:300]}".rstrip(": ")
    if any(error is one for one in asked.raised):
        return "raised", f"{doing}: {said}"
    outcome = "failed" if doing.startswith("test") else "error"
    return outcome, f"{doing}: {said}"


def main(requests: int, replies: int) -> None:
    """Run the tests that are handed in and write the verdict.

    Args:
        requests: Descriptor to write to.
        replies: Descriptor to read from.
    """
    task = json.loads(start.read_all(0))
    verdict = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    outcome, detail = run_tests(task, _Asked(requests, replies))
    os.write(verdict, json.dumps({"outcome": outcome, "detail": detail}).encode() + b"\n")
    os._exit(0)
