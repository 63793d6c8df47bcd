"""Terms that cannot act are said once in a run: `svd_k` at the rank, a single column of logits."""

from __future__ import annotations

import logging
import re

import pytest

from support import classification, training
from support.training import LARGE, OFF

SVD = {**OFF, "svd_coef": 0.1}


def messages(caplog, *trainers):
    """Train each, and return what was said of terms that are constant."""
    with caplog.at_level(logging.WARNING, "balora"):
        for make in trainers:
            make().train()
    return [r.getMessage() for r in caplog.records if "constant" in r.getMessage()]


GENERATION = {
    "few tokens": (
        {"svd_k": 100},
        {},
        r"`svd_k` is 100, but there are at most \d+ singular values, the number of scored tokens",
    ),
    "one token": (
        {"svd_max_tokens": 1},
        {},
        r"`svd_k` is 0.3, .* at most 1 singular values, .* act, raise `svd_max_tokens`; else",
    ),
    "kept rows": (
        {"svd_k": 8, "svd_max_tokens": 8},
        {},
        r"of rows that `svd_max_tokens` leaves: .* act, set `svd_k` to a count below 8 or",
    ),
    "hidden size": (
        {"svd_k": 64},
        {"per_device_train_batch_size": 16},
        "at most 32 .* of entries in a hidden state: .* act, set `svd_k` to a count below 32 or",
    ),
    "all of them": ({"svd_k": 1.0}, {}, "`svd_k` is 1.0, but there are at most"),
    "with variance": ({"svd_k": 100, "svd_variance_coef": 0.1}, {}, "the ratio of the SVD term is"),
}


@pytest.mark.parametrize("case", GENERATION)
def test_generation_says_once_that_k_reaches_the_rank(tmp_path, case, caplog):
    objective, settings, sentence = GENERATION[case]
    rows = training.make_rows(16)
    objective = {**SVD, **objective}
    (said,) = messages(
        caplog,
        lambda: training.make_trainer(tmp_path, objective=objective, rows=rows, **settings),
    )
    assert re.search(sentence, said)
    assert said.startswith("step 1: ")
    assert said.endswith("else set `svd_coef: 0`. This is said once.")


def test_a_smaller_micro_step_later_in_the_run_is_said_with_its_step(tmp_path, caplog):
    rows = [{"prompt": "a=", "completion": c} for c in ("bcdefghijk" * 2, "b", "b")]
    data = training.Dataset.from_list(rows)
    settings = {"per_device_train_batch_size": 1, "max_steps": 3}
    objective = {**SVD, "svd_k": 2}

    def make():
        trainer = training.make_trainer(tmp_path, objective=objective, rows=data, **settings)
        trainer._get_train_sampler = lambda *_: None  # in the order of the rows
        return trainer

    (said,) = messages(caplog, make)
    assert said.startswith("step 2: `svd_k` is 2, but there are at most 2 singular values")
    assert "To let it act, use larger batches or set `svd_k` to a count below 2" in said


SILENT = {
    "the default": {},
    "Frobenius": {"svd_k": 100, "svd_denominator": "frobenius"},
    "off": {"svd_k": 100, "svd_coef": 0.0},
    "not yet on": {"svd_k": 100, "schedule": "iclr2026"},
    "one below the rank": {"svd_k": 31, "svd_max_tokens": 32},
}


@pytest.mark.parametrize("objective", SILENT.values(), ids=SILENT)
def test_generation_says_nothing_where_the_term_acts_or_is_off(tmp_path, objective, caplog):
    is_scheduled = "schedule" in objective
    settings = {"max_steps": 20 if is_scheduled else 3, "per_device_train_batch_size": 16}
    rows = training.make_rows(16)
    trainer = training.make_trainer(tmp_path, objective={**SVD, **objective}, rows=rows, **settings)
    if is_scheduled:  # a fifth of the run without the term
        trainer.add_callback(StopAfter(3))
    assert messages(caplog, lambda: trainer) == []


class StopAfter(training.TrainerCallback):
    """Stops a run after some steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.steps


CLASSIFICATION = {
    "classes": (
        {"svd_k": 3},
        {},
        "`svd_k` is 3, but there are at most 3 singular values, the number of classes: the",
    ),
    "examples": (
        {"svd_k": 2},
        {"per_device_train_batch_size": 2},
        "of examples in this micro-step: .*use larger batches or set `svd_k` to a count below 2",
    ),
    "features": (
        {"svd_k": 100, "space": "features"},
        {},
        "at most 4 .* the number of examples in this micro-step",
    ),
}


@pytest.mark.parametrize("case", CLASSIFICATION)
def test_classification_says_once_that_k_reaches_the_rank(tmp_path, case, caplog):
    objective, settings, sentence = CLASSIFICATION[case]
    objective = {**LARGE, **objective}
    (said,) = messages(
        caplog,
        lambda: classification.make_trainer(tmp_path, objective=objective, **settings),
    )
    assert re.search(sentence, said)


COLUMN = {
    "both": ({}, "diversity is the constant 0 and svd is the constant -1", "`diversity_coef: 0`"),
    "svd": ({"diversity_coef": 0.0}, "of which svd is the constant -1: nothing", "`svd_coef: 0`."),
    "diversity": (
        {"svd_coef": 0.0},
        "of which diversity is the constant 0:",
        "`diversity_coef: 0`.",
    ),
}


@pytest.mark.parametrize("case", COLUMN)
def test_a_regression_on_its_logits_says_once_which_terms_cannot_act(tmp_path, case, caplog):
    objective, sentence, fix = COLUMN[case]
    (said,) = messages(
        caplog,
        lambda: classification.make_trainer(tmp_path, objective=objective, num_labels=1),
    )
    assert sentence in said
    assert "Set `space: features`, or " in said
    assert fix in said


@pytest.mark.parametrize(
    ("num_labels", "objective"),
    [
        (3, {}),
        (2, {}),
        (1, {"space": "features"}),
        (1, {"diversity_coef": 0.0, "svd_coef": 0.0}),
        (3, {"svd_k": 2}),
    ],
    ids=str,
)
def test_classification_says_nothing_where_the_terms_act(tmp_path, num_labels, objective, caplog):
    def make():
        return classification.make_trainer(tmp_path, objective=objective, num_labels=num_labels)

    assert messages(caplog, make) == []
