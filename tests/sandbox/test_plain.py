"""What crosses between the tests and a program."""

from __future__ import annotations

import collections
import enum
import io
import json
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.sandbox.programs import plain


def no_handle(value):
    raise AssertionError(value)


def crossed(value):
    stream = io.BytesIO()
    plain.send(stream, plain.encode(value, no_handle))
    stream.seek(0)
    return plain.decode(plain.receive(stream), no_handle)


HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3) | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HASHABLE, inner, max_size=3),
    max_leaves=8,
)


def types_of(value):
    if isinstance(value, dict):
        return [(types_of(key), types_of(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [type(value), *map(types_of, value)]
    return type(value)


@settings(max_examples=15)
@given(VALUES)
def test_plain_values_cross_unchanged(value):
    assert crossed(value) == value
    assert types_of(crossed(value)) == types_of(value)


@pytest.mark.parametrize(
    "value",
    [10**5000, -(2**63), 2**63, float("inf"), -0.0, "\ud800", range(3, 9, 2), bytearray(b"x")],
    ids=lambda value: type(value).__name__,
)
def test_rarer_values_cross(value):
    assert crossed(value) == value
    assert type(crossed(value)) is type(value)


def test_more_kinds_cross():
    assert math.isnan(crossed(float("nan")))
    assert math.copysign(1, crossed(-0.0)) == -1
    assert crossed({1: 2}.keys()) == {1}
    assert crossed(Fraction(1, 3)) == Fraction(1, 3)
    assert crossed(Decimal("1.10")) == Decimal("1.1")


def test_derived_classes_cross_as_what_they_hold():
    class Always(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Colour(enum.IntEnum):
        RED = 3

    pair = collections.namedtuple("Pair", "a b")(1, 2)
    for value, held in (
        (Always(5), 5),
        (Colour.RED, 3),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (pair, (1, 2)),
    ):
        assert crossed(value) == held
        assert type(crossed(value)) is type(held)


def test_other_objects_become_handles():
    assert plain.encode([object()], lambda _: [7, True]) == [{"handle": [7, True]}]
    assert plain.decode([{"handle": [7, True]}], tuple) == [(7, True)]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"a": 1},
        {"int": 5},
        {"int": "zz"},
        {"dict": 1},
        {"dict": [[1]]},
        {"dict": [[[1], 2]]},
        {"set": [[1]]},
        {"range": ["1", "2", "0"]},
        {"bytes": "x"},
        {"complex": [1, 2, 3]},
        {"Decimal": "x"},
        {"Fraction": "1/0"},
        {"Fraction": 0.5},
        {"tuple": 3},
    ],
    ids=json.dumps,
)
def test_what_is_no_plain_data_is_refused(message):
    with pytest.raises(plain.Unreadable):
        plain.decode(message, no_handle)


def test_messages_have_a_longest():
    stream = io.BytesIO()
    with pytest.raises(plain.Unreadable, match="more data at once"):
        plain.send(stream, "x" * plain.LONGEST_LINE)
    assert not stream.getvalue()
    for content, error in (
        (b"x" * (plain.LONGEST_LINE + 2), plain.Unreadable),
        (b"[" * 100_000 + b"\n", plain.Unreadable),
        (b"{\n", plain.Unreadable),
        (b"\xff\n", plain.Unreadable),
        (b"", EOFError),
        (b"[1]", EOFError),
    ):
        with pytest.raises(error):
            plain.receive(io.BytesIO(content))
