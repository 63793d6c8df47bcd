"""Rows that trl would train on or leave out without a word, found before it sees them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, IterableDataset
from trl import SFTConfig

from balora.errors import ConfigError, DataError, RowError
from balora.models.limits import Limits
from balora.trainers.checks import check_rows_fit

logger = logging.getLogger(__name__)

Rows: TypeAlias = Dataset | IterableDataset
Row: TypeAlias = dict[str, Any]


def scores_responses_only(dataset: Rows | None) -> bool:
    """Return whether a data set holds chats of which the assistant's turns alone are scored.

    Raises:
        DataError: If the data set is empty, or its chats are in a column that trl would score
            on every token.
    """
    if dataset is None:
        return False
    row = _first_row(dataset, "train")
    if "conversations" in row and "input_ids" not in row:
        raise DataError(
            "the data set has a column `conversations`, whose assistant's turns balora cannot "
            "tell from the others. Turn it into `messages`, each with a `role` and a `content`."
        )
    return "messages" in row and not {"prompt", "input_ids"} & row.keys()


def check_raw_rows(dataset: Rows, name: str) -> Rows:
    """Refuse a row with an empty response: trl would train it as a lone end-of-text token.

    Raises:
        DataError: If there is no row at all.
        RowError: For the first such row; for a streamed data set when it is read.
    """
    _first_row(dataset, name)
    return _check_rows(dataset, _raw_problem, name)


def _first_row(dataset: Rows, name: str) -> Row:
    row: Row | None = next(iter(dataset), None)
    if row is None:
        raise DataError(f"the {name} data set is empty: it has no row.")
    return row


def _raw_problem(row: Row) -> str | None:
    if "completion" in row:
        return _response_problem("completion", row["completion"])
    return _response_problem("messages", row["messages"]) if "messages" in row else None


def _response_problem(column: str, response: Any) -> str | None:
    if not isinstance(response, list):
        is_empty = response is None or (isinstance(response, str) and not response.strip())
        return f"the `{column}` is empty. Remove the row or fill it in." if is_empty else None
    turns = [turn for turn in response if turn.get("role") == "assistant"]
    if not turns:
        return f"no turn of `{column}` is the assistant's, so none is scored. Remove the row."
    if any(_is_empty(turn) for turn in turns):
        return f"an assistant's turn of `{column}` is empty. Remove the row or fill it in."
    return None


def _is_empty(turn: Row) -> bool:
    content = turn.get("content")
    is_blank = not content or (isinstance(content, str) and not content.strip())
    return is_blank and not turn.get("tool_calls")


def kept_part(args: SFTConfig, *, packing: bool) -> slice:
    """Return the part of a row that trl keeps: ``max_length`` tokens of its start or its end."""
    if args.max_length is None or (packing and args.packing_strategy != "bfd"):
        return slice(None)
    if args.truncation_mode == "keep_end" and not packing:
        return slice(-args.max_length, None)
    return slice(args.max_length)


def is_scored(row: Row, kept: slice) -> bool:
    """Return whether any token is left to predict in the ``kept`` part of a labelled row."""
    return any(label != -100 for label in row["labels"][kept][1:])


def check_tokenized_rows(dataset: Rows, kept: slice, name: str) -> Rows:
    """Refuse a row whose response is cut off entirely: trl would drop it silently.

    Raises:
        RowError: For the first such row; for a streamed data set when it is read.
    """

    def find_problem(row: Row) -> str | None:
        if is_scored(row, kept):
            return None
        if not is_scored(row, slice(None)):
            return "no token of it is to be predicted. Remove the row."
        labels = row["labels"]
        first = next(i for i, label in enumerate(labels) if label != -100)
        return (
            f"`max_length` {abs(kept.stop or kept.start)} cuts the whole response off (it starts "
            f"at token {first + 1} of {len(labels)}). Raise `max_length`, shorten the row, or set "
            "`overlong_rows: drop`."
        )

    if not isinstance(dataset, Dataset):
        return _check_rows(dataset, find_problem, name)
    start = 0
    for table in dataset.select_columns(["labels"]).with_format("arrow").iter(1000):
        column = table["labels"].combine_chunks()
        for number in np.flatnonzero(~_are_scored(column, kept)).tolist():
            problem = find_problem({"labels": column[number].as_py()})
            assert problem is not None
            raise RowError(start + number, problem, dataset=name)
        start += len(column)
    return dataset


def _are_scored(column: pa.ListArray, kept: slice) -> npt.NDArray[np.bool_]:
    """Return for each row what `is_scored` says, without a list for each, shape ``(rows,)``."""
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first, last = starts, ends
    if kept.start is not None:  # the last tokens
        first = np.maximum(starts, ends + kept.start)
    if kept.stop is not None:
        last = np.minimum(ends, starts + kept.stop)
    scored = np.concatenate([[0], np.cumsum(column.flatten().to_numpy() != -100)])
    # nothing predicts the first token that is kept
    return np.asarray(scored[last] > scored[np.minimum(first + 1, last)])


def check_limits(
    dataset: Rows, limits: Limits, args: SFTConfig, name: str, *, packing: bool
) -> Rows:
    """Refuse a row that is longer than the model has positions, or holds a token it does not know.

    Packed rows count their positions anew for each row, unless they are wrapped.

    Raises:
        ConfigError: If wrapped rows are filled beyond the positions.
        RowError: For the first such row; for a streamed data set when it is read.
    """
    kept, positions = kept_part(args, packing=packing), limits.num_positions
    if packing and args.packing_strategy == "wrapped" and positions is not None:
        if args.max_length is None or args.max_length > positions:
            raise ConfigError(
                f"`max_length` is {args.max_length}, and `packing_strategy: wrapped` fills rows up "
                f"to it, but the model has {positions} positions. Set `max_length: {positions}`."
            )
        limits = replace(limits, num_positions=None)
    elif packing and args.max_length is not None:
        kept = slice(args.max_length)  # `bfd_split` divides a row into parts of this length
        limits = replace(limits, multiple_of=1)
    if isinstance(dataset, IterableDataset):
        return _check_rows(dataset, lambda row: limits.problem(row["input_ids"], kept=kept), name)
    check_rows_fit(dataset, limits, name, kept=kept)
    return dataset


def drop_overlong_rows(
    dataset: Rows, kept: slice, name: str, num_processes: int | None = None
) -> Rows:
    """Return the rows of which something is left to predict, and say how many are left out.

    Args:
        dataset: Tokenized and labelled.
        kept: The part of a row that the model is given.
        name: What the data are called in the message.
        num_processes: How many look through rows that are not streamed; None is one.

    Raises:
        DataError: If none is left.
    """
    rest = dataset.filter(lambda row: is_scored(row, kept), **_shared(dataset, num_processes))
    if isinstance(dataset, Dataset) and len(rest) < len(dataset):
        found = f"`max_length` cuts the whole response off in {len(dataset) - len(rest)} of the "
        found += f"{len(dataset)} rows of the {name} data"
        if not len(rest):
            raise DataError(f"{found}. Raise `max_length` or shorten the rows.")
        logger.warning("%s; they are dropped", found)
    return rest


def closes_texts(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts its end-of-text token behind every text by itself."""
    ids, bare = (tokenizer("a", add_special_tokens=on)["input_ids"] for on in (True, False))
    return bool(ids[-1:] == [tokenizer.eos_token_id] != bare[-1:])


