"""What transformers' Trainer takes as data of a classifier, made what the trainer here reads."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from balora.data.stored import in_file
from balora.data.tokens import state_kept
from balora.distributed import one_first
from balora.errors import DataError
from balora.models.limits import Limits

TEXT_COLUMNS = ("text", "text_pair")
_LABEL_COLUMNS = ("label", "label_ids")
"""Other names of `labels`, which the collators of transformers take too."""
_TOKENS = ("input_ids", "inputs_embeds")
_ANY_LENGTH = 2**20


def ready(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    model: Any,
    name: str,
) -> Any:
    """Return a data set with ``labels`` and tokens.

    A column ``label`` is called ``labels``. Where there are no tokens, the column ``text``, with
    ``text_pair`` where there is one, is tokenized and cut to what the model takes. What is no
    ``datasets.Dataset`` is returned as it is, each part of a mapping by itself.

    Args:
        dataset: Of any kind that transformers takes.
        tokenizer: The trainer's; ``None`` where it has none.
        model: The trainer's.
        name: What the data are called in the message.

    Raises:
        DataError: If there are neither tokens nor a text that can be tokenized.
    """
    if isinstance(dataset, dict):
        return {key: ready(part, tokenizer, model, key) for key, part in dataset.items()}
    if not isinstance(dataset, Dataset) or not len(dataset):
        return dataset
    columns = dataset.column_names
    label = next((column for column in _LABEL_COLUMNS if column in columns), None)
    if label is not None and "labels" not in columns:
        dataset = dataset.rename_column(label, "labels")
    if any(column in columns for column in _TOKENS):
        return dataset
    if "text" not in columns or tokenizer is None:
        raise DataError(_no_tokens(dataset, name))
    return _tokenized(dataset, tokenizer, model)


def _no_tokens(dataset: Dataset, name: str) -> str:
    columns = dataset.column_names
    found = f"the {name} data set has no column `input_ids`, it has {', '.join(columns)}."
    if "text" in columns:
        return f"{found} Pass the tokenizer as `processing_class`, and `text` is tokenized."
    return (
        f"{found} Tokenize it first, or name its text `text` (a second one `text_pair`) and pass "
        "the tokenizer as `processing_class`."
    )


def _tokenized(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: Any) -> Dataset:
    texts = [column for column in TEXT_COLUMNS if column in dataset.column_names]
    limit = min(tokenizer.model_max_length, Limits.of(model).num_positions or _ANY_LENGTH)

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        columns = [batch[column] for column in texts]
        return dict(tokenizer(*columns, truncation="longest_first", max_length=limit))

    with one_first(), state_kept(tokenizer):
        return in_file(dataset).map(tokenize, batched=True, remove_columns=texts, desc="Tokenizing")
