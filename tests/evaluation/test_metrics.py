"""The registry of metrics."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from balora.errors import ConfigError
from balora.evaluation.metrics import (
    METRICS,
    Metric,
    asked_metric,
    measured_by,
    metric_of,
    register,
    task_metric,
)
from balora.recipes.kinds import CLASSIFICATION, GENERATION


def test_every_metric_has_an_instrument_and_is_found_under_its_name():
    instruments = (*GENERATION.instruments, *CLASSIFICATION.instruments, "lab", "benchmark", "run")
    assert set(measured_by(*instruments)) == METRICS.keys()
    assert all(metric.name == name for name, metric in METRICS.items())


def test_benchmarks_have_their_titles_where_only_a_report_is_written():
    code = (
        "import sys; from balora.evaluation.metrics import metric_of; m = metric_of('gsm8k'); "
        "assert not [name for name in sys.modules if 'evaluation.bench' in name]; "
        "print(m.title, m.show(0.5), m.direction)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "GSM8K 50.0% up\n"


def test_what_is_measured_of_the_world_or_of_kept_text_is_not_of_the_task_rows():
    """A sweep replaces the rows of the task alone: the same facts and text are reported."""
    of_task_rows = {name for name, metric in METRICS.items() if metric.is_of_task_rows}
    assert of_task_rows == {*measured_by("answers", "responses", "classification")}
    assert not metric_of("hans:accuracy").is_of_task_rows
    assert not metric_of("gsm8k/exact_match").is_of_task_rows


@pytest.fixture
def _own_metrics(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr("balora.evaluation.metrics.METRICS", dict(METRICS))


@pytest.mark.usefixtures("_own_metrics")
def test_a_module_registers_a_metric_of_its_own():
    metric = Metric("gsm8k/solved", "GSM8K solved", "{:.1%}", "up", "gsm8k", "retention")
    register(metric)
    register(metric)  # as a module that is imported twice
    assert metric_of("gsm8k/solved") is metric
    assert asked_metric("gsm8k/solved") is metric
    assert measured_by("gsm8k") == ("gsm8k/solved",)
    with pytest.raises(ValueError, match="`gsm8k/solved` is registered as"):
        register(Metric("gsm8k/solved", "another", "{:.1%}", "up", "gsm8k", "retention"))


def test_a_metric_that_no_one_registered_is_a_plain_number_that_ranks_nothing():
    metric = metric_of("of_a_later_version")
    assert (metric.title, metric.higher_is_better) == ("of_a_later_version", None)
    assert (metric.role, metric.is_of_task_rows) == ("other", False)
    assert metric.show(0.1234567) == "0.1235"
    assert metric_of("hans:new").title == "hans:new"


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
    assert (own.role, other.role) == ("task", "retention")
    assert (own.form, own.higher_is_better) == (other.form, other.higher_is_better)
    assert other.title == "accuracy, hans"
    assert metric_of("hans:ece").role == "other"
    assert metric_of("gsm8k/exact_match").title == "exact match, gsm8k"


def test_unknown_metric_gets_the_list():
    with pytest.raises(ConfigError, match=r"`acuracy` is no metric \(did you mean `accuracy`\?\)"):
        asked_metric("acuracy")
    with pytest.raises(ConfigError, match="`train_seconds` is no metric; there are exact_match, "):
        asked_metric("train_seconds")
    assert asked_metric("hans:accuracy") == metric_of("hans:accuracy")


def test_values_are_shown_in_their_form():
    assert METRICS["exact_match"].show(0.937) == "93.7%"
    assert METRICS["kl"].show(None) == METRICS["kl"].show(math.nan) == "-"


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
