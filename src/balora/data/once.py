"""Data that several runs share are read and checked once, where they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_kept: ContextVar[dict[str, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Let functions marked with `once` return what they returned for the same arguments before."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def once(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function that reads data; what its arguments are is told by their `repr`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        kept = _kept.get()
        if kept is None:
            return function(*args, **kwargs)
        key = f"{function.__module__} {function.__qualname__} {args!r} {kwargs!r}"
        if key not in kept:
            kept[key] = function(*args, **kwargs)
        found: T = kept[key]
        return found

    return call
