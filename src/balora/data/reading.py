"""Read one data set of a classification run, and find its texts, its label and its group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset

from balora.config import ClassificationConfig
from balora.data.columns import listed
from balora.data.glue import GLUE_TASKS, TaskColumns, with_tsv_columns
from balora.data.inputs import Input, find_files, training_input
from balora.data.layouts import texts_problem
from balora.data.provenance import LocatedRows, iterate_rows
from balora.data.sources import load_rows
from balora.data.values import as_text
from balora.errors import DataError

USUAL_TEXTS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text",),
    ("sentence",),
)
"""Where own data have their texts; the first that are all there count, pairs before single ones."""

USUAL_LABEL = "label"
"""Where own data have their class or target."""


@dataclass(frozen=True)
class InputColumns:
    """The columns that are read."""

    texts: tuple[str, ...]
    label: str
    group: str | None = None


def read_input(source: Input) -> tuple[LocatedRows, InputColumns]:
    """Return the rows as they are stored, and which of their columns count.

    Raises:
        DataError: If they cannot be read, there are none, or a column is missing.
    """
    rows = read_rows(source)
    return rows, pick_columns(rows.dataset, source)


def read_rows(source: Input) -> LocatedRows:
    """Return the rows as they are stored.

    Raises:
        DataError: If they cannot be read, or there are none.
    """
    files = find_files(source.name, source.task, setting=source.name_setting)
    if files is not None and source.task in GLUE_TASKS:
        first_split = re.split(r"[\[(+]", source.split.strip())[0].strip()
        files = with_tsv_columns(files, GLUE_TASKS[source.task], first_split)
    raw, sizes = load_rows(
        source.name, files, source.subset, source.split, setting=source.split_setting
    )
    return LocatedRows(raw, source.name, source.split, (), files, tuple(sizes.items()))


def num_texts_of(source: Input) -> int:
    """Return how many texts a row has, 1 or 2; the data are read only if nothing else says it.

    Raises:
        DataError: As `read_input`.
    """
    if source.num_texts is not None:
        return source.num_texts
    return len(source.texts or read_input(source)[1].texts)


def pick_columns(dataset: Dataset, source: Input) -> InputColumns:
    """Return the columns that the user named, else the task's own, else the usual ones.

    Raises:
        DataError: If one is missing, with those that are there.
    """
    texts = pick_texts(dataset, source)
    columns = dataset.column_names
    there = f"its columns are {listed(columns)}"
    _check_named(columns, {"label_column": source.label, "group_column": source.group}, source)
    label = source.label or _find_label(columns, source, there)
    if label in texts:
        raise DataError(
            f"`{label}` of {source.name} would be both a text and the label. Name the columns with "
            "`text_column` and `label_column`."
        )
    return InputColumns(texts, label, source.group)


def pick_texts(dataset: Dataset, source: Input) -> tuple[str, ...]:
    """Return the columns of the texts: those that the user named, the task's own, or usual ones.

    Raises:
        DataError: If one is missing, with the columns that are there, or there are more or fewer
            than in the training data.
    """
    columns = dataset.column_names
    named = (*(source.texts or ()), None, None)[:2]
    settings = dict(zip(("text_column", "text_pair_column"), named, strict=True))
    _check_named(columns, settings, source)
    texts = source.texts or _find_texts(columns, source, f"its columns are {listed(columns)}")
    if source.num_texts not in (None, len(texts)):
        raise DataError(
            f"{source.name} is read with {_texts(len(texts))} in a row ({', '.join(texts)}), but "
            f"the training data have {_texts(source.num_texts)}. Set `text_column` "
            f"{'and `text_pair_column`' if source.num_texts == 2 else 'alone'}."
        )
    return texts


def _check_named(columns: list[str], named: Mapping[str, str | None], source: Input) -> None:
    for setting, column in named.items():
        if column is not None and column not in columns:
            raise DataError(
                f"`{setting}` is {column}, but {source.name} has no column of that name; its "
                f"columns are {listed(columns)}."
            )


def _texts(number: int | None) -> str:
    return "two texts" if number == 2 else "one text"


def _known_columns(task: str) -> tuple[TaskColumns, ...]:
    if task in GLUE_TASKS:
        return GLUE_TASKS[task].columns
    return tuple(TaskColumns(texts, USUAL_LABEL) for texts in USUAL_TEXTS)


def _find_texts(columns: list[str], source: Input, there: str) -> tuple[str, ...]:
    known = [of.texts for of in _known_columns(source.task)]
    if source.num_texts is not None:
        known = [texts for texts in known if len(texts) == source.num_texts]
    for texts in known:
        if set(texts) <= set(columns):
            return texts
    names = "; ".join(" and ".join(texts) for texts in dict.fromkeys(known))
    raise DataError(
        f"{source.name} has none of the usual columns of text ({names}); {there}. Name "
        f"{_settings_for(source.num_texts)}."
    )


def _settings_for(num_texts: int | None) -> str:
    if num_texts == 1:
        return "it with `text_column`"
    optional = "" if num_texts == 2 else ", for pairs,"
    return f"them with `text_column` and{optional} `text_pair_column`"


def _find_label(columns: list[str], source: Input, there: str) -> str:
    known = list(dict.fromkeys(of.label for of in _known_columns(source.task)))
    for label in known:
        if label in columns:
            return label
    names = " or ".join(f"`{label}`" for label in known)
    raise DataError(
        f"{source.name} has no column {names}; {there}. Name the column of the labels with "
        "`label_column`."
    )


def check_texts(rows: LocatedRows, texts: Sequence[str], *, task: str, purpose: str) -> str | None:
    """Return a note on empty texts that belong to the task, None where there are none.

    Args:
        rows: As they are stored.
        texts: The columns of the texts.
        task: The task of the run; an empty text belongs to some of GLUE's.
        purpose: What is done with rows, such as "trained on", for the message.

    Raises:
        DataError: For the first text that is null, no text, or empty, by file and line.
    """
    keeps_empty = task in GLUE_TASKS and GLUE_TASKS[task].has_empty_texts
    bad: list[int] = []
    problem, num_empty = "", 0
    for number, row in enumerate(iterate_rows(rows.dataset, texts)):
        found = texts_problem(row)
        if found is None:
            continue
        if keeps_empty and all(isinstance(text, str) for text in row.values()):
            num_empty += 1
            continue
        problem = problem or found
        bad.append(number)
    if bad:
        rows.refuse(bad, problem, purpose=purpose)
    if not num_empty:
        return None
    return (
        f"{num_empty} of {len(rows.dataset)} rows of {rows.name} ({rows.split}) have an empty "
        f"text; {task} was published so, and they are kept."
    )


def training_rows(config: ClassificationConfig) -> Dataset:
    """Return the rows that a run trains on, with the columns they are stored with.

    Raises:
        DataError: As `read_input`.
    """
    return read_input(training_input(config))[0].dataset


def texts_alone(dataset: Dataset, texts: Sequence[str]) -> Dataset:
    """Return the texts of each row, one or two, as the columns ``text`` and ``text_pair``."""
    names = dict(zip(texts, ("text", "text_pair"), strict=False))
    dataset = dataset.select_columns(list(names)).rename_columns(names)
    for name in names.values():
        dataset = as_text(dataset, name)
    return dataset
