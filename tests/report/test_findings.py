"""What is said of a comparison, and what is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from balora.report.findings import matched, unfinished, unlearned
from balora.report.study import read_study
from balora.report.texts import difference_text
from support.fake_comparison import row, runs, write_rows

LORA = runs("lora", (0.50, 0.52, 0.51), (0.40, 0.42, 0.41))
BETTER = runs("pissa", (0.60, 0.63, 0.61), (0.30, 0.32, 0.31))
UNSURE = runs("full", (0.60, 0.45, 0.50), (0.35, 0.37, 0.36))
TWO_CONDITIONS = {"baseline": "lora", "conditions": {"a": {}, "b": {}}}


def study_of(folder, rows, **compare):
    return read_study(write_rows(folder, rows, **{"baseline": "lora", **compare}))


def said(folder, rows, **compare):
    return matched(study_of(folder, rows, **compare))


def test_an_interval_beyond_zero_is_one_star_where_there_are_many_methods(tmp_path):
    rng = np.random.default_rng(0)
    seeds = range(5)
    lora = rng.normal(0.5, 0.01, 5)
    gains = {"pissa": 0.012, **{f"full{i}": 0.0 for i in range(10)}}
    noise = {name: rng.normal(0, 0.008, 5) for name in gains}
    rows = [row("lora", s, exact_match=lora[s]) for s in seeds]
    for name, gain in gains.items():
        values = lora + gain + noise[name] - noise[name].mean()
        rows += [row(name, s, exact_match=values[s]) for s in seeds]
    alone = study_of(tmp_path / "1", [r for r in rows if "full" not in r["method"]])
    p_value = alone.corrected("", "exact_match")["pissa"]
    assert p_value < 0.05
    assert difference_text(alone, "", "pissa", "exact_match").endswith("] **")
    of_many = study_of(tmp_path / "2", rows, methods=["lora", *gains])
    assert of_many.corrected("", "exact_match")["pissa"] == pytest.approx(11 * p_value)
    assert difference_text(of_many, "", "pissa", "exact_match").endswith("] *")


@pytest.mark.parametrize("num_methods", [3, 12])
@pytest.mark.parametrize("num_seeds", [3, 5])
def test_of_equal_methods_one_study_in_twenty_has_two_stars_at_most(
    tmp_path, num_methods, num_seeds
):
    methods = [f"m{i}" for i in range(num_methods)]
    rows = [row(m, s, exact_match=0.5) for m in methods for s in range(num_seeds)]
    study = study_of(tmp_path, rows, methods=methods, baseline="m0")
    rng, beyond, repeats = np.random.default_rng(num_methods + num_seeds), 0, 300
    for _ in range(repeats):
        values = iter(rng.normal(0.9, 0.02, len(rows)).tolist())
        drawn = tuple({**r, "metrics": {"exact_match": next(values)}} for r in rows)
        corrected = dataclasses.replace(study, rows=drawn).corrected("", "exact_match")
        beyond += any(p is not None and p <= 0.05 for p in corrected.values())
    assert beyond / repeats < 0.08  # 0.05, and 0.0126 is its standard error


def test_the_best_at_no_more_forgetting_than_the_baseline(tmp_path):
    modest = runs("full", (0.54, 0.57, 0.55), (0.41, 0.43, 0.42))
    rows = [*LORA, *BETTER, *modest]
    assert said(tmp_path, rows, methods=["lora", "pissa", "full"]) == {
        "": "Of the methods no worse than lora in recall of facts, the best in exact match: full, "
        "55.3% +- 3.8%, +4.3% [+2.9%, +5.8%] ** to lora."
    }


def test_what_keeps_as_much_and_learns_less_does_not_beat_the_baseline(tmp_path):
    rows = [*LORA, *runs("full", (0.1, 0.12, 0.11), (0.40, 0.42, 0.41))]
    (sentence,) = said(tmp_path, rows, methods=["lora", "full"]).values()
    assert sentence.endswith("the best in exact match: lora, 51.0% +- 2.5%.")


def test_less_loss_is_more_kept(tmp_path):
    figures = {"lora": (0.5, 2.0), "pissa": (0.9, 2.1), "full": (0.6, 1.9)}
    rows = [row(m, 0, exact_match=x, retention_loss=y) for m, (x, y) in figures.items()]
    (sentence,) = said(tmp_path, rows, methods=[*figures]).values()
    assert sentence.endswith("the best in exact match: full, 60.0%, +10.0% to lora.")


def test_nothing_keeps_as_much_or_nothing_can_be_held_against_the_baseline(tmp_path):
    rows = [
        *runs("lora", (0.5,), (0.4,), "a"),
        *runs("pissa", (0.6,), (0.3,), "a"),
        *runs("lora", (0.5,), (0.4,), "b"),
    ]
    found = said(tmp_path, rows, methods=["lora", "pissa"], **TWO_CONDITIONS)
    assert found == {"a": "No method is as good as lora in recall of facts."}


@pytest.mark.parametrize("lost", [0, 2])
def test_a_method_with_a_failed_run_is_not_ranked(tmp_path, lost):
    diverged = runs("pissa", (0.9, 0.95, 0.9), (0.9, 0.9, 0.9))
    diverged[lost] = row("pissa", lost, error="the loss is NaN")
    rows = [*LORA, *UNSURE, *diverged]
    study = study_of(tmp_path, rows, methods=["lora", "full", "pissa"])
    assert study.best("", "exact_match", study.trained) == ("full",)
    assert "pissa" not in "".join(matched(study).values())


def test_the_best_is_of_the_methods_of_its_condition(tmp_path):
    rows = [*runs("lora", (0.5,), (0.4,), "a"), *runs("full", (0.9,), (0.1,), "b")]
    study = study_of(tmp_path, rows, methods=["lora", "full"])
    best = [study.best(condition, "exact_match", study.trained) for condition in "ab"]
    assert best == [("lora",), ("full",)]


def test_the_pre_trained_model_as_baseline_can_be_the_best(tmp_path):
    base = row("base", None, exact_match=0.9, recall=0.3)
    asked = {"methods": ["base", "lora"], "baseline": "base"}
    (found,) = said(tmp_path / "1", [base, *LORA], **asked).values()
    assert found.endswith("the best in exact match: base, 90.0%.")
    base = row("base", None, exact_match=0.9, recall=0.8)
    (found,) = said(tmp_path / "2", [base, *LORA], **asked).values()
    assert found == "No method is as good as base in recall of facts."


def test_where_every_method_lost_a_run_none_is_the_best(tmp_path):
    rows = [row("lora", 0, exact_match=0.5), row("lora", 1, error="no memory")]
    study = study_of(tmp_path, rows, methods=["lora"])
    assert study.best("", "exact_match", study.trained) == ()


def test_equals_share_the_lead_and_where_neither_way_is_better_no_one_leads(tmp_path):
    rows = [row(m, s, exact_match=0.5, entropy=s) for m in ("lora", "full") for s in (0, 1)]
    study = study_of(tmp_path, rows, methods=["lora", "full"])
    assert study.best("", "exact_match", study.trained) == ("lora", "full")
    assert study.best("", "entropy", study.trained) == ()


def test_nothing_is_said_of_a_comparison_that_is_not_finished(tmp_path):
    asked = {"methods": ["base", "lora", "pissa"], "seeds": [0, 1]}
    study = study_of(tmp_path, [row("lora", 0, accuracy=0.67)], **asked)
    assert unfinished(study) == (
        "Not finished: 4 of 5 cells have not run (base, lora/seed-1, pissa/seed-0, pissa/seed-1), "
        "so nothing is ranked."
    )
    assert matched(study) == {}
    # a cell that failed has run: it is told apart from one that has not
    rows = [row(m, s, accuracy=0.6) for m in ("lora", "pissa") for s in (0, 1)]
    rows[3] = row("pissa", 1, error="killed")
    whole = study_of(tmp_path / "2", [row("base", None, accuracy=0.5), *rows], **asked)
    assert unfinished(whole) is None


def test_nothing_is_said_where_nothing_was_solved(tmp_path):
    rows = [*runs("lora", (0.0, 0.0), (0.1, 0.3)), *runs("full", (0.0, 0.0), (0.3, 0.1))]
    study = study_of(tmp_path, rows, methods=["lora", "full"])
    assert unlearned(study) == {"": "No method learned the task: the best exact match is 0.0%."}
    assert matched(study) == {}


def test_nothing_is_said_of_methods_that_say_the_majority_class(tmp_path):
    rows = [row(m, s, accuracy=0.542) for m in ("lora", "full", "pissa") for s in (0, 1)]
    for one in rows:
        one["majority"] = {"accuracy": 0.542, "macro_f1": 0.351}
    asked = {"methods": ["lora", "full", "pissa"]}
    assert unlearned(study_of(tmp_path / "1", rows, **asked)) == {
        "": "No method is above the majority class: the best accuracy is 54.2%, and that of the "
        "majority class 54.2%."
    }
    rows[-1]["metrics"]["accuracy"] = 0.8
    assert unlearned(study_of(tmp_path / "2", rows, **asked)) == {}


def test_only_conditions_in_which_something_was_learned_are_spoken_of(tmp_path):
    rows = [
        *runs("lora", (0.5, 0.6), (0.4, 0.5), "a"),
        *runs("full", (0.7, 0.9), (0.5, 0.7), "a"),
        *runs("lora", (0.0, 0.0), (0.8, 0.8), "b"),
        *runs("full", (0.0, 0.0), (0.9, 0.9), "b"),
    ]
    study = study_of(tmp_path, rows, methods=["lora", "full"], **TWO_CONDITIONS)
    assert matched(study).keys() == {"a"}
    assert unlearned(study) == {
        "b": "Under b, no method learned the task: the best exact match is 0.0%."
    }
