"""The log rows by themselves: sums over micro-steps, means over steps, a coefficient that moves."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from balora.objective import Coefficients, LossTerms, TokenCounts
from balora.trainers.log import StepLog, loss_doubt


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def terms(*values):
    return LossTerms(*(None if v is None else torch.tensor(v, requires_grad=True) for v in values))


def add(log, values, coefficients, *, micro_steps=1, counts=(4.0, 8.0, 1.0), read=6):
    log.add(
        terms(*values),
        Coefficients(*coefficients),
        TokenCounts(*(torch.tensor(count) for count in counts)),
        num_input_tokens=torch.tensor(read),
        num_micro_steps=micro_steps,
    )


def test_no_step_no_row(accelerator):
    assert StepLog().pop(accelerator) == {}
    assert StepLog().pop_num_input_tokens(accelerator) == 0


def test_micro_steps_are_summed_and_steps_averaged(accelerator):
    log = StepLog()
    # terms come normalised: the two micro-steps of the first optimizer step add up to 3 and 0.5
    add(log, (1.0, 0.25, None, None), (0.1, 0.0, 0.0), micro_steps=2)
    add(log, (2.0, 0.25, None, None), (0.1, 0.0, 0.0), micro_steps=2)
    add(log, (5.0, 1.5, None, None), (0.1, 0.0, 0.0), counts=(2.0, 1.0, 2.0))
    assert log.pop(accelerator) == pytest.approx(
        {
            "task_loss": 4.0,
            "consistency_loss": 1.0,
            "consistency_coef": 0.1,
            "entropy": 17 / 10,
            "mean_token_accuracy": 4 / 10,
        },
        rel=1e-12,
    )
    assert log.pop_num_input_tokens(accelerator) == 18
    assert log.pop(accelerator) == {}
    assert log.pop_num_input_tokens(accelerator) == 0


def test_a_coefficient_that_moves_is_weighted_by_its_term(accelerator):
    log = StepLog()
    add(log, (1.0, 2.0, -1.0, None), (0.5, 0.2, 0.0))
    add(log, (1.0, 6.0, -3.0, None), (0.1, 0.4, 0.0))
    row = log.pop(accelerator)
    assert row["consistency_loss"] == pytest.approx(4.0)
    assert row["consistency_coef"] == pytest.approx((0.5 * 2 + 0.1 * 6) / 8)
    assert row["diversity_coef"] == pytest.approx((0.2 * 1 + 0.4 * 3) / 4)
    contributions = row["consistency_coef"] * 4.0 + row["diversity_coef"] * -2.0
    assert contributions == pytest.approx((0.5 * 2 - 0.2 * 1 + 0.1 * 6 - 0.4 * 3) / 2)


def test_a_step_without_the_term_does_not_dilute_it(accelerator):
    log = StepLog()
    add(log, (1.0, None, -4.0, None), (0.0, 0.3, 0.0))
    add(log, (1.0, None, None, None), (0.0, 0.0, 0.0))
    row = log.pop(accelerator)
    assert row["diversity_loss"] == pytest.approx(-4.0)
    assert row["diversity_coef"] == pytest.approx(0.15)  # 0.3 in one step of two
    assert "svd_loss" not in row
    assert "svd_coef" not in row


def test_a_term_of_zero_keeps_its_coefficient(accelerator):
    log = StepLog()
    add(log, (1.0, 0.0, None, None), (1e-4, 0.0, 0.0), micro_steps=2)
    add(log, (1.0, 0.0, None, None), (1e-4, 0.0, 0.0), micro_steps=2)
    row = log.pop(accelerator)
    assert row["consistency_loss"] == 0.0
    assert row["consistency_coef"] == pytest.approx(1e-4, rel=1e-12)


def test_nothing_is_kept_of_the_graph():
    log = StepLog()
    add(log, (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 1.0))
    assert not any(value.requires_grad for value in log._sums.values())


def test_a_row_without_tokens_is_finite(accelerator):
    log = StepLog()
    add(log, (0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0), counts=(0.0, 0.0, 0.0))
    row = log.pop(accelerator)
    assert row["entropy"] == row["mean_token_accuracy"] == 0.0


@pytest.mark.parametrize(
    ("losses", "is_said"),
    [
        ([2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6], False),
        ([1.0, 1.1, 1.0, 0.9, 1.0, 1.2, 1.1, 1.0], True),
        ([1.0] * 8, True),
        ([1.0] * 7, False),  # too few rows to say
    ],
)
def test_a_loss_that_does_not_fall_is_said(losses, is_said):
    history = [{"loss": loss} for loss in losses] + [{"eval_loss": 9.0}]
    assert (loss_doubt(history) is not None) == is_said
    if is_said:
        assert "`learning_rate`" in loss_doubt(history)
