"""A resumed run is the run that never stopped, bit for bit on a CPU."""

from __future__ import annotations

import pytest
import torch

from balora.anchored import starts
from balora.config import BALoraConfig
from balora.errors import ConfigError
from support.models import make_model
from support.training import LARGE, OFF, is_equal, loss_rows, make_rows, make_trainer, run, trained

NOT_COMPARED = ("_runtime", "_per_second")  # measured in seconds

OBJECTIVES = {
    "balora": BALoraConfig(**LARGE),
    "iclr2026": BALoraConfig.preset("iclr2026"),
    "lora": BALoraConfig(**LARGE, adapter_init="lora"),
    "full": BALoraConfig(**OFF),
}
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}


def make(output_dir, method="balora", **settings):
    options = {"eval_dataset": make_rows(3)}
    if method == "full":
        options["peft_config"] = None
    defaults = {
        "model": make_model("gpt2"),  # with dropout: the random state must come back too
        "objective": OBJECTIVES[method],
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "lr_scheduler_type": "cosine",
        "options": options,
    }
    return make_trainer(output_dir, **(defaults | settings))


def comparable(rows):
    return [{k: v for k, v in row.items() if not k.endswith(NOT_COMPARED)} for row in rows]


def refuse_svd(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a resumed run computed singular vectors")

    monkeypatch.setattr(starts, "principal_components", refuse)


# what a log row, an epoch or its order leaves between two checkpoints
BETWEEN = {
    "plain": {},
    "best": BEST,
    "rows between": {"logging_steps": 3, "logging_first_step": True},
    "rows of epochs": {"logging_strategy": "epoch", "eval_strategy": "epoch"},
    "by length": {"train_sampling_strategy": "group_by_length", "save_steps": 1},
    "random order": {"accelerator_config": {"use_seedable_sampler": False}, "save_steps": 1},
}


@pytest.mark.parametrize("method", OBJECTIVES)
@pytest.mark.parametrize("settings", ["plain", "best"])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, method, settings, monkeypatch):
    whole = make(tmp_path, method, **BETWEEN[settings])
    whole.train()
    refuse_svd(monkeypatch)
    resumed = make(tmp_path, method, **BETWEEN[settings])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(loss_rows(whole)) == 6
    assert_same_run(resumed, whole)


def assert_same_run(resumed, whole):
    assert comparable(resumed.state.log_history) == comparable(whole.state.log_history)
    assert is_equal(trained(whole.model), trained(resumed.model))
    assert resumed.state.total_flos == whole.state.total_flos


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ("rows between", 2),
        ("rows between", 5),
        ("rows of epochs", 2),
        ("rows of epochs", 3),  # an epoch has three steps
        ("rows of epochs", 6),
        ("by length", 5),
        ("random order", 2),
    ],
)
def test_resuming_anywhere_equals_the_uninterrupted_run(tmp_path, settings, step, uninterrupted):
    rows = make_rows(11)
    whole, folder = uninterrupted(settings, rows=rows)
    resumed = make(tmp_path, rows=rows, **{"save_steps": 1, **BETWEEN[settings]})
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert_same_run(resumed, whole)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a finished run with a checkpoint after each step, and its folder; once by name."""
    made = {}

    def run_of(name, **settings):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            whole = make(folder, **{"save_steps": 1, **BETWEEN[name]}, **settings)
            whole.train()
            made[name] = whole, folder
        return made[name]

    return run_of


def test_resuming_in_the_middle_of_an_epoch_with_accumulation(tmp_path, monkeypatch):
    settings = {
        "rows": make_rows(11),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
    }
    whole = make(tmp_path, **settings)
    whole.train()
    refuse_svd(monkeypatch)
    resumed = make(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert comparable(resumed.state.log_history) == comparable(whole.state.log_history)


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    # the worst counts as the best, so that it is not the last
    trainer = make(tmp_path, greater_is_better=True, **BEST)
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[1]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert trainer.evaluate()["eval_loss"] == losses[0]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters() if p.requires_grad}


def test_another_methods_checkpoint_is_refused(tmp_path):
    make(tmp_path, "lora").train()
    with pytest.raises(ConfigError, match=r"`adapter_init` was lora and is pissa"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_resumed_run_saves_what_the_uninterrupted_one_does(tmp_path):
    whole = make(tmp_path)
    run(whole)
    resumed = make(tmp_path)
    run(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for trainer, name in ((whole, "whole"), (resumed, "resumed")):
        trainer.save_model(str(tmp_path / name))
    for file in ("adapter_model.safetensors", "anchor.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (
            tmp_path / "resumed" / file
        ).read_bytes()
    assert torch.equal(*(t.model.get_base_model().lm_head.weight for t in (whole, resumed)))
