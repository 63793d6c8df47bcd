"""Texts as tokens, with what of them is scored, and the file that holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from balora.errors import DataError
from balora.files import write_text

REPLAY_FILE = "replay.jsonl"
"""The texts of a run, beside its adapter: one JSON object per line, see :meth:`write`."""

IGNORED = -100
"""The label of a token that is not scored."""


@dataclass(frozen=True)
class ReplayText:
    """One text: its tokens, and which of them were drawn from the model."""

    input_ids: tuple[int, ...]
    """From the start (BOS or a prompt) on."""
    labels: tuple[int, ...]
    """The tokens themselves, -100 where one is not scored: the start, the marks of a chat."""

    @property
    def num_scored(self) -> int:
        """Tokens that a prediction is made for; the first token has none."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class ReplayTexts:
    """The texts of a run; never changed."""

    texts: tuple[ReplayText, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def digest(self) -> str:
        """Return 16 hexadecimal digits that stand for the tokens and what of them is scored."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(json.dumps([text.input_ids, text.labels]).encode())
        return digest.hexdigest()[:16]

    def num_scored(self, indices: Iterable[int]) -> int:
        """Return the scored tokens of some of the texts."""
        return sum(self.texts[index].num_scored for index in indices)

    def batch(self, indices: Sequence[int], width: int, pad_token_id: int) -> dict[str, Tensor]:
        """Return some texts padded on the right, each tensor of shape ``(len(indices), width)``.

        Args:
            indices: Of the texts, at least one.
            width: At least the length of the longest.
            pad_token_id: Fills ``input_ids``; the attention mask leaves it out.
        """
        chosen = [self.texts[index] for index in indices]
        return {
            "input_ids": _padded([text.input_ids for text in chosen], width, pad_token_id),
            "attention_mask": _padded([(1,) * len(text.input_ids) for text in chosen], width, 0),
            "labels": _padded([text.labels for text in chosen], width, IGNORED),
        }

    def width(self, indices: Iterable[int]) -> int:
        """Return the length of the longest of some of the texts."""
        return max(len(self.texts[index].input_ids) for index in indices)

    def write(self, path: Path, tokenizer: Any) -> None:
        """Write one line per text: ``text`` to read, ``input_ids`` and ``labels`` as they count.

        ``text`` is what the tokenizer makes of the tokens, special ones included.
        """
        rows = (
            {"text": decoded(tokenizer, t.input_ids), "input_ids": t.input_ids, "labels": t.labels}
            for t in self.texts
        )
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def decoded(tokenizer: Any, input_ids: Sequence[int]) -> str:
    """Return the text of tokens, special ones included, without any cleaning up."""
    kwargs = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(input_ids), **kwargs))


def tokenized_text(row: dict[str, Any], where: str, tokenizer: Any, vocab_size: int) -> ReplayText:
    """Return the text of a row that holds tokens already, as :meth:`ReplayTexts.write` left it.

    Raises:
        DataError: If the columns do not fit together or to the tokenizer and the model.
    """
    input_ids, labels = row["input_ids"], row.get("labels")
    labels = [IGNORED, *input_ids[1:]] if labels is None else labels
    if len(labels) != len(input_ids) or len(input_ids) < 2:
        raise DataError(
            f"{where}: {len(input_ids)} `input_ids` and {len(labels)} `labels`; a text has as many "
            "of one as of the other, at least 2."
        )
    outside = [token for token in input_ids if not 0 <= token < vocab_size]
    wrong = [
        label
        for label, token in zip(labels, input_ids, strict=True)
        if label not in (IGNORED, token)
    ]
    if outside or wrong:
        raise DataError(
            f"{where}: "
            + (
                f"the token {outside[0]} is not one of the model's {vocab_size}"
                if outside
                else f"the label {wrong[0]} is neither its token nor {IGNORED}"
            )
            + "; generate the texts with this model."
        )
    if "text" in row and row["text"] != decoded(tokenizer, input_ids):
        raise DataError(
            f"{where}: `input_ids` are not the tokens of `text`: they were made with another "
            "tokenizer. Generate the texts with this model, or keep the column `text` alone."
        )
    return ReplayText(tuple(input_ids), tuple(labels))


def _padded(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)
