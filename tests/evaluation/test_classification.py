"""The metrics of classification against values worked by hand and loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from balora.errors import NonFiniteError
from balora.evaluation.classification import (
    NO_LABEL,
    expected_calibration_error,
    macro_f1,
    majority_metrics,
    matthews,
    predict_labels,
    primary_metric,
    regression_metrics,
    task_metrics,
    worst_group,
)

TASKS = ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "classification")


def one_hot(classes, num_classes=2, size=4.0):
    """Logits whose largest is at the given class."""
    return size * np.eye(num_classes)[np.asarray(classes)]


# predictions


def test_label_is_the_likeliest_class_and_its_probability():
    predicted = predict_labels([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    assert predicted.labels.tolist() == [1, 0]
    np.testing.assert_allclose(predicted.confidence, [0.75, 0.8], rtol=1e-12)


def test_classes_of_a_set_share_its_label_and_their_probabilities():
    # probabilities (1/8, 5/8, 2/8), (3/6, 2/6, 1/6): class 1 stands for label 1, class 0 for 0
    logits = np.log([[1.0, 5.0, 2.0], [3.0, 2.0, 1.0]])
    predicted = predict_labels(logits, [(0,), (1, 2)])
    assert predicted.labels.tolist() == [1, 0]
    np.testing.assert_allclose(predicted.confidence, [7 / 8, 3 / 6], rtol=1e-12)


def test_the_likeliest_class_decides_and_not_the_likeliest_set():
    # (0.4, 0.3, 0.3): the set of two has 0.6, but HANS maps the predicted class
    predicted = predict_labels(np.log([[0.4, 0.3, 0.3]]), [(0,), (1, 2)])
    assert predicted.labels.tolist() == [0]
    np.testing.assert_allclose(predicted.confidence, [0.4], rtol=1e-12)


def test_a_class_of_no_set_is_no_label_and_so_wrong():
    logits = np.log([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    sets = [(0,), (2,)]
    predicted = predict_labels(logits, sets)
    assert predicted.labels.tolist() == [NO_LABEL, 0]
    np.testing.assert_allclose(predicted.confidence, [0.7, 0.6], rtol=1e-12)
    for label in (0, 1):
        assert task_metrics("mnli", logits[:1], [label], class_sets=sets)["accuracy"] == 0.0


def test_huge_logits_have_probabilities():
    predicted = predict_labels([[1e4, -1e4, 0.0]])
    assert predicted.labels.tolist() == [0]
    assert predicted.confidence.tolist() == [1.0]


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(4)), elements=st.floats(-30, 30)),
    st.permutations(range(4)),
)
def test_sets_of_one_class_are_a_renaming(logits, order):
    plain = predict_labels(logits)
    renamed = predict_labels(logits, [(index,) for index in order])
    assert [order[label] for label in renamed.labels] == plain.labels.tolist()
    np.testing.assert_allclose(renamed.confidence, plain.confidence, rtol=1e-12)


# the tasks


def test_each_task_reports_the_papers_metrics():
    logits, labels = one_hot([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    names = {task: [*task_metrics(task, logits, labels)] for task in TASKS}
    assert names["cola"] == ["matthews_correlation", "accuracy", "ece"]
    assert names["mrpc"] == names["qqp"] == ["accuracy", "f1", "ece"]
    assert names["classification"] == ["accuracy", "macro_f1", "ece"]
    for task in ("sst2", "mnli", "qnli", "rte"):
        assert names[task] == ["accuracy", "ece"]
    for task in ("stsb", "regression"):
        assert [*task_metrics(task, [[0.5], [1.0]], [0.0, 1.0])] == ["pearson", "spearman", "mse"]
    assert all(primary_metric(task) == names[task][0] for task in TASKS)
    assert primary_metric("stsb") == primary_metric("regression") == "pearson"


def test_values_worked_by_hand():
    # predictions 1 1 1 0 0 against 1 1 0 0 1: tp 2, fp 1, tn 1, fn 1
    logits, labels = one_hot([1, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 1])
    assert task_metrics("mrpc", logits, labels)["accuracy"] == pytest.approx(3 / 5)
    assert task_metrics("mrpc", logits, labels)["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # (tp tn - fp fn) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn)) = (2 - 1) / sqrt(3 3 2 2)
    assert task_metrics("cola", logits, labels)["matthews_correlation"] == pytest.approx(1 / 6)
    # F1 of label 1 is 2/3; of label 0: tp 1, fp 1, fn 1, so 1/2
    found = task_metrics("classification", logits, labels)["macro_f1"]
    assert found == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_f1_is_of_label_1():
    logits, labels = one_hot([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert task_metrics("qqp", logits, labels)["f1"] == 0.0
    assert task_metrics("qqp", one_hot([1, 0]), np.array([1, 0]))["f1"] == 1.0


def test_matthews_of_constant_predictions_or_labels_is_0_and_warns_of_nothing():
    for predicted, labels in (([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([1, 1], [1, 1])):
        assert matthews(np.array(predicted), np.array(labels)) == 0.0


def test_macro_f1_leaves_out_labels_that_do_not_occur_and_the_one_that_is_none():
    labels, predicted = np.array([0, 0, 2, 2]), np.array([0, 0, 2, NO_LABEL])
    # label 0: 1; label 2: precision 1, recall 1/2, so 2/3
    assert macro_f1(predicted, labels) == pytest.approx((1 + 2 / 3) / 2)
    # label 1 is predicted but never right: it counts, with 0
    assert macro_f1(np.array([0, 0, 2, 1]), labels) == pytest.approx((1 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        # accuracy 3/5; F1 of label 1 with precision 3/5 and recall 1
        ("mrpc", [1, 0, 1, 0, 1], {"accuracy": 0.6, "f1": 0.75}),
        ("mrpc", [0, 0, 1], {"accuracy": 2 / 3, "f1": 0.0}),
        # the F1 of the other labels is 0
        ("classification", [2, 2, 0, 1], {"accuracy": 0.5, "macro_f1": (2 / 3) / 3}),
        ("cola", [1, 0, 1], {"matthews_correlation": 0.0, "accuracy": 2 / 3}),
        ("sst2", [1, 0], {"accuracy": 0.5}),
        ("sst2", [0], {"accuracy": 1.0}),
        ("stsb", [1.5, 2.5], {}),
    ],
)
def test_what_the_majority_class_gets(task, labels, expected):
    found = majority_metrics(task, np.array(labels))
    assert found == pytest.approx(expected)
    assert list(found) == list(expected)


def test_wrong_shapes_no_rows_and_nan_are_refused():
    for logits, labels in (([[1.0, 2.0]], [0, 1]), (np.zeros((0, 2)), []), ([[1.0]], [[1]])):
        with pytest.raises(ValueError, match="do not fit labels of shape"):
            task_metrics("sst2", logits, labels)
    with pytest.raises(ValueError, match="there are 4 predictions for 2 labels"):
        regression_metrics([[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0])
    for task in ("sst2", "stsb"):
        with pytest.raises(NonFiniteError, match=r"NaN or infinity for row 1\."):
            task_metrics(task, [[1.0], [math.nan], [math.inf]], [0, 0, 0])


# regression


def pearson_reference(x, y):
    """The definition, one row at a time, in float64."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    pairs = [(float(a) - mean_x, float(b) - mean_y) for a, b in zip(x, y, strict=True)]
    covariance = sum(a * b for a, b in pairs)
    return covariance / math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))


