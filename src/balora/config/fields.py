"""The fields of a dataclass: do the values fit what is declared, and what do they mean?

Standard library only.

`bool` is never a number here, `int` is accepted where `float` is declared, and a `float` must be
finite: `learning_rate: true` and `svd_k: .nan` are mistakes, not values. A text is never blank.
What a type leaves open is said by the rules of :mod:`balora.config.rules`, in an `Annotated`.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union

from balora.config.rules import Form, Named, OneOf, PathTo, Rule
from balora.config.words import choice_words, shortened, spelled, suggestion

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}
_MOST = 2**63
"""Whole numbers are below it: what computes with them has 64 bits."""


def field_hints(config_class: type) -> Mapping[str, Any]:
    """Return the annotation of every field by name, rules included."""
    return _hints(config_class)


@cache
def _hints(config_class: Any) -> Mapping[str, Any]:
    return types.MappingProxyType(typing.get_type_hints(config_class, include_extras=True))


def rules_of(annotation: Any) -> tuple[Rule, ...]:
    """Return the rules on an annotation itself, without those of its alternatives."""
    if typing.get_origin(annotation) is not Annotated:
        return ()
    return tuple(rule for rule in annotation.__metadata__ if isinstance(rule, Rule))


def _bare(annotation: Any) -> Any:
    is_annotated = typing.get_origin(annotation) is Annotated
    return annotation.__origin__ if is_annotated else annotation


@cache
def alternatives(annotation: Any) -> tuple[tuple[Any, tuple[Rule, ...]], ...]:
    """Return each alternative of a union without its rules, and its rules."""
    bare, rules = _bare(annotation), rules_of(annotation)
    is_union = typing.get_origin(bare) in (Union, types.UnionType)
    parts = typing.get_args(bare) if is_union else (bare,)
    return tuple((_bare(part), rules + (rules_of(part) if is_union else ())) for part in parts)


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union; any other annotation is its own only alternative."""
    return tuple(member for member, _ in alternatives(annotation))


@cache
def choices(annotation: Any) -> tuple[str, ...]:
    """Return the texts that a `Literal` or an enum among the alternatives allows, else ``()``."""
    found: list[str] = []
    for member in members(annotation):
        if typing.get_origin(member) is Literal:
            found += [value for value in typing.get_args(member) if isinstance(value, str)]
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            found += [str(value.value) for value in member]
    return tuple(found)


def named_texts(annotation: Any) -> tuple[str, ...]:
    """Return the texts that have a meaning of their own."""
    rules = [rule for _, rules in alternatives(annotation) for rule in rules]
    own = [name for rule in rules if isinstance(rule, OneOf | Named) for name in rule.names]
    return (*choices(annotation), *own)


def list_of(annotation: Any) -> Any:
    """Return what the entries of a list are, if one of the alternatives is one; else None."""
    for member in members(annotation):
        if (typing.get_origin(member) or member) is list:
            return (typing.get_args(member) or (Any,))[0]
    return None


def accepts(annotation: Any, kind: type) -> bool:
    """Say whether `kind` itself is one of the alternatives."""
    return kind in members(annotation)


def _fits(value: Any, member: Any) -> bool:
    """Say whether `value` fits one alternative that has no union in it."""
    origin, declared = typing.get_origin(member) or member, typing.get_args(member)
    if member is Any:
        return True
    if origin is Literal:
        return any(value is arg or (isinstance(value, str) and value == arg) for arg in declared)
    if not isinstance(origin, type) or (isinstance(value, bool) and origin is not bool):
        return False
    if origin is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if issubclass(origin, enum.Enum):
        return value in [choice.value for choice in origin]
    if origin is list and declared and isinstance(value, list):
        return all(any(_fits(item, part) for part in members(declared[0])) for item in value)
    return isinstance(value, origin)


def type_words(annotation: Any) -> str:
    """Say a type in words: ``int | None`` is "a whole number or null"."""
    return _type_words(members(annotation), choices(annotation))


def _type_words(parts: tuple[Any, ...], named: tuple[str, ...] = ()) -> str:
    words = [choice_words(named)] if named else []
    for member in parts:
        if (named and member is not type(None)) or (member is int and float in parts):
            continue
        if member in _WORDS:
            words.append(_WORDS[member])
        elif (typing.get_origin(member) or member) is list:
            words.append(_list_words(member))
        elif _is_mapping(member):
            words.append("a mapping")
    return " or ".join(words) or "unset"


def full_words(annotation: Any) -> str:
    """Say a type and its rules in words: "a whole number, 1 or greater, or null"."""
    several = [(m, rules) for m, rules in alternatives(annotation) if m is not type(None)]
    takes_null = len(several) < len(members(annotation))
    own = {rules for _, rules in several}
    if len(own) > 1:  # a range for each alternative
        each = [", ".join([type_words(m), *_rule_words(rules)]) for m, rules in several]
        return ", or ".join([*each, *(["null"] if takes_null else [])])
    parts = tuple(m for m, _ in several)
    words = ", ".join([_type_words(parts, choices(annotation)), *_rule_words(own.pop())])
    if not takes_null:
        return words
    return f"{words}, or null" if "," in words else f"{words} or null"


def _rule_words(rules: tuple[Rule, ...]) -> list[str]:
    return [rule.words for rule in rules if rule.words]


def _list_words(annotation: Any) -> str:
    inner = _bare(list_of(annotation))
    return f"a list of {_SEVERAL[inner]}" if inner in _SEVERAL else "a list"


def type_problem(value: Any, annotation: Any) -> str | None:
    """Return what is wrong with `value` as half a sentence, ``None`` when it fits.

    The half sentence follows the name of the field: "must be a whole number, got 12.5".
    """
    return wrong_type(value, annotation) or _broken_rule(value, annotation)


