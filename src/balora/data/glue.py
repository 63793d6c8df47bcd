"""The tasks of GLUE in one table, as the hub stores them and as their own TSV files do.

Two facts about the published files. The validation rows of CoLA are the in-domain part of its
authors (527 rows) followed by the out-of-domain part (516), so ``validation[:527]`` is what does
not overlap with ``out_of_domain_dev.tsv``. QQP has two training rows whose second question is
empty; they are part of the task and are kept.

The numbers in the test splits are -1 or missing on purpose; only validation rows can be scored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from balora.data.opening import stem
from balora.data.sources import LocalFiles
from balora.data.tables import first_values

GLUE_HUB_ID = "nyu-mll/glue"
"""Where the hub keeps all of GLUE; each task is a configuration of it."""


@dataclass(frozen=True)
class TaskColumns:
    """Where the texts and the label of a row stand."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task of GLUE: what its columns, classes and splits are called."""

    config: str
    """The configuration of `GLUE_HUB_ID`."""
    columns: tuple[TaskColumns, ...]
    """On the hub, and in the TSV files where these differ."""
    class_names: tuple[str, ...] | None
    """In the hub's order; None for regression."""
    validation: Mapping[str, str] = field(default_factory=lambda: {"validation": "validation"})
    """What the results are called, and the split on the hub."""
    tsv_has_numbers: bool = False
    """Whether the TSV files write 0 and 1 instead of the names of the classes."""
    tsv_columns: tuple[str, ...] | None = None
    """The columns of TSV files that do not name them on their first line."""
    has_empty_texts: bool = False
    """Whether empty texts were published as a part of the task."""

    @property
    def num_texts(self) -> int:
        """Texts of a row, 1 or 2."""
        return len(self.columns[0].texts)


_SENTENCE = TaskColumns(("sentence",), "label")
_SENTENCES = TaskColumns(("sentence1", "sentence2"), "label")
_QUESTIONS = ("question1", "question2")

GLUE_TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(
        config="cola",
        columns=(_SENTENCE,),
        class_names=("unacceptable", "acceptable"),
        tsv_has_numbers=True,
        tsv_columns=("source", "label", "star", "sentence"),
    ),
    "sst2": GlueTask(
        config="sst2",
        columns=(_SENTENCE,),
        class_names=("negative", "positive"),
        tsv_has_numbers=True,
    ),
    "mrpc": GlueTask(
        config="mrpc",
        columns=(_SENTENCES, TaskColumns(("#1 String", "#2 String"), "Quality")),
        class_names=("not_equivalent", "equivalent"),
        tsv_has_numbers=True,
    ),
    "stsb": GlueTask(
        config="stsb",
        columns=(_SENTENCES, TaskColumns(("sentence1", "sentence2"), "score")),
        class_names=None,
    ),
    "qqp": GlueTask(
        config="qqp",
        columns=(TaskColumns(_QUESTIONS, "label"), TaskColumns(_QUESTIONS, "is_duplicate")),
        class_names=("not_duplicate", "duplicate"),
        tsv_has_numbers=True,
        has_empty_texts=True,
    ),
    "mnli": GlueTask(
        config="mnli",
        columns=(
            TaskColumns(("premise", "hypothesis"), "label"),
            TaskColumns(("sentence1", "sentence2"), "gold_label"),
        ),
        class_names=("entailment", "neutral", "contradiction"),
        validation={"matched": "validation_matched", "mismatched": "validation_mismatched"},
    ),
    "qnli": GlueTask(
        config="qnli",
        columns=(TaskColumns(("question", "sentence"), "label"),),
        class_names=("entailment", "not_entailment"),
    ),
    "rte": GlueTask(
        config="rte",
        columns=(_SENTENCES,),
        class_names=("entailment", "not_entailment"),
    ),
}

_PUBLISHED = {  # how the files of the TSV distribution and of the hub are called, to splits
    "train": "train",
    "in_domain_train": "train",
    "dev": "validation",
    "in_domain_dev": "validation",
    "validation": "validation",
    "test": "test",
} | {
    f"{name}_{part}": f"{split}_{part}"
    for name, split in (("dev", "validation"), ("validation", "validation"), ("test", "test"))
    for part in ("matched", "mismatched")
}


def published_files(files: LocalFiles) -> LocalFiles:
    """Return the files of a folder by the splits of GLUE, where they have their published names.

    Whatever else lies in that folder, such as CoLA's ``out_of_domain_dev.tsv``, is then left out.
    A single file, and a folder without a published ``train`` or validation file, stay as they are.
    """
    if not Path(files.name).expanduser().is_dir():
        return files
    found: dict[str, list[Path]] = {}
    for file in sorted(file for of_split in files.files.values() for file in of_split):
        name = re.sub(r"-\d+-of-\d+$", "", stem(file))
        if name in _PUBLISHED:
            found.setdefault(_PUBLISHED[name], []).append(file)
    is_published = any(split != "test" for split in found)
    return replace(files, files=found) if is_published else files


def with_tsv_columns(files: LocalFiles, task: GlueTask, split: str) -> LocalFiles:
    """Return the files with the names of their columns, where the first line does not give them.

    That is so when the first line of the split has as many values as the task has columns and a
    class where the class belongs.
    """
    of_split = files.files.get(split)
    if task.tsv_columns is None or files.kind != "tsv" or not of_split:
        return files
    first = first_values(of_split[0])
    label = task.tsv_columns.index(task.columns[0].label)
    is_row = len(first) == len(task.tsv_columns) and first[label] in ("0", "1")
    return replace(files, column_names=task.tsv_columns) if is_row else files


def evaluated_on(settings: Mapping[str, Any]) -> str:
    """Return the data set that a recipe's fields evaluate on: a hub id, a file or a folder.

    Without one it is GLUE where there is a task, and data that are not named otherwise.
    """
    named = settings.get("eval_dataset_name") or settings.get("dataset_name")
    return str(named or (GLUE_HUB_ID if settings.get("task") else "own data"))
