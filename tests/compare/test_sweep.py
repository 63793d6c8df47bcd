"""What a sweep chooses."""

from __future__ import annotations

import pytest

from balora.compare.sweep import choose, failure


def row(error=None, **metrics):
    return {"metrics": {} if error else metrics, "error": error}


VALUES = [{"learning_rate": rate} for rate in (1, 2, 3)]


def chosen(*rows, metric=None):
    return choose(VALUES[: len(rows)], rows, metric)


def test_the_best_by_the_metric_of_the_task():
    choice = chosen(
        row(exact_match=0.1, kl=1.0), row(exact_match=0.3, kl=2.0), row(exact_match=0.2)
    )
    assert (choice.fields, choice.metric) == ({"learning_rate": 2}, "exact_match")
    assert [run["value"] for run in choice.tried] == [0.1, 0.3, 0.2]


def test_less_is_better_for_a_loss():
    assert chosen(row(kl=3.0), row(kl=1.0), row(kl=2.0), metric="kl").fields == VALUES[1]
    # no answers to match: the loss on the responses
    found = chosen(row(exact_match=None, response_loss=3.0), row(response_loss=2.0))
    assert (found.fields, found.metric) == (VALUES[1], "response_loss")


def test_the_first_of_equals():
    assert chosen(row(accuracy=0.5), row(accuracy=0.7), row(accuracy=0.7)).fields == VALUES[1]
    assert chosen(row(mse=0.5), row(mse=0.5), metric="mse").fields == VALUES[0]


def test_within_the_tolerance_the_first_that_will_do():
    rows = (row(exact_match=0.94), row(exact_match=0.96), row(exact_match=0.98))
    assert choose(VALUES, rows, tolerance=0.02).fields == VALUES[1]
    assert choose(VALUES, rows, tolerance=0.05).fields == VALUES[0]
    losses = (row(kl=1.5), row(kl=1.0), row(kl=1.25))
    assert choose(VALUES, losses, "kl", tolerance=0.25).fields == VALUES[1]
    assert choose(VALUES, losses, "kl", tolerance=0.5).fields == VALUES[0]


@pytest.mark.parametrize("bad", [row("killed by signal 9"), row(exact_match=None)])
def test_a_run_without_a_figure_is_never_chosen(bad):
    assert chosen(bad, row(exact_match=0.0)).fields == VALUES[1]
    assert chosen(row(exact_match=0.0), bad).fields == VALUES[0]


def test_nothing_is_chosen_where_nothing_came_out():
    lost = chosen(row("out of memory"), row("exit status 1"))
    assert lost.fields is None
    assert failure(lost) == (
        "its sweep chose nothing: 2 of 2 runs failed, the first with: out of memory"
    )
    undefined = chosen(row(pearson=None), row(pearson=None), metric="pearson")
    assert undefined.fields is None
    assert "none of its 2 runs has the metric pearson" in failure(undefined)
