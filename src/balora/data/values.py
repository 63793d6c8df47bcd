"""How the values of a column are stored: as one type where they have one, else each as JSON.

A column of text, of whole numbers of 64 bits, of numbers with a point or of true and false has that
type; nulls fit in everywhere, and a column of nulls alone is one of text. Whatever else a column
holds is stored as JSON (`JsonValue`) and comes back as it was: lists and mappings with the keys
that each of them has, larger whole numbers with all their digits, text beside numbers. So 1 and 1.0
stay what they are, and no value of a column changes because of another.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets.features.features import register_feature

from balora.data.json_records import RawJson

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
_decode = json.JSONDecoder().raw_decode


@dataclass
class JsonValue:
    """A column of any JSON values, stored as text and read as what Python's json makes of it."""

    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "json"
    pa_type: ClassVar[Any] = pa.string()
    _type: str = field(default="JsonValue", init=False, repr=False)

    def __call__(self) -> Any:
        """Return the type that is stored."""
        return self.pa_type

    def encode_example(self, value: Any) -> str | None:
        """Return a value as it is stored."""
        if value is None or type(value) is RawJson:
            return value
        return _encode(value)

    def decode_example(self, value: str | None, token_per_repo_id: Any = None) -> Any:
        """Return a value as it was."""
        return None if value is None else _decode(value)[0]

    def cast_storage(self, storage: Any) -> Any:
        """Return what is stored already as text."""
        return storage.cast(self.pa_type)


with warnings.catch_warnings():  # it says of itself that it may change
    warnings.simplefilter("ignore", UserWarning)
    register_feature(JsonValue, "JsonValue")

_TYPES: dict[type | None, Any] = {  # None: nulls alone
    None: Value("string"),
    str: Value("string"),
    bool: Value("bool"),
    int: Value("int64"),
    float: Value("float64"),
    object: JsonValue(),
}
_INT64 = range(-(2**63), 2**63)


def kind_of(values: Sequence[Any]) -> type | None:
    """Return the one type that the values of a column have, null aside.

    It is one of str, bool, int (of 64 bits) and float; None where all are null, object for others.
    """
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) != 1:
        return object if kinds else None
    kind: type = kinds.pop()
    if kind is int and not _fits(values):
        return object
    return kind if kind in _TYPES else object


def _fits(values: Sequence[int | None]) -> bool:
    numbers = [value for value in values if value is not None]
    return min(numbers) in _INT64 and max(numbers) in _INT64


def wider(first: type | None, second: type | None) -> type | None:
    """Return the kind of a column that has parts of two kinds."""
    if first is second or second is None:
        return first
    return second if first is None else object


def features_of(kinds: dict[str, type | None]) -> Features:
    """Return how columns of these kinds are stored."""
    return Features({name: _TYPES[kind] for name, kind in kinds.items()})


def stored(values: Sequence[Any], feature: Any) -> Any:
    """Return the values of a column as they are stored.

    Raises:
        UnicodeEncodeError: If a text holds half a surrogate pair.
    """
    if isinstance(feature, JsonValue):
        values = [feature.encode_example(value) for value in values]
    return pa.array(values, feature.pa_type)


def as_text(dataset: Dataset, column: str) -> Dataset:
    """Return a data set of which every value of a column is text, as a column of text."""
    feature = dataset.features[column]
    if feature == Value("string"):
        return dataset
    if not isinstance(feature, JsonValue):
        return dataset.cast_column(column, Value("string"))
    features = Features({**dataset.features, column: Value("string")})
    options = {"fn_kwargs": {"column": column}, "features": features}
    return dataset.map(_decoded, batched=True, desc="Reading text", **options)


def _decoded(batch: dict[str, list[Any]], column: str) -> dict[str, list[Any]]:
    return {column: batch[column]}  # asked for, so that it is no longer what is stored
