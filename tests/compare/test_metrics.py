"""The registry of metrics."""

from __future__ import annotations

import dataclasses

import pytest

from balora.compare import metrics
from balora.compare.metrics import METRICS, Metric, metric_of, task_metric
from balora.errors import ConfigError


def test_what_is_measured_is_registered_and_the_other_way_round():
    assert {*metrics.GENERATION, *metrics.LAB, *metrics.CLASSIFICATION} == set(METRICS)


def test_every_figure_of_a_defect_card_is_a_metric_of_the_lab():
    from balora.lab.card import DefectCard

    assert {field.name for field in dataclasses.fields(DefectCard)} <= set(metrics.LAB)


def test_what_is_measured_of_the_world_or_of_kept_text_is_not_of_the_task_rows():
    """A sweep replaces the rows of the task alone: the same facts and text are reported."""
    of_task_rows = {name for name, metric in METRICS.items() if metric.is_of_task_rows}
    assert of_task_rows == {*metrics.GENERATION, *metrics.CLASSIFICATION} - {"retention_loss"}
    assert not metric_of("hans:accuracy").is_of_task_rows


def test_every_metric_says_what_it_is_measured_on():
    with pytest.raises(TypeError, match="is_of_task_rows"):
        Metric("new", True, "{}", "other")


@pytest.mark.parametrize(
    ("name", "value", "chance", "is_nothing"),
    [
        ("exact_match", 0.0, None, True),
        ("exact_match", 0.005, None, False),
        ("accuracy", 0.542, 0.542, True),
        ("accuracy", 0.5, 0.542, True),
        ("accuracy", 0.55, 0.542, False),
        ("accuracy", 0.542, None, False),
        ("matthews_correlation", -0.1, 0.0, True),
        ("pearson", 0.0, None, True),
        ("response_loss", 9.0, None, False),
    ],
)
def test_a_value_that_shows_that_nothing_was_learned(name, value, chance, is_nothing):
    assert METRICS[name].is_nothing(value, chance) == is_nothing


def test_a_figure_of_another_origin_speaks_of_what_was_kept():
    own, other = metric_of("accuracy"), metric_of("hans:accuracy")
    assert (own.role, other.role) == ("task", "forgetting")
    assert (own.form, own.higher_is_better) == (other.form, other.higher_is_better)
    assert other.title == "accuracy, hans"
    assert metric_of("hans:ece").role == "other"


def test_unknown_metric_gets_the_list():
    with pytest.raises(ConfigError, match=r"`acuracy` is no metric \(did you mean `accuracy`\?\)"):
        metric_of("acuracy")


def test_values_are_shown_in_their_form():
    assert METRICS["exact_match"].show(0.937) == "93.7%"
    assert METRICS["kl"].show(None) == "-"


@pytest.mark.parametrize(
    ("name", "value", "text", "signed"),
    [
        ("kl", 1.13e-5, "1.1e-05", "+1.1e-05"),
        ("kl", -4e-7, "-4e-07", "-4e-07"),
        ("kl", 6e-5, "0.0001", "+0.0001"),
        ("kl", -0.0, "0.0000", "+0.0000"),
        ("exact_match", 3.9e-4, "0.039%", "+0.039%"),
        ("exact_match", 0.3 - (0.1 + 0.2), "0.0%", "+0.0%"),
        ("exact_match", 0.125, "12.5%", "+12.5%"),
    ],
)
def test_only_nothing_is_shown_as_nothing(name, value, text, signed):
    assert METRICS[name].show(value) == text
    assert METRICS[name].show(value, is_signed=True) == signed


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        ([{"kl": 1.0, "exact_match": 0.5, "response_loss": 1.0}], "exact_match"),
        ([{"exact_match": None, "response_loss": 1.0}], "response_loss"),
        ([{"accuracy": 0.5, "matthews_correlation": 0.1}], "matthews_correlation"),
        ([{}, {"pearson": 0.5, "mse": 1.0}], "pearson"),
        ([{"kl": 1.0}, {}], None),
    ],
)
def test_metric_of_the_task(figures, name):
    assert task_metric(figures) == name
