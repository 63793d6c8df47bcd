"""The before / after table."""

from __future__ import annotations

import pytest

from balora.evaluation import format_table
from balora.evaluation.metrics import METRICS
from balora.evaluation.table import markdown, metric_lines

BEFORE = {
    "exact_match": 0.0,
    "kl": 0.0,
    "entropy": 1.5,
    "response_loss": 3.25,
    "retention_loss": 0.75,
}
AFTER = BEFORE | {"exact_match": 0.875, "kl": 2.5, "entropy": 0.25, "response_loss": 0.5}


def cells(table, title):
    line = next(line for line in table.splitlines() if line.startswith(title))
    return line.split("  ", 1)[1].split()


def test_two_columns_and_what_changed():
    table = format_table({"before": BEFORE, "after": AFTER})
    assert table.splitlines()[0].split() == ["before", "after", "change"]
    assert cells(table, "exact match") == ["0.0%", "87.5%", "+87.5%"]
    assert cells(table, "response entropy (nats/token)") == ["1.5000", "0.2500", "-1.2500"]
    assert cells(table, "KL to the pre-trained model (nats/token)")[-1] == "+2.5000"


def test_columns_are_aligned_to_the_right():
    lines = format_table({"before": BEFORE, "after": AFTER}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].endswith("change")


def test_every_other_model_has_its_change_from_the_first():
    table = format_table({"base": BEFORE, "lora": AFTER, "full": BEFORE | {"kl": 1.13e-5}})
    assert table.splitlines()[0].split() == ["base", "lora", "change", "full", "change"]
    assert cells(table, "exact match") == ["0.0%", "87.5%", "+87.5%", "0.0%", "+0.0%"]
    # what would round to 0 is no 0
    assert cells(table, "KL")[-2:] == ["1.1e-05", "+1.1e-05"]


def test_what_is_missing_is_a_dash_and_what_no_one_has_is_left_out():
    table = format_table({"before": BEFORE | {"exact_match": None}, "after": AFTER})
    assert cells(table, "exact match") == ["-", "87.5%", "-"]
    assert "retained" not in format_table({"before": BEFORE | {"retention_loss": None}})


def test_titles_and_formats_are_the_registrys_in_the_order_of_the_figures():
    figures = dict.fromkeys(reversed(METRICS), 0.5)
    lines = metric_lines({"a": figures}, figures)
    assert lines == [[METRICS[name].title, METRICS[name].show(0.5)] for name in figures]
    assert [line.split("  ")[0] for line in format_table({"a": figures}).splitlines()[2:]] == [
        title for title, _ in lines
    ]


def test_no_model_is_refused():
    with pytest.raises(ValueError, match="`columns` is empty"):
        format_table({})


def test_markdown_shows_what_stands_there():
    assert markdown([["", "a_b"], ["x|y", "1 +- 2"]]).splitlines() == [
        "|  | a\\_b |",
        "| --- | ---: |",
        "| x\\|y | 1 \N{PLUS-MINUS SIGN} 2 |",
    ]
