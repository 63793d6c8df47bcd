"""The losses that a run has logged."""

from __future__ import annotations

import json

import pytest

from balora.errors import ConfigError
from balora.evaluation.curves import learning_curves
from support.training import LARGE, OFF, loss_rows, make_trainer


@pytest.mark.parametrize("objective", [LARGE, OFF, {**OFF, "svd_coef": 0.5}])
def test_the_curves_are_the_logged_losses(objective, tmp_path):
    trainer = make_trainer(tmp_path, objective=objective)
    trainer.train()
    trainer.save_state()
    terms = [name.replace("coef", "loss") for name, value in objective.items() if value]
    names = ["loss", "task_loss", *terms]
    expected = [
        {"step": row["step"], **{name: row[name] for name in names}} for row in loss_rows(trainer)
    ]
    curves = learning_curves(tmp_path)
    assert curves == expected
    assert [row["step"] for row in curves] == [1, 2, 3]


def test_rows_of_evaluations_and_of_the_end_are_no_curve(tmp_path):
    log = [
        {"step": 1, "loss": 2.0, "task_loss": 1.5, "task_coef": 1.0, "epoch": 0.1},
        {"step": 1, "eval_loss": 3.0},
        {"step": 1, "train_loss": 2.0, "train_runtime": 1.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert learning_curves(tmp_path) == [{"step": 1, "loss": 2.0, "task_loss": 1.5}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": []}))
    assert learning_curves(tmp_path) == []


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_a_run_without_a_log_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ConfigError, match=r"trainer_state\.json"):
        learning_curves(tmp_path)
