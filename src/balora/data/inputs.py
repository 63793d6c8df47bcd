"""Which data sets a classification run reads, and which of their rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from balora.config.classification import ClassificationConfig, OutOfDomainConfig
from balora.data.glue import GLUE_HUB_ID, GLUE_TASKS, published_files
from balora.data.sources import LocalFiles, find_local
from balora.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Input:
    """One data set to read, and what the user said about its columns."""

    name: str
    """A hub id, a file or a folder."""
    task: str
    """The task of the run."""
    split: str
    """Which of its rows."""
    subset: str | None = None
    """The configuration on the hub."""
    texts: tuple[str, ...] | None = None
    """The columns of the texts; None finds them."""
    label: str | None = None
    """The column of the class or target; None finds it."""
    group: str | None = None
    """The column of the group; None reads none."""
    num_texts: int | None = None
    """Texts of a row where that is known before."""
    name_setting: str = "dataset_name"
    """What names the data set, for messages."""
    split_setting: str = "dataset_train_split"
    """What names the split, for messages."""


def find_files(name: str, task: str, *, setting: str = "dataset_name") -> LocalFiles | None:
    """Return the local files of a data set, by GLUE's own names for a task of it.

    Raises:
        DataError: As `find_local`.
    """
    files = find_local(name, setting=setting)
    return published_files(files) if files and task in GLUE_TASKS else files


def training_input(config: ClassificationConfig) -> Input:
    """Return the training rows of the run."""
    task = GLUE_TASKS.get(config.task)
    is_on_hub = config.dataset_name is None and task is not None
    return Input(
        name=config.dataset_name or GLUE_HUB_ID,
        task=config.task,
        split=config.dataset_train_split,
        subset=task.config if is_on_hub and task else config.dataset_config,
        texts=_named_texts(config.text_column, config.text_pair_column),
        label=config.label_column,
        num_texts=task.num_texts if task else None,
    )


def evaluation_inputs(config: ClassificationConfig) -> dict[str, Input]:
    """Return the rows that the run is evaluated on, by the name of their results.

    Raises:
        DataError: If the data are on disk and do not have the split that they should have.
    """
    training = training_input(config)
    source = replace(training, group=config.group_column, split_setting="dataset_test_split")
    if config.eval_dataset_name is not None:
        source = replace(source, name=config.eval_dataset_name, name_setting="eval_dataset_name")
    if source.name != training.name:
        source = replace(source, subset=None)
    return {
        key: replace(source, split=split)
        for key, split in _evaluation_splits(config, source).items()
    }


def _evaluation_splits(config: ClassificationConfig, source: Input) -> dict[str, str]:
    if config.dataset_test_split is not None:
        return {"validation": config.dataset_test_split}
    task = GLUE_TASKS.get(config.task)
    if config.eval_dataset_name is None and task is None:
        return {}
    files = find_files(source.name, config.task, setting=source.name_setting)
    if config.eval_dataset_name is not None and _is_one_file(files):
        return {"validation": "train"}
    splits = dict(task.validation) if task else {"validation": "validation"}
    missing = [split for split in splits.values() if files and split not in files.files]
    if files and missing:
        raise DataError(
            f"{source.name} has no split `{missing[0]}` to evaluate on, only "
            f"{', '.join(files.files)}. Name the rows with `dataset_test_split`, such as "
            "train[90%:], or another file with `eval_dataset_name`."
        )
    return splits


def out_of_domain_input(config: ClassificationConfig, entry: OutOfDomainConfig) -> Input:
    """Return the rows of an entry of `out_of_domain`."""
    training = training_input(config)
    files = find_files(entry.dataset_name, config.task)
    return Input(
        name=entry.dataset_name,
        task=config.task,
        split=entry.split or ("train" if _is_one_file(files) else "validation"),
        subset=entry.dataset_config,
        texts=_named_texts(entry.text_column, entry.text_pair_column) or training.texts,
        label=entry.label_column or training.label,
        group=entry.group_column,
        split_setting="split",
    )


def _named_texts(*columns: str | None) -> tuple[str, ...] | None:
    return tuple(column for column in columns if column is not None) or None


def _is_one_file(files: LocalFiles | None) -> bool:
    return files is not None and Path(files.name).expanduser().is_file()
