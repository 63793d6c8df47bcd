r"""The metrics of classification and regression, as pure functions of NumPy arrays.

Shapes: ``N`` rows, ``C`` classes of the model (1 for regression), ``L`` labels of the data. ``L``
is ``C`` and label ``j`` is class ``j``, unless ``class_sets`` says which classes a label stands
for: data with two labels for a model of three-way NLI have ``((0,), (1, 2))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

from balora.config.classification import REGRESSION_TASKS
from balora.errors import NonFiniteError

Array: TypeAlias = Any
ClassSets: TypeAlias = Sequence[Sequence[int]]

NO_LABEL = -1
"""The prediction of a row whose likeliest class belongs to no label."""

_PRIMARY = {"cola": "matthews_correlation", **dict.fromkeys(REGRESSION_TASKS, "pearson")}


def primary_metric(task: str) -> str:
    """Return the metric that the paper reports for a task, and that the best epoch is chosen by."""
    return _PRIMARY.get(task, "accuracy")


class Predictions(NamedTuple):
    """What a classifier says of each row, in the labels of the data."""

    labels: Array
    """Predicted label, shape ``(N,)``; `NO_LABEL` where the class belongs to none."""
    confidence: Array
    """Probability of that label, shape ``(N,)``."""


def task_metrics(
    task: str, logits: Array, labels: Array, *, class_sets: ClassSets | None = None
) -> dict[str, float]:
    """Return the metrics of a task by name, its primary one first.

    CoLA: Matthews correlation and accuracy. MRPC and QQP: accuracy, and F1 of label 1. STS-B and
    own regression: Pearson and Spearman correlation and the mean squared error. Own
    classification: accuracy, and F1 averaged over the labels. Everything else: accuracy. With
    classes, the expected calibration error (``ece``) as well.

    Args:
        task: A task of `ClassificationConfig`.
        logits: Shape ``(N, C)``; for regression the predictions, ``(N, 1)`` or ``(N,)``.
        labels: Shape ``(N,)``.
        class_sets: The model's classes of each label; None where they are the same.

    Raises:
        ValueError: If there is no row, or the shapes do not fit.
        NonFiniteError: If a logit is NaN or infinite, naming its row.
    """
    logits, labels = _checked(logits, labels)
    if task in REGRESSION_TASKS:
        return regression_metrics(logits, labels)
    predicted = predict_labels(logits, class_sets)
    correct = predicted.labels == labels
    metrics = {"accuracy": float(accuracy_score(labels, predicted.labels))}
    if task == "cola":
        metrics = {"matthews_correlation": matthews(predicted.labels, labels)} | metrics
    elif task in ("mrpc", "qqp"):
        metrics["f1"] = float(f1_score(labels == 1, predicted.labels == 1, zero_division=0.0))
    elif task == "classification":
        metrics["macro_f1"] = macro_f1(predicted.labels, labels)
    return metrics | {"ece": expected_calibration_error(predicted.confidence, correct)}


def majority_metrics(task: str, labels: Array) -> dict[str, float]:
    """Return the metrics of giving every row the label that most rows have, the first of equals.

    No constant answer has a higher accuracy, so what a classifier has learned starts above it. It
    has no calibration error; for regression there is none.

    Args:
        task: As for :func:`task_metrics`.
        labels: Shape ``(N,)``.

    Raises:
        ValueError: If there is no row.
    """
    if task in REGRESSION_TASKS:
        return {}
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    constant = np.zeros((len(labels), max(len(counts), 2)))
    constant[:, counts.argmax()] = 1.0
    return {k: v for k, v in task_metrics(task, constant, labels).items() if k != "ece"}


def metric_names(task: str) -> tuple[str, ...]:
    """Return the names of what :func:`task_metrics` measures of a task, its primary one first."""
    labels = np.array([0, 1])
    return tuple(task_metrics(task, labels if task in REGRESSION_TASKS else np.eye(2), labels))


def regression_metrics(predictions: Array, labels: Array) -> dict[str, float]:
    """Return Pearson and Spearman correlation and the mean squared error.

    A correlation is NaN, and nothing is warned of, where it is undefined: with fewer than two
    rows, or where all predictions or all labels are equal.

    Args:
        predictions: Shape ``(N, 1)`` or ``(N,)``.
        labels: Shape ``(N,)``.

    Raises:
        ValueError: If there is no row, or the shapes do not fit.
        NonFiniteError: If a prediction is NaN or infinite, naming its row.
    """
    predictions, labels = _checked(predictions, labels)
    predictions, labels = predictions.reshape(-1), labels.astype(np.float64)
    if len(predictions) != len(labels):
        raise ValueError(f"there are {len(predictions)} predictions for {len(labels)} labels.")
    is_defined = not (_is_constant(predictions) or _is_constant(labels))
    return {
        "pearson": float(pearsonr(predictions, labels)[0]) if is_defined else math.nan,
        "spearman": float(spearmanr(predictions, labels)[0]) if is_defined else math.nan,
        "mse": float(mean_squared_error(labels, predictions)),
    }


def predict_labels(logits: Array, class_sets: ClassSets | None = None) -> Predictions:
    """Return the label of each row and its probability.

    The class is the one with the largest logit, the first of equals; the label is the one whose
    set holds it, and its probability the sum over that set. A class of no set gives `NO_LABEL`,
    which is no label and so never right, with the probability of the class.

    Args:
        logits: Shape ``(N, C)``.
        class_sets: The model's classes of each label; None where they are the same.
    """
    logits = np.asarray(logits, dtype=np.float64)
    probabilities = softmax(logits, axis=1)
    classes = logits.argmax(axis=1)
    if class_sets is None:
        class_sets = [(index,) for index in range(logits.shape[1])]
    label_of = np.full(logits.shape[1], NO_LABEL)
    total = probabilities.copy()
    for label, members in enumerate(class_sets):
        label_of[list(members)] = label
        total[:, list(members)] = probabilities[:, list(members)].sum(axis=1, keepdims=True)
    return Predictions(label_of[classes], total[np.arange(len(logits)), classes])


def matthews(predicted: Array, labels: Array) -> float:
    """Return the Matthews correlation, in [-1, 1].

    As in scikit-learn it is 0 where it is undefined: where all predictions, or all labels, are
    the same.
    """
    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0  # without scikit-learn's warning about a single label
    return float(matthews_corrcoef(labels, predicted))


def macro_f1(predicted: Array, labels: Array) -> float:
    """Return the mean F1 of the labels that occur in the data or in the predictions, in [0, 1].

    A label that is never predicted, or only predicted, counts with an F1 of 0; `NO_LABEL` is none.
    """
    names = [name for name in np.union1d(labels, predicted) if name != NO_LABEL]
    return float(f1_score(labels, predicted, labels=names, average="macro", zero_division=0.0))


def expected_calibration_error(confidence: Array, correct: Array, *, num_bins: int = 15) -> float:
    r"""Return how far confidence and accuracy lie apart, in bins of equal width.

    .. math::
        \mathrm{ECE} = \sum_{b=1}^{B} \frac{n_b}{N}
            \left| \mathrm{acc}_b - \mathrm{conf}_b \right|

    with :math:`\mathrm{acc}_b` the share of right rows and :math:`\mathrm{conf}_b` the mean
    confidence of the :math:`n_b` rows whose confidence lies in :math:`((b-1)/B, b/B]` (Guo et al.,
    On Calibration of Modern Neural Networks, 2017, Eq. 3). In [0, 1]; an empty bin adds nothing.

    Args:
        confidence: Probability of the predicted label, shape ``(N,)``.
        correct: Whether it is right, shape ``(N,)``.
        num_bins: ``B``.

    Raises:
        ValueError: If there is no row, or the shapes differ.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    correct = np.asarray(correct, dtype=np.float64)
    if not confidence.size or confidence.shape != correct.shape:
        raise ValueError(
            f"confidence and correctness need one and the same number of rows, got "
            f"{confidence.shape} and {correct.shape}."
        )
    inner_edges = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(inner_edges, confidence, side="left")
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


