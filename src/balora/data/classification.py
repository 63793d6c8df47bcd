"""Load the rows of a classification or regression run: training, evaluation, out of domain.

Labels become class indices (or numbers to predict), and every row is checked before a model is
loaded. Only training rows are transformed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Value

from balora.config.classification import ClassificationConfig, OutOfDomainConfig
from balora.config.words import suggestion
from balora.data.glue import GLUE_TASKS
from balora.data.inputs import Input, evaluation_inputs, out_of_domain_input, training_input
from balora.data.labels import (
    class_indices,
    class_lookup,
    label_sets,
    mapped_labels,
    names_of_classes,
    read_names,
    read_targets,
    shown,
)
from balora.data.once import once
from balora.data.provenance import LocatedRows
from balora.data.reading import (
    InputColumns,
    check_texts,
    num_texts_of,
    read_input,
    texts_alone,
)
from balora.data.tokens import tokenize_rows
from balora.data.transforms import transform_classes, transform_targets
from balora.errors import ConfigError, DataError

__all__ = [
    "ClassificationRows",
    "load_evaluation_rows",
    "load_out_of_domain_rows",
    "load_training_rows",
    "tokenize_rows",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassificationRows(LocatedRows):
    """Rows to classify or to score, checked.

    ``dataset`` has the columns ``text``, ``text_pair`` where the task has two texts, ``label``
    (int64 class index, or float64 target) and ``group`` where `group_column` is set.
    """

    class_names: tuple[str, ...] | None = None
    """What the values of ``label`` are called; None for regression."""
    class_sets: tuple[tuple[int, ...], ...] | None = None
    """Out of domain: label j stands for these classes of the model; None: for class j."""
    transforms: Mapping[str, Any] = field(default_factory=dict)
    """What label noise and class fractions did, for JSON; empty when none was asked for."""


@once
def load_training_rows(config: ClassificationConfig) -> ClassificationRows:
    """Load the training rows, with `class_fractions` and then `label_noise` applied.

    The classes are those of the GLUE task, `class_names`, or those of the data.

    Raises:
        DataError: If the data cannot be read, a column is missing, there are fewer than two
            classes, or a text or label cannot be used: the first such row by file and line.
        ConfigError: If `class_fractions` names no class.
    """
    rows, columns = read_input(training_input(config))
    notes = _notes(check_texts(rows, columns.texts, task=config.task, purpose="trained on"))
    names: tuple[str, ...] | None = None
    if config.is_regression:
        targets = read_targets(rows, columns.label, task=config.task, purpose="trained on")
        done = transform_targets(targets, noise=config.label_noise, seed=config.transform_seed)
    else:
        labels, names, numbers = _training_labels(rows, columns, config)
        notes += numbers + _check_classes(rows, columns, labels, names)
        _check_fractions(config, names)
        done = transform_classes(
            labels,
            names,
            fractions=config.named_fractions,
            noise=config.label_noise,
            seed=config.transform_seed,
        )
    if len(done.kept) < len(rows.dataset):
        rows = rows.select(done.kept.tolist())
    return _assemble(rows, columns, done.labels, notes, class_names=names, transforms=done.record)


@once
def load_evaluation_rows(
    config: ClassificationConfig, class_names: Sequence[str] | None
) -> dict[str, ClassificationRows]:
    """Load the rows to evaluate on, in the classes of the training data.

    Args:
        config: A task of GLUE has its own validation splits. Data of one's own name theirs with
            `dataset_test_split` or `eval_dataset_name`: of that a file is taken whole, otherwise
            its split ``validation``.
        class_names: Those of the training rows; None for regression.

    Returns:
        The rows as ``validation``, those of MNLI as ``matched`` and ``mismatched``; empty when
        data of one's own name none.

    Raises:
        DataError: As `load_training_rows`, and if there is no such split.
    """
    # names that the user or the task has given may be written as numbers; found ones may not
    is_declared = config.task in GLUE_TASKS or config.class_names is not None
    is_elsewhere = config.eval_dataset_name is not None
    num_texts = num_texts_of(training_input(config)) if is_elsewhere else None
    return {
        key: _read_labelled(
            source if num_texts is None else replace(source, num_texts=num_texts),
            class_names,
            with_numbers=is_declared,
        )
        for key, source in evaluation_inputs(config).items()
    }


@once
def load_out_of_domain_rows(
    config: ClassificationConfig, class_names: Sequence[str] | None
) -> dict[str, ClassificationRows]:
    """Load the data sets of `out_of_domain`, by the name of their entry.

    Columns that an entry does not name are found as in the training data. Without a `label_map`
    its labels are the classes of the task. With one, label j of the rows stands for the classes
    `class_sets[j]`; rows that it sends to null are dropped, and a note says how many.

    Args:
        config: Of the run.
        class_names: Those of the training rows; None for regression.

    Raises:
        DataError: As `load_training_rows`; the message starts with the name of the entry.
        ConfigError: If a `label_map` leads to what is no class.
    """
    entries = config.out_of_domain_sets
    num_texts = num_texts_of(training_input(config)) if entries else None
    loaded = {}
    for entry in entries:
        try:
            source = replace(out_of_domain_input(config, entry), num_texts=num_texts)
            loaded[entry.name] = _read_out_of_domain(source, entry, class_names)
        except (ConfigError, DataError) as error:
            kind = ConfigError if isinstance(error, ConfigError) else DataError
            raise kind(f"out_of_domain, `{entry.name}`: {error}") from error
    return loaded


def _read_out_of_domain(
    source: Input, entry: OutOfDomainConfig, class_names: Sequence[str] | None
) -> ClassificationRows:
    if class_names is not None and entry.label_map is not None:
        return _read_mapped(source, entry, class_names)
    task = GLUE_TASKS.get(source.task)
    return _read_labelled(
        source, class_names, with_numbers=task is not None and task.tsv_has_numbers
    )


def _training_labels(
    rows: LocatedRows, columns: InputColumns, config: ClassificationConfig
) -> tuple[npt.NDArray[np.int64], tuple[str, ...], list[str]]:
    """Return class indices, the names of the classes, and notes on the labels."""
    labels = read_names(rows, columns.label, purpose="trained on")
    is_glue = config.task in GLUE_TASKS
    declared = GLUE_TASKS[config.task].class_names if is_glue else config.named_classes
    names = declared or names_of_classes(rows, columns.label, labels)
    lookup = class_lookup(names, with_numbers=True)  # found names cover every label already
    indices = class_indices(rows, labels, lookup, names, column=columns.label, purpose="trained on")
    return indices, names, _numbers_note(rows, columns, labels, names, task=config.task)


def _check_classes(
    rows: LocatedRows,
    columns: InputColumns,
    labels: npt.NDArray[np.int64],
    names: tuple[str, ...],
) -> list[str]:
    """Refuse data of a single class; return a note on classes without rows."""
    counts = np.bincount(labels, minlength=len(names))
    if (counts > 0).sum() < 2:
        raise DataError(
            f"every row of {rows.name} ({rows.split}) has the label `{names[int(labels[0])]}` in "
            f"`{columns.label}`, and one class leaves nothing to learn. Name rows of two classes "
            "or more, or another `label_column`."
        )
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if not absent:
        return []
    return [f"{rows.name} ({rows.split}) has no row of the classes {shown(absent)}."]


def _check_fractions(config: ClassificationConfig, names: tuple[str, ...]) -> None:
    for name in config.named_fractions:
        if name not in names:
            raise ConfigError(
                f"`class_fractions` names `{name}`, which is none of the classes {shown(names)}"
                f"{suggestion(name, names)}."
            )


def _read_labelled(
    source: Input, class_names: Sequence[str] | None, *, with_numbers: bool
) -> ClassificationRows:
    """Return the rows of a data set that has the classes of the task, or its targets."""
    rows, columns = read_input(source)
    notes = _notes(check_texts(rows, columns.texts, task=source.task, purpose="evaluated on"))
    if class_names is None:
        targets = read_targets(rows, columns.label, task=source.task, purpose="evaluated on")
        return _assemble(rows, columns, targets, notes)
    labels = read_names(rows, columns.label, purpose="evaluated on")
    indices = class_indices(
        rows,
        labels,
        class_lookup(class_names, with_numbers=with_numbers),
        class_names,
        column=columns.label,
        purpose="evaluated on",
    )
    notes += _numbers_note(rows, columns, labels, class_names, task=source.task)
    return _assemble(rows, columns, indices, notes, class_names=tuple(class_names))


def _numbers_note(
    rows: LocatedRows,
    columns: InputColumns,
    labels: Sequence[str],
    class_names: Sequence[str],
    *,
    task: str,
) -> list[str]:
    """Say which classes the numbers in own data are taken for; those of GLUE's tasks are known."""
    if task in GLUE_TASKS or set(labels) <= set(class_names):
        return []
    meaning = shown([f"{index} as {name}" for index, name in enumerate(class_names)])
    return [
        f"`{columns.label}` of {rows.name} ({rows.split}) has numbers for the classes, read in the "
        f"order of `class_names`: {meaning}. If they mean others, write the names."
    ]