def closed_once(dataset: Rows, end: int, num_processes: int | None = None) -> Rows:
    """Return the rows with one end-of-text token at the end where there are two.

    trl writes the token behind every response, and a tokenizer that closes every text writes it
    again: the model would learn to go on after the end.

    Args:
        dataset: Tokenized texts, with ``input_ids``.
        end: The end-of-text token.
        num_processes: How many cut rows that are not streamed; None is one.
    """

    def cut(row: Row) -> Row:
        length = len(row["input_ids"])
        if row["input_ids"][-2:] != [end, end]:
            return row
        is_of_tokens = {k: isinstance(v, list) and len(v) == length for k, v in row.items()}
        return {k: v[:-1] if is_of_tokens[k] else v for k, v in row.items()}

    return dataset.map(cut, **_shared(dataset, num_processes))


def _shared(dataset: Rows, num_processes: int | None) -> dict[str, Any]:
    return {"num_proc": num_processes} if isinstance(dataset, Dataset) else {}


def unshortened(args: SFTConfig) -> SFTConfig:
    """Return ``args`` with which trl tokenizes and labels, and keeps every row in its place."""
    plain = copy(args)
    plain.max_length, plain.shuffle_dataset = None, False
    return plain


def _check_rows(dataset: Rows, find_problem: Callable[[Row], str | None], name: str) -> Rows:
    def check(row: Row, index: int) -> Row:
        problem = find_problem(row)
        if problem is not None:
            raise RowError(index, problem, dataset=name)
        return row

    if isinstance(dataset, IterableDataset):
        return dataset.map(check, with_indices=True)
    for index, row in enumerate(dataset):
        check(row, index)
    return dataset
