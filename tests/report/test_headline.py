"""What is announced of a comparison, and what is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from balora.report.headline import findings, headline, leaders_of, matched
from balora.report.study import read_study
from support.fake_comparison import row, runs, write_rows

LORA = runs("lora", (0.50, 0.52, 0.51), (0.40, 0.42, 0.41))
BETTER = runs("pissa", (0.60, 0.63, 0.61), (0.30, 0.32, 0.31))
UNSURE = runs("full", (0.60, 0.45, 0.50), (0.35, 0.37, 0.36))
HOLM = "at the 5% level, by Holm's test"


def study_of(folder, rows, **compare):
    return read_study(write_rows(folder, rows, **compare))


def told(folder, rows, **compare):
    return headline(study_of(folder, rows, **compare))


def test_the_leader_is_named_with_its_interval_and_what_is_sure(tmp_path):
    text = told(tmp_path, [*LORA, *BETTER], methods=["lora", "pissa"], baseline="lora")
    assert text == (
        "Best exact match: pissa, 61.3%, +10.3% against lora (95% interval +8.9% to +11.8%; ahead "
        f"{HOLM}); keeping most (recall of facts): lora, 41.0%, the baseline."
    )


def test_the_headline_says_when_there_is_no_difference(tmp_path):
    text = told(tmp_path, [*LORA, *UNSURE], methods=["lora", "full"], baseline="lora")
    assert text.startswith("Best exact match: full, 51.7%, +0.7% against lora (95% interval -2")
    assert f"; not ahead {HOLM}); keeping most" in text


def test_an_interval_beyond_zero_is_no_lead_where_the_leader_was_picked_from_many(tmp_path):
    rng = np.random.default_rng(0)
    seeds = range(5)
    lora = rng.normal(0.5, 0.01, 5)
    gains = {"pissa": 0.012, **{f"full{i}": 0.0 for i in range(10)}}
    noise = {name: rng.normal(0, 0.008, 5) for name in gains}
    rows = [row("lora", s, exact_match=lora[s]) for s in seeds]
    for name, gain in gains.items():
        values = lora + gain + noise[name] - noise[name].mean()
        rows += [row(name, s, exact_match=values[s]) for s in seeds]
    methods = ["lora", *gains]
    alone = study_of(
        tmp_path / "1", [r for r in rows if "full" not in r["method"]], baseline="lora"
    )
    (leader,) = leaders_of(alone, "exact_match")
    assert leader.difference.excludes_zero
    assert leader.p_value < 0.05
    assert f"; ahead {HOLM}" in headline(alone)
    study = study_of(tmp_path / "2", rows, methods=methods, baseline="lora")
    (picked,) = leaders_of(study, "exact_match")
    assert picked.difference == leader.difference
    assert picked.p_value == pytest.approx(11 * leader.p_value)
    assert f"; not ahead {HOLM}" in headline(study)


@pytest.mark.parametrize("num_methods", [3, 12])
@pytest.mark.parametrize("num_seeds", [3, 5])
def test_of_equal_methods_one_in_twenty_is_called_ahead_at_most(tmp_path, num_methods, num_seeds):
    methods = [f"m{i}" for i in range(num_methods)]
    rows = [row(m, s, exact_match=0.5) for m in methods for s in range(num_seeds)]
    study = study_of(tmp_path, rows, methods=methods, baseline="m0")
    rng, ahead, repeats = np.random.default_rng(num_methods + num_seeds), 0, 120
    for _ in range(repeats):
        values = iter(rng.normal(0.9, 0.02, len(rows)).tolist())
        drawn = tuple({**r, "metrics": {"exact_match": next(values)}} for r in rows)
        ahead += f"; ahead {HOLM}" in headline(dataclasses.replace(study, rows=drawn))
    assert ahead / repeats <= 0.05


def test_a_difference_that_is_the_same_in_every_seed_is_no_lead(tmp_path):
    rows = [*LORA, *runs("pissa", (0.60, 0.62, 0.61), (0.30, 0.32, 0.31))]
    text = told(tmp_path, rows, methods=["lora", "pissa"], baseline="lora")
    assert "+10.0% against lora in every seed, from which no interval follows;" in text
    assert "ahead" not in text


def test_the_smaller_loss_is_the_better(tmp_path):
    rows = [row(m, 0, response_loss=x, retention_loss=1 / x) for m, x in (("lora", 2), ("full", 1))]
    text = told(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    assert text.startswith("Best response loss (nats/token): full, 1.0000, -1.0000 against lora on")
    assert "keeping most (loss on retained text (nats/token)): lora, 0.5000, the baseline" in text
    assert "on one seed, which says nothing of the next" in text


def test_the_pre_trained_model_does_not_win_at_keeping(tmp_path):
    rows = [row("base", None, exact_match=0.0, recall=0.99), *LORA, *BETTER]
    text = told(tmp_path, rows, methods=["base", "lora", "pissa"], baseline="lora")
    assert "base" not in text.replace("baseline", "")


def test_the_headline_over_conditions(tmp_path):
    rows = [
        *(r for c in ("a", "b") for r in runs("lora", (0.50, 0.52, 0.51), (0.40, 0.42, 0.41), c)),
        *runs("pissa", (0.60, 0.63, 0.61), (0.30, 0.32, 0.31), "a"),
        *runs("pissa", (0.60, 0.45, 0.53), (0.30, 0.32, 0.31), "b"),
    ]
    asked = {"methods": ["lora", "pissa"], "baseline": "lora", "conditions": {"a": {}, "b": {}}}
    ahead = "ahead of lora at the 5% level, by Holm's test:"
    assert told(tmp_path / "1", rows, **asked) == (
        f"Best exact match: pissa in a and b ({ahead} in a); keeping most (recall of facts): lora "
        "in a and b."
    )
    rows[-3:] = runs("pissa", (0.4, 0.4, 0.4), (0.9, 0.1, 0.9), "b")
    assert told(tmp_path / "2", rows, **asked) == (
        f"Best exact match: pissa in a, lora in b ({ahead} in a); keeping most (recall of facts): "
        f"lora in a, pissa in b ({ahead} nowhere)."
    )
    untried = [row for row in rows if row["method"] != "lora"]
    failed = [{**row, "error": "died", "metrics": {}} for row in rows if row["method"] == "lora"]
    text = told(tmp_path / "3", [*failed, *untried], **asked)
    assert text.startswith("Best exact match: pissa in a and b; keeping most")
    assert "ahead" not in text
    one = [row(m, 0, c, exact_match=x) for c in "ab" for m, x in (("lora", 0.1), ("full", 0.9))]
    asked["methods"] = ["lora", "full"]
    text = told(tmp_path / "4", one, **asked)
    assert text.endswith("(held against lora on one seed, which says nothing of the next).")


def test_who_keeps_most_and_learned_less_is_told_so(tmp_path):
    rows = [*LORA, *runs("full", (0.1, 0.13, 0.11), (0.9, 0.93, 0.91))]
    (sentences,) = findings(
        study_of(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    ).values()
    assert sentences[1].startswith("keeping most (recall of facts): full, 91.3%, +50.3% against")
    assert sentences[1].endswith("; its exact match differs by -39.7%.")


def test_the_best_at_no_more_forgetting_than_the_baseline(tmp_path):
    modest = runs("full", (0.54, 0.57, 0.55), (0.41, 0.43, 0.42))
    rows = [*LORA, *BETTER, *modest]
    study = study_of(tmp_path, rows, methods=["lora", "pissa", "full"], baseline="lora")
    (sentence,) = matched(study).values()
    assert sentence.startswith(
        "Of the methods no worse than lora in recall of facts: best exact match: full, 55.3%, +4.3%"
    )


def test_what_keeps_as_much_and_learns_less_does_not_beat_the_baseline(tmp_path):
    rows = [*LORA, *runs("full", (0.1, 0.12, 0.11), (0.40, 0.42, 0.41))]
    (sentence,) = matched(
        study_of(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    ).values()
    assert sentence.endswith("best exact match: lora, 51.0%, the baseline.")


def test_less_loss_is_more_kept(tmp_path):
    figures = {"lora": (0.5, 2.0), "pissa": (0.9, 2.1), "full": (0.6, 1.9)}
    rows = [row(m, 0, exact_match=x, retention_loss=y) for m, (x, y) in figures.items()]
    (sentence,) = matched(study_of(tmp_path, rows, methods=[*figures], baseline="lora")).values()
    assert "best exact match: full, 60.0%" in sentence


def test_nothing_keeps_as_much_or_nothing_can_be_held_against_the_baseline(tmp_path):
    asked = {"methods": ["lora", "pissa"], "baseline": "lora", "conditions": {"a": {}, "b": {}}}
    rows = [
        *runs("lora", (0.5,), (0.4,), "a"),
        *runs("pissa", (0.6,), (0.3,), "a"),
        *runs("lora", (0.5,), (0.4,), "b"),
    ]
    found = matched(study_of(tmp_path, rows, **asked))
    assert found == {"a": "No method is as good as lora in recall of facts."}


def test_the_best_is_of_the_methods_of_its_condition(tmp_path):
    rows = [*runs("lora", (0.5,), (0.4,), "a"), *runs("full", (0.9,), (0.1,), "b")]
    study = study_of(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    assert [(x.condition, x.methods) for x in leaders_of(study, "exact_match")] == [
        ("a", ("lora",)),
        ("b", ("full",)),
    ]


@pytest.mark.parametrize("lost", [0, 2])
def test_a_method_with_a_failed_run_is_not_ranked(tmp_path, lost):
    diverged = runs("pissa", (0.9, 0.95, 0.9), (0.9, 0.9, 0.9))
    diverged[lost] = row("pissa", lost, error="the loss is NaN")
    rows = [*LORA, *UNSURE, *diverged]
    study = study_of(tmp_path, rows, methods=["lora", "full", "pissa"], baseline="lora")
    text = headline(study)
    assert text.startswith("Best exact match: full, 51.7%")
    assert text.endswith(" Not ranked where figures of a run are missing: pissa.")
    assert "pissa" not in "".join(matched(study).values())


def test_what_the_baseline_lost_is_no_lead(tmp_path):
    """Means over other seeds would rank pissa first, while seed by seed it is behind."""
    rows = []
    for condition in ("a", "b"):
        lora = runs("lora", (0.6, 0.61, 0.6), (0.4, 0.4, 0.4), condition)
        lora[2] = row("lora", 2, condition, error="no memory")
        rows += [*lora, *runs("pissa", (0.5, 0.501, 0.95), (0.4, 0.4, 0.4), condition)]
    asked = {"methods": ["lora", "pissa"], "baseline": "lora", "conditions": {"a": {}, "b": {}}}
    text = told(tmp_path, rows, **asked)
    assert "by Holm's test: in" not in text
    assert text.endswith(" Not ranked where figures of a run are missing: lora.")


def test_the_pre_trained_model_as_baseline_can_be_the_best(tmp_path):
    base = row("base", None, exact_match=0.9, recall=0.3)
    asked = {"methods": ["base", "lora"], "baseline": "base"}
    (found,) = matched(study_of(tmp_path / "1", [base, *LORA], **asked)).values()
    assert found.endswith("best exact match: base, 90.0%, the baseline.")
    base = row("base", None, exact_match=0.9, recall=0.8)
    (found,) = matched(study_of(tmp_path / "2", [base, *LORA], **asked)).values()
    assert found == "No method is as good as base in recall of facts."


def test_where_every_method_lost_a_run_none_is_the_best(tmp_path):
    rows = [row("lora", 0, exact_match=0.5), row("lora", 1, error="no memory")]
    assert told(tmp_path, rows, methods=["lora"]) == (
        "No method has the figure of every seed, so none is named the best."
    )


def test_equals_share_the_lead(tmp_path):
    rows = [*runs("lora", (0.5, 0.5), (0.1, 0.3)), *runs("full", (0.5, 0.5), (0.2, 0.1))]
    asked = {"methods": ["lora", "full"], "baseline": "lora"}
    assert told(tmp_path, rows, **asked).startswith("Best exact match: lora and full, 50.0%; keep")


def test_nothing_is_announced_of_a_comparison_that_is_not_finished(tmp_path):
    asked = {"methods": ["base", "lora", "pissa"], "seeds": [0, 1], "baseline": "lora"}
    study = study_of(tmp_path, [row("lora", 0, accuracy=0.67)], **asked)
    assert headline(study) == (
        "Not finished: 4 of 5 cells have not run (base, lora/seed-1, pissa/seed-0, pissa/seed-1), "
        "so nothing is ranked."
    )
    assert (findings(study), matched(study)) == ({}, {})
    # a cell that failed has run: it is told apart from one that has not
    rows = [row(m, s, accuracy=0.6) for m in ("lora", "pissa") for s in (0, 1)]
    rows[3] = row("pissa", 1, error="killed")
    whole = study_of(tmp_path / "2", [row("base", None, accuracy=0.5), *rows], **asked)
    assert headline(whole).startswith("Best accuracy: lora")


def test_nothing_is_announced_where_nothing_was_solved(tmp_path):
    rows = [*runs("lora", (0.0, 0.0), (0.1, 0.3)), *runs("full", (0.0, 0.0), (0.3, 0.1))]
    asked = {"methods": ["lora", "full"], "baseline": "lora"}
    study = study_of(tmp_path, rows, **asked)
    sentence = "No method learned the task: the best exact match is 0.0%."
    assert headline(study) == sentence
    assert findings(study) == {"": [f"n{sentence[1:]}"]}
    assert matched(study) == {}


def test_nothing_is_announced_of_methods_that_say_the_majority_class(tmp_path):
    rows = [row(m, s, accuracy=0.542) for m in ("lora", "full", "pissa") for s in (0, 1)]
    for one in rows:
        one["majority"] = {"accuracy": 0.542, "macro_f1": 0.351}
    asked = {"methods": ["lora", "full", "pissa"], "baseline": "lora"}
    assert told(tmp_path / "1", rows, **asked) == (
        "No method is above the majority class: the best accuracy is 54.2%, and that of the "
        "majority class 54.2%."
    )
    rows[-1]["metrics"]["accuracy"] = 0.8
    assert told(tmp_path / "2", rows, **asked).startswith("Best accuracy: pissa, 67.1%")


def test_a_condition_in_which_nothing_was_learned_has_no_leader(tmp_path):
    rows = [
        *runs("lora", (0.5, 0.6), (0.4, 0.5), "a"),
        *runs("full", (0.7, 0.9), (0.3, 0.5), "a"),
        *runs("lora", (0.0, 0.0), (0.9, 0.9), "b"),
        *runs("full", (0.0, 0.0), (0.8, 0.8), "b"),
    ]
    asked = {"methods": ["lora", "full"], "baseline": "lora", "conditions": {"a": {}, "b": {}}}
    text = told(tmp_path, rows, **asked)
    assert text.startswith("Best exact match: full in a (")
    assert text.endswith(
        "lora in a. Under b, no method learned the task: the best exact match is 0.0%."
    )