def _read_mapped(
    source: Input, entry: OutOfDomainConfig, class_names: Sequence[str]
) -> ClassificationRows:
    """Return the rows of a data set whose labels `label_map` puts into classes of the task."""
    rows, columns = read_input(source)
    sets = label_sets(entry.mapped_labels, class_names)
    labels = read_names(rows, columns.label, purpose="evaluated on")
    kept, indices = mapped_labels(rows, labels, sets, column=columns.label)
    notes = []
    if len(kept) < len(labels):
        dropped = [label for label, index in sets.indices.items() if index is None]
        notes = [
            f"{len(labels) - len(kept)} of {len(labels)} rows of {rows.name} ({rows.split}) are "
            f"dropped: `label_map` sends {shown(dropped)} to null."
        ]
        rows = rows.select(kept.tolist())
    notes += _notes(check_texts(rows, columns.texts, task=source.task, purpose="evaluated on"))
    return _assemble(
        rows, columns, indices, notes, class_names=sets.names, class_sets=sets.class_sets
    )


def _notes(note: str | None) -> list[str]:
    return [] if note is None else [note]


def _assemble(
    rows: LocatedRows,
    columns: InputColumns,
    labels: npt.NDArray[Any],
    notes: list[str],
    **what: Any,
) -> ClassificationRows:
    """Return checked rows under the names of `ClassificationRows`, and say the notes."""
    dataset = texts_alone(rows.dataset, columns.texts)
    dataset = dataset.add_column("label", labels, feature=Value(str(labels.dtype)))
    if columns.group is not None:
        groups = read_names(rows, columns.group, purpose="evaluated on", what="group")
        dataset = dataset.add_column("group", groups, feature=Value("string"))
    for note in notes:
        logger.warning(note)
    return ClassificationRows(
        dataset,
        rows.name,
        rows.split,
        tuple(notes),
        rows.files,
        rows.split_sizes,
        rows.source_rows,
        **what,
    )
