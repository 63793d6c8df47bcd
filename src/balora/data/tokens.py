"""From texts to the tokens that a classification model reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from balora.data.provenance import LocatedRows
from balora.errors import ConfigError

_READ = ("input_ids", "attention_mask", "token_type_ids")


def tokenize_rows(
    rows: LocatedRows, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Return the tokens of each row, in the order of ``rows``.

    A row that is too long is cut in its longer text, token by token, so that of two texts at least
    one token each stays: at the end, or at the start where the tokenizer's ``truncation_side`` is
    left. Nothing is padded.

    Args:
        rows: With ``text``, perhaps ``text_pair`` and ``label``.
        tokenizer: Of the model.
        max_length: Most tokens of a row, special ones included.

    Returns:
        Columns ``input_ids``, ``attention_mask``, ``token_type_ids`` where the tokenizer gives
        them, and ``labels`` where there is a ``label``.

    Raises:
        ConfigError: If ``max_length`` leaves no token for a text.
        DataError: For the first row of whose text the tokenizer makes no token.
    """
    columns = rows.dataset.column_names
    is_pair = "text_pair" in columns
    _check_room(tokenizer, max_length, is_pair=is_pair)
    with state_kept(tokenizer):
        tokenized = rows.dataset.map(
            _tokenize,
            batched=True,
            fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
            remove_columns=[column for column in columns if column != "label"],
            desc="Tokenizing",
        )
    if "label" in columns:
        tokenized = tokenized.rename_column("label", "labels")
    _check_tokens(rows, tokenized)
    return tokenized


@contextmanager
def state_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Put back how a fast tokenizer cuts and pads: what is saved of it must not depend on its use.

    Rows that come from a cache do not use it at all.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = None if backend is None else (backend.truncation, backend.padding)
    try:
        yield
    finally:
        if backend is not None and before is not None:
            truncation, padding = before
            backend.no_truncation()
            backend.no_padding()
            if truncation is not None:
                backend.enable_truncation(**truncation)
            if padding is not None:
                backend.enable_padding(**padding)


def _check_room(tokenizer: PreTrainedTokenizerBase, max_length: int, *, is_pair: bool) -> None:
    num_special = tokenizer.num_special_tokens_to_add(pair=is_pair)
    smallest = num_special + (2 if is_pair else 1)
    if max_length < smallest:
        what = "two texts" if is_pair else "a text"
        raise ConfigError(
            f"`max_length` is {max_length}, but the tokenizer puts {num_special} special tokens "
            f"around {what}, so not every text keeps a token. Raise it to {smallest} or more."
        )


def _tokenize(
    batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    encoded = tokenizer(
        batch["text"],
        batch.get("text_pair"),
        truncation="longest_first",
        max_length=max_length,
        padding=False,
    )
    return {name: encoded[name] for name in _READ if name in encoded}


def _check_tokens(rows: LocatedRows, tokenized: Dataset) -> None:
    """Refuse rows without any token: a decoder has nothing to pool there."""
    tables = tokenized.select_columns(["input_ids"]).with_format("arrow").iter(10_000)
    lengths = [n for table in tables for n in table["input_ids"].combine_chunks().value_lengths()]
    empty = [number for number, length in enumerate(lengths) if not length.as_py()]
    if empty:
        rows.refuse(empty, "the tokenizer makes no token of the text", purpose="used")
