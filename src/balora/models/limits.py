"""What a model can take: how many positions a row may have, and which tokens it knows.

Beyond either, a model with tables fails with an index error in the middle of a run, on a GPU
without a word on why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import ConfigError
from balora.models.adapter import inner_model

_POSITIONS = re.compile(r"(^|\.)(wpe|position_embeddings?|embed_positions|positions_embed)$")
"""Names of tables with one row for each position, in the models of transformers."""


def max_positions(model: PreTrainedModel) -> int:
    """Return the longest sequence the model was made for, 2048 where its config does not say.

    Transformer-XL and XLNet say -1.
    """
    config = model.config.get_text_config()
    made_for = int(getattr(config, "max_position_embeddings", None) or 0)
    made_for = made_for if made_for > 0 else 2048
    return min(made_for, num_positions(model) or made_for)


def num_positions(model: nn.Module) -> int | None:
    """Return how many positions a model has a table for, None where it computes them.

    Tables may begin with rows that stand for no position: RoBERTa's with those up to its padding
    token, OPT's with two.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _POSITIONS.search(name):
            first = getattr(module, "offset", None)
            if first is None:
                first = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - first)
    for name, buffer in model.named_buffers():
        if name.endswith("embed_positions"):  # a table of sines, of GPT-J and CodeGen
            found.append(len(buffer))
    return min(found, default=None)


@dataclass(frozen=True)
class Limits:
    """What the rows of a data set must keep to."""

    num_tokens: int
    """Rows of the input embedding."""
    num_positions: int | None
    """Longest row, None where any length works."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Spells a token in a message."""
    multiple_of: int = 1
    """Rows are padded to a multiple of this length."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None, *, multiple_of: int | None = None) -> Limits:
        """Return the limits of a model, with or without an adapter.

        Raises:
            ConfigError: If ``multiple_of`` is beyond the positions that it was made for.
        """
        base = inner_model(model)
        embedding = base.get_input_embeddings()
        number = getattr(embedding, "num_embeddings", None) or len(embedding.weight)
        spells = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        limits = cls(int(number), num_positions(base), spells, multiple_of or 1)
        limits.check_multiple(max_positions(base))
        return limits

    def check_multiple(self, longest: int) -> None:
        """Refuse rows that are all padded beyond what the model was made for, if not the memory.

        Raises:
            ConfigError: Naming the setting.
        """
        if self.multiple_of > longest:
            raise ConfigError(
                f"`pad_to_multiple_of` is {self.multiple_of}, so every row would be that long, but "
                f"the model was made for {longest} positions. Lower it, or leave it out."
            )

    def problem(self, input_ids: Sequence[int], *, kept: slice = slice(None)) -> str | None:
        """Return what is wrong with a row, in half a sentence and a fix.

        Args:
            input_ids: Of the row.
            kept: The part of it that the model is given.
        """
        ids = input_ids[kept]
        unknown = next((token for token in ids if not 0 <= token < self.num_tokens), None)
        if unknown is not None:
            return self._unknown(unknown)
        length = -(-len(ids) // self.multiple_of) * self.multiple_of
        if self.num_positions is not None and length > self.num_positions:
            if len(ids) <= self.num_positions:
                return (
                    f"`pad_to_multiple_of` {self.multiple_of} makes it {length} tokens long, but "
                    f"the model has {self.num_positions} positions. Lower it, or leave it out."
                )
            return (
                f"it has {len(ids)} tokens, but the model has {self.num_positions} positions. Set "
                f"`max_length: {self.num_positions}` or less, or shorten it."
            )
        return None

    def first_problem(self, rows: Dataset, *, kept: slice = slice(None)) -> tuple[int, str] | None:
        """Return the number of the first row that has one, and its problem.

        Args:
            rows: With ``input_ids``; most are looked through without making lists of them.
            kept: The part of a row that the model is given.
        """
        start = 0
        for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(1000):
            column = table["input_ids"].combine_chunks()
            if self._may_break(column, kept):
                for number, ids in enumerate(column.to_pylist()):
                    if (problem := self.problem(ids, kept=kept)) is not None:
                        return start + number, problem
            start += len(column)
        return None

    def _may_break(self, column: pa.Array, kept: slice) -> bool:
        ends = pc.min_max(column.flatten()).as_py()
        if ends["min"] is not None and not 0 <= ends["min"] <= ends["max"] < self.num_tokens:
            return True
        longest = pc.max(column.value_lengths()).as_py() or 0
        if isinstance(kept.stop, int) or isinstance(kept.start, int):
            longest = min(longest, abs(kept.stop or kept.start))
        longest = -(-longest // self.multiple_of) * self.multiple_of
        return self.num_positions is not None and longest > self.num_positions

    def _unknown(self, token: int) -> str:
        spelled = "" if self.tokenizer is None else self.tokenizer.convert_ids_to_tokens(token)
        return (
            f"it holds the token {f'`{spelled}` ' if spelled else ''}with the number {token}, but "
            f"the model knows {self.num_tokens} tokens. Take it out of the row, or name a model "
            "whose embedding has room for its tokenizer."
        )

    def unknown_padding(self) -> str | None:
        """Return what is wrong with the padding token, None where it is known or there is none."""
        pad = None if self.tokenizer is None else self.tokenizer.pad_token_id
        if pad is None or 0 <= pad < self.num_tokens:
            return None
        return (
            f"the tokenizer pads with `{self.tokenizer.pad_token}`, number {pad}, but the model "  # type: ignore[union-attr]
            f"knows {self.num_tokens} tokens. Set `pad_token` to a token that it knows, such as "
            f"its end-of-text token, or save the tokenizer with one."
        )


def first_unknown(rows: Iterable[Sequence[int]], limits: Limits) -> tuple[int, str] | None:
    """Return the number of the first row with a token that the model does not know, and which."""
    for number, ids in enumerate(rows):
        if ids and not 0 <= min(ids) <= max(ids) < limits.num_tokens:
            return number, str(limits.problem(ids))
    return None
