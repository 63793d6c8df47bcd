"""The before / after table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from balora.evaluation import Inheritance, format_table

BEFORE = Inheritance(
    exact_match=0.0,
    kl=0.0,
    entropy=1.5,
    response_loss=3.25,
    retention_loss=0.75,
    num_examples=4,
    num_tokens=50,
    num_truncated=0,
    dtype="float32",
)
AFTER = replace(BEFORE, exact_match=0.875, kl=2.5, entropy=0.25, response_loss=0.5)


def cells(table, title):
    line = next(line for line in table.splitlines() if line.startswith(title))
    return line.removeprefix(title).split()


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


def test_three_models_stand_side_by_side_without_a_change():
    table = format_table({"base": BEFORE, "lora": AFTER, "balora": AFTER})
    assert table.splitlines()[0].split() == ["base", "lora", "balora"]
    assert cells(table, "exact match") == ["0.0%", "87.5%", "87.5%"]


def test_what_is_missing_is_a_dash_and_what_no_one_has_is_left_out():
    table = format_table({"before": replace(BEFORE, exact_match=None), "after": AFTER})
    assert cells(table, "exact match") == ["-", "87.5%", "-"]
    nobody = replace(BEFORE, retention_loss=None)
    assert "retained" not in format_table({"before": nobody})


def test_no_model_is_refused():
    with pytest.raises(ValueError, match="no model"):
        format_table({})
