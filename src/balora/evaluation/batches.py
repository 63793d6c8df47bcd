"""Prompts and completions as batches of tokens, as the instruments read them.

Shapes: ``B`` rows of a batch, ``S`` positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import DataError
from balora.models.limits import Limits, first_unknown


def check_known_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    name: str,
) -> None:
    """Refuse rows with a token that the model does not know: it would fail with an index error.

    Raises:
        DataError: For the first such row.
    """
    found = first_unknown(rows, Limits.of(model, tokenizer))
    if found is not None:
        raise DataError(f"row {found[0] + 1} of the {name} data: {found[1]}")


class Row(NamedTuple):
    """A prompt and its completion as tokens."""

    input_ids: list[int]
    """Of both; the start is cut off where the model takes no more."""
    num_prompt: int
    """How many of them belong to the prompt; at least 1, which nothing predicts."""
    truncated: bool
    """Whether the start was cut off."""


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, limit: int) -> Row:
    """Return the row as it was trained: tokenized as one text, closed by the end-of-text token."""
    prompt_ids = token_ids(tokenizer, prompt)
    ids = token_ids(tokenizer, prompt + completion)
    if ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    cut = max(len(ids) - limit, 0)
    shared = next(
        (i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b),
        len(prompt_ids),
    )
    return Row(ids[cut:], max(shared - cut, 1), cut > 0)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text that goes on: without an end-of-text token."""
    ids = list(tokenizer(text, verbose=False).input_ids)
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # some tokenizers close every text
    return ids


def chat_prompt(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, Any]]) -> str:
    """Return the turns of a chat as a prompt for the next answer.

    A start-of-text token that the template writes is left out where the tokenizer adds its own:
    two of them are no text that the model was trained on.
    """
    text = str(
        tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    )
    start = tokenizer.bos_token
    adds_its_own = start is not None and tokenizer.bos_token_id in tokenizer("").input_ids[:1]
    return text.removeprefix(str(start)) if adds_its_own else text


def right_padded(batch: Sequence[Row], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return input ids, labels (-100 for prompt and padding) and mask, each ``(B, S)``."""
    length = max(len(row.input_ids) for row in batch)
    input_ids = torch.full((len(batch), length), pad_id)
    labels, attention_mask = torch.full_like(input_ids, -100), torch.zeros_like(input_ids)
    for i, row in enumerate(batch):
        ids = torch.tensor(row.input_ids)
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
        labels[i, row.num_prompt : len(ids)] = ids[row.num_prompt :]
    return input_ids, labels, attention_mask


def left_padded(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return input ids and mask, each ``(B, S)``, of rows that go on."""
    length = max(map(len, rows))
    input_ids = torch.tensor([[pad_id] * (length - len(row)) + row for row in rows])
    attention_mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return input_ids, attention_mask


def in_batches(rows: Sequence[Any], size: int, title: str) -> Iterator[Sequence[Any]]:
    """Yield the rows ``size`` at a time, with a progress bar of that title."""
    starts = range(0, len(rows), size)
    for start in tqdm(starts, desc=title, leave=False):
        yield rows[start : start + size]


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode inside the block; the mode of before after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
