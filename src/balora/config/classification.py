"""The data of a classification or regression run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from typing import Annotated, Any, Literal

from balora.config.fields import field_problems
from balora.config.glue_x import GLUE_X
from balora.config.glue_x import SETS as GLUE_X_SETS
from balora.config.glue_x import entries as glue_x_entries
from balora.config.parts import Count, Seed, read_part, refuse
from balora.config.rules import Form, Interval, NotEmpty, PathTo
from balora.config.words import suggestion
from balora.errors import ConfigError

ClassificationTask = Literal[
    "cola",
    "sst2",
    "mrpc",
    "stsb",
    "qqp",
    "mnli",
    "qnli",
    "rte",
    "classification",
    "regression",
]

OWN_TASKS = ("classification", "regression")
REGRESSION_TASKS = ("stsb", "regression")
SINGLE_TEXT_TASKS = ("cola", "sst2")

Fraction = Annotated[float, Interval(gt=0, le=1)]

_LABEL_MAP = Form("{entailment: entailment, non-entailment: [neutral, contradiction]}")
_FRACTIONS = Form("{positive: 0.1}")
GlueX = Literal["glue-x"]
_FILES = Form("{flipkart: flipkart.csv}")
_SETS = Form("[{name: hans, dataset_name: hans.jsonl}]")


def label_text(value: object) -> str | None:
    """Return the name of a class as it stands in data or in a recipe; None for what is no name.

    Whole numbers and true / false are names too: 1 and 1.0 are ``"1"``, true is ``"true"``. Whole
    numbers of any size and decimals have all their digits. A number with a point names a class only
    where it stands for one whole number alone, that is up to 2^53.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) <= 2**53 else None
    return str(value).strip() or None if isinstance(value, str | int | Decimal) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfDomainConfig:
    """One more data set that the finished model is evaluated on: same task, another origin."""

    name: str
    """What the results of this data set are called."""

    dataset_name: Annotated[str, PathTo("data")]
    """A hub id, a local .jsonl, .json, .csv, .tsv or .parquet file, or a folder of them."""

    dataset_config: str | None = None
    """Configuration (subset) of the data set, where it is one on the hub."""

    split: str | None = None
    """Rows to evaluate on; null takes a file whole, otherwise its split `validation`."""

    text_column: str | None = None
    """Column with the text, or the first of two; null as in the training data."""

    text_pair_column: str | None = None
    """Column with the second text; null as in the training data."""

    label_column: str | None = None
    """Column with the class or the target; null as in the training data."""

    group_column: str | None = None
    """Column with the group of a row, for the accuracy of the worst group."""

    label_map: Annotated[dict[Any, Any] | None, NotEmpty(), _LABEL_MAP] = None
    """From a label in the data to a class of the task, several in a list, or null to skip rows."""

    def __post_init__(self) -> None:
        problems = field_problems(self, lambda: _column_problems(self), self._map_problems)
        refuse(f"`out_of_domain`, `{self.name}`", problems)

    def _map_problems(self) -> list[str]:
        problems = []
        for label, classes in (self.label_map or {}).items():
            if label_text(label) is None:
                problems.append(f"`label_map` has the key {label!r}, which is no label")
            listed = classes if isinstance(classes, list) else [classes]
            if classes is not None and (not listed or None in map(label_text, listed)):
                problems.append(
                    f"`label_map` sends {label} to {classes!r}; write a class of the task, a list "
                    "of classes, or null to leave its rows out"
                )
        if self.label_map and len(self.mapped_labels) < len(self.label_map):
            problems.append("`label_map` names a label twice, as a number and as text")
        return problems or self._set_problems()

    def _set_problems(self) -> list[str]:
        """Say where the sets of classes leave nothing to tell apart, or share a class."""
        sets = list(
            dict.fromkeys(frozenset(names) for names in self.mapped_labels.values() if names)
        )
        if self.label_map is not None and len(sets) < 2:
            only = f" (`{' or '.join(sorted(sets[0]))}` alone)" if sets else ""
            return [
                f"`label_map` leads to fewer than two classes or sets of classes{only}, which "
                "leaves nothing to tell apart; name every class that counts"
            ]
        shared = sorted({name for a, b in combinations(sets, 2) for name in a & b})
        return [
            f"`label_map` has `{name}` in two different sets of classes; let each class stand in "
            "one"
            for name in shared[:1]
        ]

    @property
    def mapped_labels(self) -> dict[str, tuple[str, ...] | None]:
        """`label_map` as text: label to classes, None for rows that are dropped."""
        return {
            str(label_text(label)): None if classes is None else _names(classes)
            for label, classes in (self.label_map or {}).items()
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> OutOfDomainConfig:
        """Return the entry that a recipe holds as a mapping.

        Raises:
            ConfigError: If a key is unknown or missing, or a value cannot work.
        """
        part = f"`out_of_domain`, `{mapping.get('name', '?')}`"
        return read_part(cls, mapping, part=part, of="an entry")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationConfig:
    """Which rows to classify (or to score), and what is done to the training rows before.

    Raises:
        ConfigError: If a value has the wrong type or cannot work; all problems in one message.
    """

    task: ClassificationTask
    """A GLUE task by name, or classification or regression for data of your own."""

    dataset_name: Annotated[str | None, PathTo("data")] = None
    """Hub id, .jsonl, .json, .csv, .tsv or .parquet file, or folder; null takes GLUE on the hub."""

    dataset_config: str | None = None
    """Configuration (subset) of `dataset_name`, where that is a data set on the hub."""

    dataset_train_split: str = "train"
    """Rows to train on, such as train, train[:1000] or train[10%:]."""

    dataset_test_split: str | None = None
    """Rows to evaluate on; null takes a GLUE task's validation splits, of other data none."""

    eval_dataset_name: Annotated[str | None, PathTo("data")] = None
    """Another data set to evaluate on, named like `dataset_name`; null takes the same one."""

    text_column: str | None = None
    """Column with the text, or the first of two; null finds the task's own or a usual name."""

    text_pair_column: str | None = None
    """Column with the second text; needs `text_column`."""

    label_column: str | None = None
    """Column with the class or the target; null finds the task's own or `label`."""

    group_column: str | None = None
    """Column with the group of a row, for the accuracy of the worst group in evaluation."""

    class_names: Annotated[list[Any] | None, Form("[negative, positive]")] = None
    """Classes in the order of the model's outputs; null sorts the classes of the training data."""

    max_length: Count = 128
    """Longest input in tokens; the longer text of a row is cut first."""

    label_noise: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of training rows given another class at random, or in regression another's target."""

    class_fractions: Annotated[dict[Any, Fraction] | None, NotEmpty(), _FRACTIONS] = None
    """From a class to the fraction of its training rows that is kept, to make data imbalanced."""

    transform_seed: Seed = 0
    """Seed of label noise and class fractions, independent of the seed of the run."""

    ignore_mismatched_sizes: bool = False
    """Start with a new head where the checkpoint's own is for another number of classes."""

    out_of_domain: Annotated[list[Any] | dict[Any, Any] | GlueX | None, _SETS] = None
    """Other data sets to evaluate on: mappings in a list or by name, or glue-x."""

    glue_x_files: Annotated[dict[str, Any] | None, NotEmpty(), _FILES] = None
    """With glue-x: from a set to its file, a mapping of an entry's fields, or null to drop it."""

    glue_x_whole: bool = False
    """With glue-x: read the splits that its authors put together, which can be millions of rows."""

    def __post_init__(self) -> None:
        problems = field_problems(
            self,
            self._data_problems,
            self._class_problems,
            self._transform_problems,
            self._out_of_domain_problems,
        )
        refuse("data", problems)

    @property
    def is_regression(self) -> bool:
        """True when a row has a number to predict instead of a class."""
        return self.task in REGRESSION_TASKS

    @property
    def named_classes(self) -> tuple[str, ...] | None:
        """`class_names` as text."""
        return _names(self.class_names) if self.class_names is not None else None

    @property
    def named_fractions(self) -> dict[str, float]:
        """`class_fractions` with class names as text."""
        return {str(label_text(name)): f for name, f in (self.class_fractions or {}).items()}

    @property
    def out_of_domain_sets(self) -> tuple[OutOfDomainConfig, ...]:
        """The entries of `out_of_domain`."""
        return tuple(OutOfDomainConfig.from_mapping(entry) for entry in self._entries())

    def check_training(self, training: Mapping[str, Any]) -> None:
        """Refuse nothing: the rows of a classifier are always read whole."""

    @property
    def is_evaluated(self) -> bool:
        """True when there are rows to evaluate on: a GLUE task always has its own."""
        is_named = self.eval_dataset_name is not None or self.dataset_test_split is not None
        return is_named or self.task not in OWN_TASKS

    @property
    def named_sets(self) -> dict[str, str | None]:
        """Every data set by the field that names it, those out of domain by their own names."""
        others = {f"out_of_domain.{one.name}": one.dataset_name for one in self.out_of_domain_sets}
        own = {"dataset_name": self.dataset_name, "eval_dataset_name": self.eval_dataset_name}
        return {**own, **others}

    def _entries(self) -> list[Any]:
        """Return `out_of_domain` as a list; a mapping gives each entry its name."""
        if self.out_of_domain == GLUE_X:
            files = self.glue_x_files or {}
            return glue_x_entries(self.task, files, is_whole=self.glue_x_whole)
        if not isinstance(self.out_of_domain, dict):
            return list(self.out_of_domain or ())
        return [
            {"name": name, **entry} if isinstance(entry, Mapping) else entry
            for name, entry in self.out_of_domain.items()
        ]

    def _data_problems(self) -> list[str]:
        problems = _column_problems(self) + _pair_problems(self, self.task)
        if self.dataset_name is None:
            if self.task in OWN_TASKS:
                problems.append(
                    f"`dataset_name` is missing, and task {self.task} has no data of its own"
                )
            if self.dataset_config is not None:
                problems.append(
                    f"`dataset_config` is {self.dataset_config}, but without `dataset_name` the "
                    "task says which part of GLUE is read; leave it out"
                )
        problems += self._group_problems()
        return problems

    def _group_problems(self) -> list[str]:
        if self.group_column is None:
            return []
        if self.is_regression:
            return [f"`group_column` is set, but task {self.task} has no accuracy; leave it out"]
        if not self.is_evaluated:
            return [
                f"`group_column` is {self.group_column}, but it only acts in evaluation; set "
                "`dataset_test_split` or `eval_dataset_name`"
            ]
        return []

    def _class_problems(self) -> list[str]:
        if self.class_names is None:
            return []
        if self.task != "classification":
            return [f"`class_names` is set, but task {self.task} has its own; leave it out"]
        odd = [
            name
            for name in self.class_names
            if isinstance(name, bool) or not isinstance(name, str | int) or label_text(name) is None
        ]
        if odd:
            return [f"`class_names` holds {odd[0]!r}, which is no text; put it in quotes"]
        names = _names(self.class_names)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            return [f"`class_names` holds `{twice[0]}` twice"]
        if len(names) < 2:
            return [f"`class_names` holds {len(names)} name; there must be 2 or more"]
        return []

    def _transform_problems(self) -> list[str]:
        problems = []
        if self.transform_seed and not self.label_noise and self.class_fractions is None:
            problems.append(
                f"`transform_seed` is {self.transform_seed}, but it only acts with `label_noise` "
                "or `class_fractions`; leave it out"
            )
        return problems + self._fraction_problems()

    def _fraction_problems(self) -> list[str]:
        if self.class_fractions is None:
            return []
        if self.is_regression:
            return [f"`class_fractions` is set, but task {self.task} has no classes; leave it out"]
        problems = []
        names = [label_text(name) for name in self.class_fractions]
        if None in names or len(set(names)) < len(names):
            problems.append("`class_fractions` must name each class once")
        elif self.named_classes is not None:
            problems += [
                f"`class_fractions` names `{name}`, which is none of `class_names`"
                f"{suggestion(str(name), self.named_classes)}"
                for name in names
                if name not in self.named_classes
            ]
        return problems

    def _out_of_domain_problems(self) -> list[str]:
        problems = self._glue_x_problems()
        names: list[str] = []
        for number, entry in enumerate(() if problems else self._entries(), start=1):
            if not isinstance(entry, Mapping):
                problems.append(
                    f"`out_of_domain`, entry {number} is {entry!r}, not a mapping; write it as "
                    f"`{_SETS.example}`"
                )
                continue
            try:
                one = OutOfDomainConfig.from_mapping(entry)
            except ConfigError as error:
                problems.append(str(error).rstrip("."))
                continue
            names.append(one.name)
            where = f"`out_of_domain`, `{one.name}`: "
            problems += [where + found for found in _pair_problems(one, self.task)]
            if self.is_regression:
                problems += [
                    f"{where}`{name}` is set, but task {self.task} has no classes; leave it out"
                    for name in ("label_map", "group_column")
                    if getattr(one, name) is not None
                ]
            problems += [where + found for found in self._unmapped(one)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            problems.append(f"`out_of_domain` has two entries with the name `{twice[0]}`")
        return problems

    def _glue_x_problems(self) -> list[str]:
        given = {"glue_x_files": self.glue_x_files, "glue_x_whole": self.glue_x_whole}
        if self.out_of_domain != GLUE_X:
            return [
                f"`{name}` is set, but `out_of_domain` is not {GLUE_X}; set it, or leave `{name}` "
                "out"
                for name, value in given.items()
                if value
            ]
        if self.task in OWN_TASKS:
            return [
                f"`out_of_domain` is {GLUE_X}, which has data sets for the tasks of GLUE, and task "
                f"{self.task} is none; name your own"
            ]
        known = GLUE_X_SETS[self.task]
        problems = [
            f"`glue_x_files` names `{name}`, which is no set of {GLUE_X} for task {self.task}"
            f"{suggestion(str(name), known)}; there are {', '.join(known)}"
            for name in self.glue_x_files or {}
            if name not in known
        ]
        return problems + [
            f"`glue_x_files` has {value!r} for `{name}`; write a path, a mapping or null"
            for name, value in (self.glue_x_files or {}).items()
            if value is not None and not isinstance(value, str | Mapping)
        ]

    def _unmapped(self, entry: OutOfDomainConfig) -> list[str]:
        known = self.named_classes
        targets = [name for names in entry.mapped_labels.values() for name in names or ()]
        return [
            f"`label_map` leads to `{name}`, which is none of `class_names`"
            f"{suggestion(name, known)}"
            for name in dict.fromkeys(targets)
            if known is not None and name not in known
        ]


def _names(value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(str(label_text(name)) for name in listed)


def _column_problems(config: Any) -> list[str]:
    problems = []
    if config.text_pair_column is not None and config.text_column is None:
        problems.append(
            f"`text_pair_column` is {config.text_pair_column}, so `text_column` must be set too"
        )
    columns = ("text_column", "text_pair_column", "label_column")
    given = [(name, value) for name in columns if (value := getattr(config, name)) is not None]
    for number, (name, value) in enumerate(given):
        if value in (before := dict((v, n) for n, v in given[:number])):
            problems.append(f"`{name}` and `{before[value]}` are both {value}")
    return problems


def _pair_problems(config: Any, task: str) -> list[str]:
    """Say where the text columns that are set do not fit the number of texts of a GLUE task."""
    if task in SINGLE_TEXT_TASKS and config.text_pair_column is not None:
        return [f"`text_pair_column` is set, but task {task} has one text; leave it out"]
    is_pair_task = task not in (*SINGLE_TEXT_TASKS, *OWN_TASKS)
    if is_pair_task and config.text_column is not None and config.text_pair_column is None:
        return [
            f"`text_column` is {config.text_column}, so `text_pair_column` must be set too: "
            f"task {task} has two texts"
        ]
    return []
