"""Plain data as lines of JSON: all that crosses between the tests and the program.

A value of a built-in type crosses as a copy, and one of a class derived from it as the built-in
value that it holds. Anything else stays where it is; a handle to it crosses, which has a truth
value and equals nothing but itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, BinaryIO

LONGEST_LINE = 4 * 1024 * 1024
"""Bytes of a message."""

_SMALL = 1 << 63
_HANDLE = "handle"


class Unreadable(Exception):
    """A message that is too long, no JSON, or no plain data."""


def encode(value: Any, handle: Callable[[Any], Any]) -> Any:
    """Return what JSON holds in place of a value.

    Args:
        value: Any object.
        handle: Returns what JSON holds of the handle to an object that is not plain.

    Raises:
        RecursionError: If the value holds itself.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        # as digits a very long number is slow, and refused by the interpreter
        return number if -_SMALL < number < _SMALL else {"int": hex(number)}
    if isinstance(value, list):
        return [encode(item, handle) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, handle) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(k, handle), encode(v, handle)] for k, v in pairs]}
    return _encode_rarer(value, handle)


def _encode_rarer(value: Any, handle: Callable[[Any], Any]) -> Any:
    if isinstance(value, set):
        return {"set": [encode(item, handle) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode(item, handle) for item in frozenset.__iter__(value)]}
    if isinstance(value, (bytes, bytearray)):
        name = "bytes" if isinstance(value, bytes) else "bytearray"
        return {name: bytes(memoryview(value)).hex()}
    kind = type(value)
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is range:
        return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
    if kind is type({}.keys()):
        return {"keys": [encode(item, handle) for item in value]}
    if (kind.__module__, kind.__name__) in (("fractions", "Fraction"), ("decimal", "Decimal")):
        return {kind.__name__: str(value)}
    return {_HANDLE: handle(value)}


def decode(value: Any, handle: Callable[[Any], Any]) -> Any:
    """Return the value that JSON holds.

    Args:
        value: What `encode` returned, or anything else that the other side made up.
        handle: Returns what stands for a handle.

    Raises:
        Unreadable: If it is no plain data.
        RecursionError: If it is nested too deeply.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [decode(item, handle) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise Unreadable("a message that is no plain data")
    ((kind, content),) = value.items()
    try:
        if kind == _HANDLE:
            return handle(content)
        return _DECODERS[kind](content, lambda item: decode(item, handle))
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise Unreadable("a message that is no plain data") from error


def _exact(name: str, text: Any) -> Any:
    if not isinstance(text, str):
        raise TypeError
    if name == "Fraction":
        from fractions import Fraction

        return Fraction(text)
    from decimal import Decimal

    return Decimal(text)


_Inner = Callable[[Any], Any]
_DECODERS: dict[str, Callable[[Any, _Inner], Any]] = {
    "int": lambda content, inner: int(content, 16),
    "tuple": lambda content, inner: tuple(map(inner, content)),
    "dict": lambda content, inner: {inner(key): inner(item) for key, item in content},
    "set": lambda content, inner: set(map(inner, content)),
    "frozenset": lambda content, inner: frozenset(map(inner, content)),
    "bytes": lambda content, inner: bytes.fromhex(content),
    "bytearray": lambda content, inner: bytearray.fromhex(content),
    "complex": lambda content, inner: complex(*content),
    "range": lambda content, inner: range(*(int(number, 16) for number in content)),
    "keys": lambda content, inner: dict.fromkeys(map(inner, content)).keys(),
    "Fraction": lambda content, inner: _exact("Fraction", content),
    "Decimal": lambda content, inner: _exact("Decimal", content),
}


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message.

    Raises:
        Unreadable: If it is longer than the other side would read.
        OSError: If the other side is gone.
    """
    line = json.dumps(message).encode("ascii")
    if len(line) >= LONGEST_LINE:
        raise Unreadable("more data at once than crosses")
    stream.write(line + b"\n")
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message.

    Raises:
        EOFError: If the other side is gone.
        Unreadable: If it is too long, or no JSON.
    """
    line = stream.readline(LONGEST_LINE + 1)
    if not line:
        raise EOFError
    if len(line) > LONGEST_LINE:
        raise Unreadable("more data at once than crosses")
    if not line.endswith(b"\n"):
        raise EOFError
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unreadable("a message that is no JSON") from error
