"""The training rows in two parts: a sweep trains on the one and chooses by the other.

The rows that are reported on take no part in a choice. The part held out is as the rows are: label
noise that is in the data, as the lab's is, is in it too; `label_noise` of a recipe, which acts when
rows to train on are loaded, is not.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from datasets import ClassLabel, Dataset

from balora.compare.plan import Parts
from balora.config import DataConfig
from balora.config.classification import ClassificationConfig
from balora.data.provenance import iterate_rows
from balora.errors import ConfigError
from balora.recipes.kinds import kind_of_data, load
from balora.staging import staged_file

_SEED = 0
"""Which rows are held out is the same in every comparison of the same rows."""


def write_parts(data: DataConfig | ClassificationConfig, folder: Path, fraction: float) -> Parts:
    """Write both parts of the training rows as JSONL and return the files.

    The rows are those of `dataset_train_split`, with the columns they are stored with. The same
    rows and fraction give the same files.

    Args:
        data: Names the rows.
        folder: Where the files go; it is made.
        fraction: Share of the rows that is held out, in (0, 1); at least one row is.

    Raises:
        DataError: If the rows cannot be read.
        ConfigError: If no row would be left to train on.
    """
    rows: Dataset = load(kind_of_data(data).training_rows)(data)
    order = list(range(len(rows)))
    random.Random(_SEED).shuffle(order)
    num_held_out = max(round(fraction * len(rows)), 1)
    if num_held_out >= len(rows):
        raise ConfigError(
            f"`held_out_fraction` is {fraction}, which leaves none of the {len(rows)} training "
            "rows to train on. Lower it, or leave `sweep` out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    parts = Parts.of(folder)
    for file, chosen in zip(parts, (order[num_held_out:], order[:num_held_out]), strict=True):
        _write(rows.select(sorted(chosen)), file)
    return parts


def _write(rows: Dataset, file: Path) -> None:
    """Write rows by rename; a class of the hub's is written by its name, a time as its text."""
    names = {
        column: feature
        for column, feature in rows.features.items()
        if isinstance(feature, ClassLabel)
    }
    with staged_file(file) as stage, stage.open("w", encoding="utf-8", newline="\n") as lines:
        for row in iterate_rows(rows, rows.column_names):
            for column, feature in names.items():
                label = row[column]
                row[column] = label if label is None or label < 0 else feature.int2str(label)
            lines.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
