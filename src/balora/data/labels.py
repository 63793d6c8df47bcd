"""From the values of a label column to class indices or targets, and from labels to sets of them.

Classes are known by text (`label_text`): 1, 1.0 and "1" are one class, and no two whole numbers
are, however large. A column that carries the
names of its classes (``ClassLabel``, as on the hub) is read by these names, not by its numbers.

Shapes: ``N`` rows, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from datasets import ClassLabel

from balora.config.classification import label_text
from balora.config.words import suggestion
from balora.data.provenance import LocatedRows, iterate_rows
from balora.errors import ConfigError, DataError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

UNLABELLED = -1
"""What stands for "no label" in the test splits of the hub."""

_UNLABELLED_PROBLEM = (
    "is -1, which stands for a row without a label, as in the test splits of GLUE on the hub; name "
    "a split that has labels"
)


class LabelSets(NamedTuple):
    """What the labels of another data set mean in the classes of the task."""

    indices: dict[str, int | None]
    """From a label to the number of its set, None for rows that are dropped."""
    names: tuple[str, ...]
    """What the sets are called."""
    class_sets: tuple[tuple[int, ...], ...] | None
    """The classes of each set; None where set j is class j, for all classes of the task."""


def read_names(rows: LocatedRows, column: str, *, purpose: str, what: str = "class") -> list[str]:
    """Return the class of each row as text, or its group.

    Args:
        rows: As they are stored.
        column: The column of the label.
        what: What the names stand for, for the message.
        purpose: What is done with rows, such as "trained on", for the message.

    Raises:
        DataError: For the first label that is null or no name of a class, by file and line.
    """
    feature = rows.dataset.features[column]
    names = feature.names if isinstance(feature, ClassLabel) else None
    labels, bad, problem = [], [], ""
    for number, row in enumerate(iterate_rows(rows.dataset, [column])):
        value = row[column]
        has_name = names is not None and isinstance(value, int) and 0 <= value < len(names)
        text = names[value] if names is not None and has_name else label_text(value)
        if text is None:
            problem = problem or _no_name(column, value, what)
            bad.append(number)
        labels.append(str(text))
    if bad:
        rows.refuse(bad, problem, purpose=purpose)
    return labels


def _no_name(column: str, value: Any, what: str) -> str:
    if value is None:
        return f"`{column}` is missing or null"
    if isinstance(value, str):
        return f"`{column}` is empty"
    hint = ""
    if isinstance(value, float) and value.is_integer():
        hint = ": numbers with a point have not all their digits from 2^53 on, so write it as text"
    elif isinstance(value, float) and what == "class":
        hint = "; task regression takes numbers"
    return f"`{column}` is {value!r}, which names no {what}{hint}"


def names_of_classes(rows: LocatedRows, column: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of the training data in the order of the model's outputs.

    These are the names that the column carries, in their order; else the distinct labels, sorted,
    numbers by their value.
    """
    feature = rows.dataset.features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    distinct = set(labels)
    numbers = {label: _number(label) for label in distinct}
    if None not in numbers.values():
        return tuple(sorted(distinct, key=lambda label: (numbers[label] or 0.0, label)))
    return tuple(sorted(distinct))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def class_lookup(class_names: Sequence[str], *, with_numbers: bool) -> dict[str, int]:
    """Return from the text of a label to its class.

    Args:
        class_names: In the order of the model's outputs.
        with_numbers: Whether 0, 1, ... stand for the classes too; never where a name is a number.
    """
    lookup = {name: index for index, name in enumerate(class_names)}
    if with_numbers and all(_number(name) is None for name in class_names):
        lookup |= {str(index): index for index in range(len(class_names))}
    return lookup


def class_indices(
    rows: LocatedRows,
    labels: Sequence[str],
    lookup: Mapping[str, int],
    class_names: Sequence[str],
    *,
    column: str,
    purpose: str,
) -> IntArray:
    """Return the class of each row, shape ``(N,)``.

    Raises:
        DataError: For the first label that is none of the classes, by file and line.
    """
    bad = [number for number, label in enumerate(labels) if label not in lookup]
    if bad:
        label = labels[bad[0]]
        rows.refuse(bad, _unknown(label, class_names, column), purpose=purpose)
    return np.array([lookup[label] for label in labels], dtype=np.int64)


