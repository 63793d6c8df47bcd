r"""Label noise and class imbalance, made on purpose in the training rows. NumPy only.

Everything is drawn from one seed, in two independent streams: one for the rows that are kept, one
for the noise. The draws do not depend on the amounts, so that with one seed the rows that 10%
noise changes are among those that 20% change, and those a smaller fraction keeps are among those
of a larger one.

Shapes: ``N`` rows, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from balora.errors import DataError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Transformed(NamedTuple):
    """What is left of the training rows, and what was done."""

    kept: IntArray
    """Which rows are left, in their old order, shape ``(N',)``."""
    labels: npt.NDArray[Any]
    """Their labels or targets, shape ``(N',)``."""
    record: dict[str, Any]
    """Seed, fractions and counts, for JSON; empty when nothing was asked for."""


def transform_classes(
    labels: IntArray,
    class_names: Sequence[str],
    *,
    fractions: Mapping[str, float],
    noise: float,
    seed: int,
) -> Transformed:
    """Return the training rows of a classification task: fewer of some classes, then noise.

    Args:
        labels: Class of each row, shape ``(N,)``.
        class_names: The ``C`` classes.
        fractions: From a class to the fraction of its rows that is kept; others keep all.
        noise: Share of the rows that are left which get another class.
        seed: Of both.
    """
    for_rows, for_noise = np.random.default_rng(seed).spawn(2)
    record: dict[str, Any] = {}
    kept = np.arange(len(labels))
    if fractions:
        by_class = [fractions.get(name, 1.0) for name in class_names]
        kept = rows_of_fractions(labels, by_class, for_rows)
        record["class_fractions"] = {
            "fractions": dict(fractions),
            "num_rows": len(labels),
            "num_kept": len(kept),
            "rows_per_class_before": _counts(labels, class_names),
            "rows_per_class_after": _counts(labels[kept], class_names),
        }
    given = labels[kept]
    noisy = given
    if noise:
        noisy = noisy_classes(given, len(class_names), noise, for_noise)
        record["label_noise"] = {
            "fraction": noise,
            "num_rows": len(given),
            "num_changed": int((noisy != given).sum()),
            "rows_per_class_before": _counts(given, class_names),
            "rows_per_class_after": _counts(noisy, class_names),
        }
    return Transformed(kept, noisy, {"seed": seed, **record} if record else {})


def transform_targets(targets: FloatArray, *, noise: float, seed: int) -> Transformed:
    """Return the training rows of a regression task, some with another row's target.

    Args:
        targets: Target of each row, shape ``(N,)``.
        noise: Share of the rows whose targets are exchanged.
        seed: Of the noise.

    Raises:
        DataError: If that is a single row.
    """
    kept = np.arange(len(targets))
    if not noise:
        return Transformed(kept, targets, {})
    _, for_noise = np.random.default_rng(seed).spawn(2)
    rows, noisy = exchanged_targets(targets, noise, for_noise)
    record = {"fraction": noise, "num_rows": len(targets), "num_changed": len(rows)}
    return Transformed(kept, noisy, {"seed": seed, "label_noise": record})


def rows_of_fractions(
    labels: IntArray, fractions: Sequence[float], generator: np.random.Generator
) -> IntArray:
    r"""Return the rows that are kept, in their order: of class c, ``round(fractions[c] * n_c)``.

    A class that has rows keeps at least one. ``round`` is Python's, halves to even.
    """
    kept = []
    for index, fraction in enumerate(fractions):
        rows = generator.permutation(np.flatnonzero(labels == index))
        number = max(round(fraction * len(rows)), min(len(rows), 1))
        kept.append(rows[:number])
    return np.sort(np.concatenate(kept))


def noisy_classes(
    labels: IntArray, num_classes: int, fraction: float, generator: np.random.Generator
) -> IntArray:
    """Return the labels, exactly ``round(fraction * N)`` of them another class.

    Which rows is uniform, and so is the new class among the ``num_classes - 1`` others.
    """
    chosen = generator.permutation(len(labels))[: round(fraction * len(labels))]
    shift = generator.integers(1, num_classes, size=len(labels))
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + shift[chosen]) % num_classes
    return np.asarray(noisy)


def exchanged_targets(
    targets: FloatArray, fraction: float, generator: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    """Return ``round(fraction * N)`` rows, and the targets with those of these rows exchanged.

    The chosen rows pass their targets on by a uniformly drawn derangement: none gets its own
    back. Two rows may have had equal targets, so that a target can stay the same number. The
    targets as a whole stay the same.

    Raises:
        DataError: If a single row is chosen, which has no other to exchange with.
    """
    chosen = generator.permutation(len(targets))[: round(fraction * len(targets))]
    if len(chosen) == 1:
        raise DataError(
            f"`label_noise` {fraction} of {len(targets)} rows is one row, which has no other to "
            "exchange its target with. Raise it, or set it to 0."
        )
    order = np.arange(len(chosen))
    while (order == np.arange(len(chosen))).any():  # about e draws
        order = generator.permutation(len(chosen))
    noisy = targets.copy()
    noisy[chosen] = targets[chosen[order]]
    return np.sort(chosen), noisy


def _counts(labels: IntArray, class_names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(class_names))
    return {name: int(count) for name, count in zip(class_names, counts, strict=True)}