def wrong_type(value: Any, annotation: Any) -> str | None:
    """Return what is wrong with the type of `value`, as `type_problem` does; ranges are not."""
    if isinstance(value, str) and not value.strip():
        return "is empty; give it a value or leave it out"
    if not _fitting(value, annotation):
        named = choices(annotation)
        hint = suggestion(value, named) if isinstance(value, str) and named else ""
        forms = [f"; write it as `{rule.example}`" for rule in _forms(annotation)]
        return f"must be {type_words(annotation)}, got {spelled(value)}{hint}{''.join(forms[:1])}"
    if isinstance(value, int) and not -_MOST <= value < _MOST:
        return f"must be a whole number of at most 64 bits, got {shortened(str(value))}"
    return _in_mapping(value, annotation, wrong_type)


def _fitting(value: Any, annotation: Any) -> list[tuple[Rule, ...]]:
    """Return the rules of each alternative that has the type of `value`."""
    named = choices(annotation)
    return [
        rules
        for member, rules in alternatives(annotation)
        if not (named and member is str)  # `SchedulerType | str` means the enum's own texts
        and _fits(value, member)
    ]


def _broken_rule(value: Any, annotation: Any) -> str | None:
    problems = [
        [problem for rule in rules if (problem := rule.problem(value)) is not None]
        for rules in _fitting(value, annotation)
    ]
    if value is not None and problems and [] not in problems:
        return problems[0][0]
    if isinstance(value, list) and (entry := list_of(annotation)) is not None:
        found = (_broken_rule(one, entry) for one in value)
        return next((problem for problem in found if problem), None)
    return _in_mapping(value, annotation, _broken_rule)


def _in_mapping(value: Any, annotation: Any, look: Callable[[Any, Any], str | None]) -> str | None:
    """Return what `look` finds wrong with keys and entries of a mapping that are declared."""
    declared = next((typing.get_args(m) for m in members(annotation) if _is_mapping(m)), ())
    if not isinstance(value, dict) or not declared:
        return None
    of_key, of_entry = declared
    found = []
    for key, entry in value.items():
        if of_key is not Any and (problem := look(key, of_key)) is not None:
            found.append(f"has the key {spelled(key)}, which {problem}")
        elif of_entry is not Any and (problem := look(entry, of_entry)) is not None:
            found.append(f"of `{key}` {problem}")
    return " and ".join(found) or None


def _is_mapping(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) is dict


def _forms(annotation: Any) -> list[Form]:
    found = [rule for _, rules in alternatives(annotation) for rule in rules]
    return [rule for rule in found if isinstance(rule, Form)]


def as_declared(value: Any, annotation: Any) -> Any:
    """Return a whole number as a float where only that is declared; all else as it is."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and accepts(annotation, float) and not accepts(annotation, int):
        return float(value)
    return value


def field_problems(config: Any, *checks: Callable[[], list[str]]) -> list[str]:
    """Return one half sentence per problem of a dataclass instance, field by field.

    Args:
        config: The instance.
        checks: What the fields must fulfil together; looked at where every value has its type.
    """
    hints = field_hints(type(config))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    problems = [
        f"`{name}` {problem}"
        for name, value in values.items()
        if (problem := type_problem(value, hints[name])) is not None
    ]
    if not any(wrong_type(value, hints[name]) for name, value in values.items()):
        problems += [problem for check in checks for problem in check()]
    return problems


def given_problems(
    given: Mapping[Any, Any],
    hints: Mapping[str, Any],
    *,
    of: str,
    look: Callable[[str, Any], str | None] | None = None,
    label: Callable[[str], str] = str,
    instead: Callable[[str], str | None] = lambda _: None,
) -> list[str]:
    """Return one half sentence per given key that is no field, or whose value is wrong.

    Args:
        given: The values by name.
        hints: The annotation of every field.
        of: What the fields are of, such as "a recipe".
        look: What is wrong with the value of a field, if it is not as `type_problem` says.
        label: A name as the user wrote it.
        instead: What to write instead of a name that is no field, where that is known.
    """
    problems = []
    for name, value in given.items():
        found: str | None
        if name not in hints:
            found = instead(name) or f"is no field of {of}{suggestion(str(name), hints)}"
        else:
            found = look(name, value) if look else type_problem(value, hints[name])
        if found is not None:
            problems.append(f"`{label(name)}` {found}")
    return problems


def missing_path(value: Any, annotation: Any) -> str | None:
    """Return what is wrong with a path where a field declares one; anything else passes."""
    rules = [rule for rule in rules_of(annotation) if isinstance(rule, PathTo)]
    return next((found for rule in rules if (found := rule.missing(value))), None)


class FieldDescription(NamedTuple):
    """One field as the help shows it; ``default`` is the text "required" where there is none."""

    name: str
    type: str
    default: Any
    sentence: str


def describe(config_class: type) -> list[FieldDescription]:
    """Return name, type and range in words, default and sentence of every field, in source order.

    The sentence is the string below the field in the source of `config_class`, or of the class that
    it has the field from; a field without one gets the empty string, and a test demands that there
    is none.
    """
    sentences: dict[str, str] = {}
    for declaring in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(declaring):
            sentences |= _sentences(declaring)
    hints = field_hints(config_class)
    return [
        FieldDescription(
            field.name,
            full_words(hints[field.name]),
            "required" if field.default is dataclasses.MISSING else field.default,
            sentences.get(field.name, ""),
        )
        for field in dataclasses.fields(config_class)
    ]


@cache
def _sentences(config_class: Any) -> Mapping[str, str]:
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
