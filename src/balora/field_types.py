"""The fields of a dataclass: do the values have the declared types, and what do they mean?

Standard library only.

`bool` is never a number here, `int` is accepted where `float` is declared, and a `float` must be
finite: `learning_rate: true` and `svd_k: .nan` are mistakes, not values.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import enum
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Union

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union; any other annotation is its own only alternative."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the texts that a `Literal` or an enum among the alternatives allows, else ``()``."""
    found: list[str] = []
    for member in members(annotation):
        if typing.get_origin(member) is Literal:
            found += [value for value in typing.get_args(member) if isinstance(value, str)]
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            found += [str(value.value) for value in member]
    return tuple(found)


def accepts_list(annotation: Any) -> bool:
    """Say whether one of the alternatives is a list."""
    return any(
        typing.get_origin(member) is list or member is list for member in members(annotation)
    )


def accepts(annotation: Any, kind: type) -> bool:
    """Say whether `kind` itself is one of the alternatives."""
    return kind in members(annotation)


def _fits(value: Any, member: Any) -> bool:
    """Say whether `value` fits one alternative that has no union in it."""
    origin = typing.get_origin(member) or member
    if member is Any:
        return True
    if origin is Literal:
        return any(
            value is arg or (isinstance(value, str) and value == arg)
            for arg in typing.get_args(member)
        )
    if isinstance(value, bool) or origin is bool:
        return isinstance(value, bool) and origin is bool
    if origin is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if origin is list:
        inner = (typing.get_args(member) or (Any,))[0]
        return isinstance(value, list) and all(type_problem(item, inner) is None for item in value)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return value in [choice.value for choice in origin]
    return isinstance(origin, type) and isinstance(value, origin)


def type_words(annotation: Any) -> str:
    """Say a type in words: ``int | None`` is "a whole number or null"."""
    named = choices(annotation)
    if named:
        words = [choice_words(named)]
        rest = [m for m in members(annotation) if m is type(None)]
    else:
        words = []
        rest = [m for m in members(annotation) if not (m is int and accepts(annotation, float))]
    for member in rest:
        if member in _WORDS:
            words.append(_WORDS[member])
        elif (typing.get_origin(member) or member) is list:
            words.append(_list_words(member))
        elif (typing.get_origin(member) or member) is dict:
            words.append("a mapping")
    return " or ".join(words) or "left out of a recipe"


def _list_words(annotation: Any) -> str:
    inner = (typing.get_args(annotation) or (Any,))[0]
    return f"a list of {_SEVERAL[inner]}" if inner in _SEVERAL else "a list"


def choice_words(names: tuple[str, ...]) -> str:
    """Say which texts are allowed; of a long list only its length and the first few."""
    shown = ", ".join(f"`{name}`" for name in names[:12])
    return f"one of {shown}" if len(names) <= 12 else f"one of {len(names)} names ({shown}, ...)"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean `x`?"`` for the closest of `known`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def type_problem(value: Any, annotation: Any) -> str | None:
    """Return what is wrong with `value` as half a sentence, ``None`` when it fits.

    The half sentence follows the name of the field: "must be a whole number, got 12.5".
    """
    named = choices(annotation)
    fitting = any(
        _fits(value, member)
        for member in members(annotation)
        if not (named and member is str)  # `SchedulerType | str` means the enum's own texts
    )
    if fitting:
        return None
    hint = suggestion(value, named) if isinstance(value, str) and named else ""
    return f"must be {type_words(annotation)}, got {_shown(value)}{hint}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"the text `{value}`" if isinstance(value, str) else repr(value)


def field_problems(config: Any) -> list[str]:
    """Return one half sentence per field of a dataclass instance whose value has a wrong type."""
    hints = typing.get_type_hints(type(config))
    return [
        f"`{field.name}` {problem}"
        for field in dataclasses.fields(config)
        if (problem := type_problem(getattr(config, field.name), hints[field.name])) is not None
    ]


class FieldDescription(NamedTuple):
    """One field as the help shows it; ``default`` is the text "required" where there is none."""

    name: str
    type: str
    default: Any
    sentence: str


def describe(config_class: type) -> list[FieldDescription]:
    """Return name, type in words, default and sentence of every field, in source order.

    The sentence is the string below the field in the source of `config_class`, or of the class that
    it has the field from; a field without one gets the empty string, and a test demands that there
    is none.
    """
    sentences: dict[str, str] = {}
    for declaring in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(declaring):
            sentences |= _sentences(declaring)
    hints = typing.get_type_hints(config_class)
    return [
        FieldDescription(
            field.name,
            type_words(hints[field.name]),
            "required" if field.default is dataclasses.MISSING else field.default,
            sentences.get(field.name, ""),
        )
        for field in dataclasses.fields(config_class)
    ]


def _sentences(config_class: type) -> dict[str, str]:
    """Return the string below each field that the source of the class itself declares."""
    source = textwrap.dedent(inspect.getsource(config_class))
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