def _unknown(label: str, class_names: Sequence[str], column: str) -> str:
    if label == str(UNLABELLED):
        return f"`{column}` {_UNLABELLED_PROBLEM}"
    return (
        f"`{column}` is `{label}`, which is none of the classes {shown(class_names)}"
        f"{suggestion(label, class_names)}"
    )


def shown(names: Sequence[str]) -> str:
    """Return names for a message; of a long list only the first few."""
    if len(names) <= 20:
        return ", ".join(names)
    return ", ".join(names[:20]) + f", ... ({len(names)} in all)"


def read_targets(rows: LocatedRows, column: str, *, task: str, purpose: str) -> FloatArray:
    """Return the number that belongs to each row, shape ``(N,)``.

    Raises:
        DataError: For the first that is null, no number, NaN or infinite, by file and line.
    """
    targets, bad, problem = [], [], ""
    for number, row in enumerate(iterate_rows(rows.dataset, [column])):
        target, found = _target(row[column])
        if target == UNLABELLED and task == "stsb":  # whose scores lie in [0, 5]
            found = _UNLABELLED_PROBLEM
        if found:
            problem = problem or f"`{column}` {found}"
            bad.append(number)
        targets.append(target)
    if bad:
        rows.refuse(bad, problem, purpose=purpose)
    return np.array(targets, dtype=np.float64)


def _target(value: Any) -> tuple[float, str | None]:
    """Return a number and what is wrong with it."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return 0.0, "is missing or null" if value is None else "is empty"
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return 0.0, f"is {str(value).lower()}, which is no number"
    try:
        target = float(value)
    except (ValueError, OverflowError):
        return 0.0, f"is the text `{value}`, which is no number"
    return target, None if math.isfinite(target) else f"is {value}, not a finite number"


def label_sets(
    label_map: Mapping[str, tuple[str, ...] | None], class_names: Sequence[str]
) -> LabelSets:
    """Return what `label_map` says in class indices.

    The sets are sorted by their first class. Labels that lead to the same classes are one set; a
    set of one class is called like it, others "neutral or contradiction".

    Raises:
        ConfigError: If a name is none of the classes.
    """
    _check_leads(label_map, class_names)
    of_label = {
        label: None if names is None else tuple(sorted({class_names.index(n) for n in names}))
        for label, names in label_map.items()
    }
    sets = sorted({classes for classes in of_label.values() if classes is not None})
    indices = {
        label: None if classes is None else sets.index(classes)
        for label, classes in of_label.items()
    }
    is_identity = sets == [(index,) for index in range(len(class_names))]
    set_names = tuple(" or ".join(class_names[index] for index in classes) for classes in sets)
    return LabelSets(indices, set_names, None if is_identity else tuple(sets))


def _check_leads(
    label_map: Mapping[str, tuple[str, ...] | None], class_names: Sequence[str]
) -> None:
    led = (name for names in label_map.values() for name in names or ())
    unknown = next((name for name in led if name not in class_names), None)
    if unknown is not None:
        raise ConfigError(
            f"`label_map` leads to `{unknown}`, which is none of the classes "
            f"{shown(class_names)}{suggestion(unknown, class_names)}."
        )


def mapped_labels(
    rows: LocatedRows, labels: Sequence[str], sets: LabelSets, *, column: str
) -> tuple[IntArray, IntArray]:
    """Return the rows that are kept and the number of the set of each, shapes ``(N',)``.

    Raises:
        DataError: For the first label that `label_map` does not have, by file and line; if no row
            is left.
    """
    bad = [number for number, label in enumerate(labels) if label not in sets.indices]
    if bad:
        label = labels[bad[0]]
        rows.refuse(
            bad,
            f"`{column}` is `{label}`, which is none of the labels in `label_map` "
            f"({shown(list(sets.indices))}){suggestion(label, sets.indices)}; add it, with null to "
            "leave its rows out",
            purpose="evaluated on",
        )
    kept = [number for number, label in enumerate(labels) if sets.indices[label] is not None]
    if not kept:
        raise DataError(f"`label_map` leaves no row of {rows.name} ({rows.split}).")
    indices = [sets.indices[labels[number]] for number in kept]
    return np.array(kept, dtype=np.int64), np.array(indices, dtype=np.int64)