class WorstGroup(NamedTuple):
    """The group in which a model is worst."""

    name: str
    """The group."""
    value: float
    """Its accuracy; for regression its mean squared error."""
    num_rows: int
    """Its rows."""


def worst_group(
    task: str,
    logits: Array,
    labels: Array,
    groups: Sequence[Any],
    *,
    class_sets: ClassSets | None = None,
) -> WorstGroup:
    """Return the group with the lowest accuracy, for regression with the largest squared error.

    Of equals, the first by name.

    Args:
        task: As for :func:`task_metrics`.
        logits: Shape ``(N, C)``.
        labels: Shape ``(N,)``.
        groups: The group of each row, ``N`` names.
        class_sets: As for :func:`task_metrics`.

    Raises:
        ValueError: If there is no row, or the shapes do not fit.
        NonFiniteError: If a logit is NaN or infinite, naming its row.
    """
    logits, labels = _checked(logits, labels)
    if len(groups) != len(labels):
        raise ValueError(f"there are {len(groups)} groups for {len(labels)} labels.")
    if task in REGRESSION_TASKS:
        score = -((logits.reshape(-1) - labels) ** 2)
    else:
        score = (predict_labels(logits, class_sets).labels == labels).astype(np.float64)
    names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    counts = np.bincount(index)
    means = np.bincount(index, weights=score) / counts
    worst = int(means.argmin())
    return WorstGroup(str(names[worst]), float(abs(means[worst])), int(counts[worst]))


def _is_constant(values: Array) -> bool:
    """Say whether the values are equal, up to the rounding that scipy warns of."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _checked(logits: Array, labels: Array) -> tuple[Array, Array]:
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if not len(labels) or len(logits) != len(labels) or labels.ndim != 1:
        raise ValueError(
            f"logits of shape {logits.shape} do not fit labels of shape {labels.shape}."
        )
    bad = ~np.isfinite(logits).reshape(len(logits), -1).all(axis=1)
    if bad.any():
        raise NonFiniteError(f"the model gives NaN or infinity for row {int(bad.argmax())}.")
    return logits, labels
