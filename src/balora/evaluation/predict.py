"""What a classifier makes of whole data sets: its logits, then the metrics of each set."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from balora.config.classification import ClassificationConfig
from balora.config.glue_x import GLUE_X, average_line
from balora.data.classification import ClassificationRows, tokenize_rows
from balora.errors import NonFiniteError
from balora.evaluation.classification import (
    Array,
    majority_metrics,
    primary_metric,
    task_metrics,
    worst_group,
)
from balora.models.adapter import inner_model


@torch.no_grad()
def predict_logits(
    model: PreTrainedModel,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 32,
    title: str = "Classifying",
) -> Array:
    """Return the logits of every row, in the order of ``dataset``, the model in eval mode.

    Rows of one length share a batch, padded to the longest of it.

    Args:
        model: With a classification head; left in the mode it was in.
        dataset: Tokenized, with ``labels`` or without.
        tokenizer: Pads.
        batch_size: Rows at once.
        title: Of the progress bar.

    Returns:
        Shape ``(N, C)``, float32.
    """
    # as the trainer does: not every model takes `token_type_ids`
    base = inner_model(model)
    taken = inspect.signature(base.forward).parameters
    inputs = dataset.select_columns(
        [name for name in dataset.column_names if name in taken and name != "labels"]
    )
    order = np.argsort([len(ids) for ids in inputs["input_ids"]], kind="stable")
    batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    loader = DataLoader(
        inputs, batch_sampler=batches, collate_fn=DataCollatorWithPadding(tokenizer)
    )
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    bar = tqdm(loader, desc=title, leave=False)
    parts = [model(**batch.to(device)).logits.float().cpu().numpy() for batch in bar]
    model.train(was_training)
    logits = np.concatenate(parts)
    return logits[np.argsort(order)]


def measure_sets(
    model: PreTrainedModel,
    sets: Mapping[str, ClassificationRows],
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: str,
    max_length: int,
    batch_size: int = 32,
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each data set by name: ``num_rows``, the metrics, the worst group.

    The metrics are those of :func:`~balora.evaluation.classification.task_metrics`;
    ``majority_class`` has those of the class that most rows have, given to every row;
    ``predicted`` is how many rows are given each class, and ``present`` how many have it, where
    the rows have the classes of the model and no sets of them;
    ``worst_group`` is there where the rows have groups, with its name, value and number of rows.

    Args:
        model: With a classification head.
        sets: The rows by the name of the set.
        tokenizer: Of the model.
        task: A task of `ClassificationConfig`.
        max_length: Longest input in tokens.
        batch_size: Rows at once.

    Raises:
        NonFiniteError: If the model gives NaN or infinity, naming set and row.
    """
    metrics = {}
    for name, rows in sets.items():
        tokenized = tokenize_rows(rows, tokenizer, max_length)
        logits = predict_logits(model, tokenized, tokenizer, batch_size=batch_size)
        try:
            metrics[name] = _metrics(task, logits, rows)
        except NonFiniteError as error:
            raise NonFiniteError(f"{name}: {error}") from None
    return metrics


def _metrics(task: str, logits: Array, rows: ClassificationRows) -> dict[str, Any]:
    labels = np.asarray(rows.dataset["label"])
    metrics: dict[str, Any] = {"num_rows": len(labels)}
    metrics |= task_metrics(task, logits, labels, class_sets=rows.class_sets)
    if majority := majority_metrics(task, labels):
        metrics["majority_class"] = majority
        metrics["predicted"] = _counts(logits.argmax(axis=1), rows, logits.shape[1])
        if rows.class_sets is None:
            metrics["present"] = _counts(labels, rows, logits.shape[1])
    if "group" in rows.dataset.column_names:
        groups = rows.dataset["group"]
        worst = worst_group(task, logits, labels, groups, class_sets=rows.class_sets)
        metrics["worst_group"] = worst._asdict()
    return metrics


def _counts(labels: Array, rows: ClassificationRows, num_classes: int) -> dict[str, int]:
    """Return how many of the labels are each class of the model, by its name."""
    counts = np.bincount(labels, minlength=num_classes)
    names = rows.class_names or range(len(counts))
    return {str(name): int(count) for name, count in zip(names, counts, strict=False)}


def glue_x_average(
    data: ClassificationConfig, out_of_domain: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Return the line of GLUE-X's average; None where a run names other data sets, or none."""
    if data.out_of_domain != GLUE_X:
        return None
    return average_line(data.task, primary_metric(data.task), out_of_domain)