def ranks(values):
    """Mean rank of each value among all, equal ones sharing it."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def test_correlations_match_the_definition():
    rng = np.random.default_rng(0)
    predictions, labels = rng.normal(size=37), np.round(rng.normal(size=37), 1)
    labels += 0.5 * predictions
    metrics = regression_metrics(predictions[:, None], labels)
    assert metrics["pearson"] == pytest.approx(pearson_reference(predictions, labels), rel=1e-12)
    expected = pearson_reference(ranks(predictions), ranks(labels))
    assert metrics["spearman"] == pytest.approx(expected, rel=1e-12)
    assert metrics["mse"] == pytest.approx(sum((predictions - labels) ** 2) / 37, rel=1e-12)


def test_spearman_sees_order_alone_and_pearson_does_not():
    metrics = regression_metrics([1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0])
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["pearson"] < 0.96


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [([2.5, 2.5, 2.5], [0.0, 1.0, 2.0]), ([0.0, 1.0], [3.0, 3.0]), ([1.0], [2.0])],
    ids=["constant predictions", "constant labels", "one row"],
)
def test_an_undefined_correlation_is_nan_and_warns_of_nothing(predictions, labels):
    metrics = regression_metrics(predictions, labels)
    assert math.isnan(metrics["pearson"])
    assert math.isnan(metrics["spearman"])
    assert math.isfinite(metrics["mse"])


@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-100, 100, width=32)),
    st.floats(0.1, 10),
    st.floats(-10, 10),
)
def test_pearson_of_a_line_is_one_or_undefined(values, slope, intercept):
    labels = values.astype(np.float64) * slope + intercept
    pearson = regression_metrics(values, labels)["pearson"]
    assert math.isnan(pearson) or pearson == pytest.approx(1.0, abs=1e-4)


# calibration


def ece_reference(confidence, correct, num_bins):
    """The definition, one bin at a time."""
    total = 0.0
    for b in range(1, num_bins + 1):
        inside = [
            (c, ok)
            for c, ok in zip(confidence, correct, strict=True)
            if (b - 1) / num_bins < c <= b / num_bins or (b == 1 and c == 0)
        ]
        if inside:
            accuracy = sum(ok for _, ok in inside) / len(inside)
            mean = sum(c for c, _ in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def test_ece_worked_by_hand():
    # bins of 1/15: 0.95 and 0.97 lie in the last (accuracy 1/2, mean 0.96), 0.62 in the tenth (1)
    found = expected_calibration_error([0.95, 0.97, 0.62], [True, False, True])
    assert found == pytest.approx(2 / 3 * 0.46 + 1 / 3 * 0.38)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1.0


def test_an_edge_belongs_to_the_bin_below_it():
    # with two bins 0.5 is in the first, with 0.4; in the second it would be alone
    found = expected_calibration_error([0.5, 0.4], [True, False], num_bins=2)
    assert found == pytest.approx(abs(0.5 - 0.45))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([1, 2, 15]),
)
def test_ece_matches_the_definition_and_lies_in_0_1(rows, num_bins):
    confidence, correct = zip(*rows, strict=True)
    found = expected_calibration_error(confidence, correct, num_bins=num_bins)
    assert found == pytest.approx(ece_reference(confidence, correct, num_bins), abs=1e-12)
    assert 0 <= found <= 1


def test_ece_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="need one and the same number of rows"):
        expected_calibration_error([], [])


def test_ece_of_a_mapped_label_uses_the_sum_over_its_set():
    # 7/8 for a right label: without the sum it would be 1 - 5/8
    metrics = task_metrics("mnli", np.log([[1.0, 5.0, 2.0]]), [1], class_sets=[(0,), (1, 2)])
    assert metrics["accuracy"] == 1.0
    assert metrics["ece"] == pytest.approx(1 / 8)


# groups


def test_the_worst_group_has_the_lowest_accuracy():
    logits, labels = one_hot([1, 1, 0, 0, 1]), np.array([1, 1, 1, 0, 0])
    worst = worst_group("sst2", logits, labels, ["a", "a", "b", "b", "b"])
    assert worst == ("b", pytest.approx(1 / 3), 3)


def test_of_equal_groups_the_first_by_name():
    worst = worst_group("sst2", one_hot([0, 0]), np.array([0, 0]), ["z", "m"])
    assert worst == ("m", 1.0, 1)


def test_the_worst_group_of_a_regression_has_the_largest_error():
    worst = worst_group("stsb", [[1.0], [2.0], [3.0]], [1.0, 5.0, 3.0], ["a", "b", "b"])
    assert worst == ("b", pytest.approx(4.5), 2)


def test_groups_go_by_the_mapped_labels():
    worst = worst_group(
        "mnli", one_hot([2, 0], 3), np.array([1, 1]), ["x", "y"], class_sets=[(0,), (1, 2)]
    )
    assert worst == ("y", 0.0, 1)


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abc")), min_size=1, max_size=40))
def test_the_worst_group_is_never_better_than_the_whole(rows):
    correct, groups = zip(*rows, strict=True)
    logits, labels = one_hot(correct), np.ones(len(correct), dtype=int)
    worst = worst_group("sst2", logits, labels, groups)
    of_group = [ok for ok, group in rows if group == worst.name]
    assert worst.value == pytest.approx(sum(of_group) / len(of_group))
    assert worst.num_rows == len(of_group)
    assert worst.value <= task_metrics("sst2", logits, labels)["accuracy"] + 1e-12


def test_groups_must_fit_the_rows():
    with pytest.raises(ValueError, match="there are 1 groups for 2 labels"):
        worst_group("sst2", one_hot([0, 1]), np.array([0, 1]), ["a"])
