"""The program's own process: it loads the program, then does what the tests ask for, one by one.

It has neither the tests nor what they expect. The program may do with this process what it wants:
all that comes of it are values, and the tests compare them elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any, TextIO

from balora.sandbox.programs import plain, start


class _Program:
    """The program and the objects of it that the tests hold handles to."""

    def __init__(self) -> None:
        self.module = types.ModuleType("program")
        self.kept: list[Any] = []
        sys.modules["program"] = self.module

    def load(self, source: str) -> None:
        exec(compile(source, "<program>", "exec"), self.module.__dict__)

    def encode(self, value: Any) -> Any:
        return plain.encode(value, self._keep)

    def _keep(self, value: Any) -> Any:
        self.kept.append(value)
        try:
            is_true = bool(value)
        except Exception:  # noqa: BLE001
            is_true = True
        return [len(self.kept) - 1, is_true]

    def _object(self, of: Any) -> Any:
        """Return the object of a handle: a number, or the name of one of the program's own."""
        if isinstance(of, str):
            try:
                return self.module.__dict__[of]
            except KeyError:
                raise NameError(f"name {of!r} is not defined") from None
        return self.kept[of]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to one request, with the arguments that the call has changed."""
        target, values = self._object(request["of"]), request["values"]
        arguments, keywords = plain.decode(values, self._object)
        does: dict[str, Callable[[], Any]] = {
            "call": lambda: target(*arguments, **keywords),
            "get": lambda: getattr(target, arguments[0]),
            "set": lambda: setattr(target, arguments[0], arguments[1]),
            "item": lambda: target[arguments[0]],
            "iterate": lambda: iter(target),
            "next": lambda: next(target),
        }
        result = self.encode(does[request["do"]]())
        if request["do"] != "call" or not _may_change(arguments):
            return {"result": result}
        after = self.encode(arguments)
        return {"result": result, "changed": after if after != values["tuple"][0] else None}


def _may_change(arguments: list[Any]) -> bool:
    return any(
        isinstance(item, (list, dict, set, bytearray))
        or (isinstance(item, tuple) and _may_change(list(item)))
        for item in arguments
    )


def _raised(error: BaseException) -> dict[str, Any]:
    names = [kind.__name__ for kind in type(error).__mro__]
    try:
        text = str(error)[:1000]
    except Exception:  # noqa: BLE001
        text = ""
    return {"raised": names[:20], "text": text}


def _flush(printed: TextIO) -> None:
    """Let what was printed be read before what was replied."""
    with contextlib.suppress(Exception):
        printed.flush()


def main(requests: int, replies: int) -> None:
    """Load the program that is handed in and answer requests until none comes.

    Args:
        requests: Descriptor to read from.
        replies: Descriptor to write to.
    """
    source = start.read_all(0).decode("utf-8")
    reader, writer = os.fdopen(requests, "rb"), os.fdopen(replies, "wb")
    # kept by their own names: what the program does to modules is its own affair
    send, receive, leave, stop = plain.send, plain.receive, os._exit, plain.Unreadable
    printed = sys.stdout
    program = _Program()
    try:
        program.load(source)
    except BaseException as error:  # noqa: BLE001
        _flush(printed)
        send(writer, _raised(error))
        leave(1)
    _flush(printed)
    send(writer, {"result": None})
    while True:
        try:
            request = receive(reader)
        except EOFError:
            leave(0)
        try:
            reply = program.answer(request)
        except BaseException as error:  # noqa: BLE001
            reply = _raised(error)
        _flush(printed)
        try:
            send(writer, reply)
        except stop as error:
            send(writer, _raised(error))
