"""What of sharded training is refused, by whatever it is switched on, before a weight is loaded."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from balora.cli import main
from balora.errors import ConfigError
from balora.trainers.sharding import check_sharding, sharding_of, sharding_of_accelerator
from support.classification import make_trainer as make_classification_trainer
from support.training import make_trainer

FSDP = {
    "argument": ({"fsdp": "full_shard"}, {}),
    "truth": ({"fsdp": True}, {}),
    "list": ({"fsdp": ["full_shard", "auto_wrap"]}, {}),
    "launcher": ({}, {"ACCELERATE_USE_FSDP": "true"}),
    "version 1": ({"fsdp": True, "fsdp_config": {"version": 1}}, {}),
    "parallelism": ({"parallelism_config": SimpleNamespace(dp_shard_size=2)}, {}),
    "parallelism of a recipe": ({"parallelism_config": {"dp_shard_size": 2}}, {}),
    "parallelism of the launcher": (
        {},
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"},
    ),
}
DEEPSPEED = {
    "argument": ({"deepspeed": {"zero_optimization": {"stage": "STAGE"}}}, {}),
    "launcher": (
        {},
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "STAGE"},
    ),
    "plugin": ({"deepspeed_plugin": SimpleNamespace(zero_stage="STAGE")}, {}),
}


def asked(case, monkeypatch, stage=""):
    arguments, environment = case
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("STAGE", str(stage)))
    return sharding_of(_with_stage(arguments, stage))


def _with_stage(value, stage):
    if isinstance(value, dict):
        return {name: _with_stage(item, stage) for name, item in value.items()}
    if isinstance(value, SimpleNamespace) and hasattr(value, "zero_stage"):
        return SimpleNamespace(zero_stage=stage)
    return stage if value == "STAGE" else value


def refused(sharding, *, has_adapter=True, is_resumed=False):
    with pytest.raises(ConfigError) as caught:
        check_sharding(sharding, has_adapter=has_adapter, is_resumed=is_resumed)
    return str(caught.value)


@pytest.mark.parametrize("case", FSDP)
def test_fsdp_with_an_adapter_is_refused_and_so_is_resuming(case, monkeypatch):
    sharding = asked(FSDP[case], monkeypatch)
    assert "FSDP is switched on by " in refused(sharding)
    assert "`resume_from_checkpoint`" in refused(sharding, has_adapter=False, is_resumed=True)
    check_sharding(sharding, has_adapter=False, is_resumed=False)


@pytest.mark.parametrize("case", DEEPSPEED)
@pytest.mark.parametrize("stage", [1, 2])
def test_resuming_under_deepspeed_is_refused_from_the_first_stage(case, stage, monkeypatch):
    sharding = asked(DEEPSPEED[case], monkeypatch, stage)
    for has_adapter in (True, False):
        said = refused(sharding, has_adapter=has_adapter, is_resumed=True)
        assert f"DeepSpeed ZeRO-{stage} is switched on" in said
        check_sharding(sharding, has_adapter=has_adapter, is_resumed=False)


@pytest.mark.parametrize("case", DEEPSPEED)
@pytest.mark.parametrize("has_adapter", [True, False])
def test_zero_3_is_refused(case, has_adapter, monkeypatch):
    said = refused(asked(DEEPSPEED[case], monkeypatch, 3), has_adapter=has_adapter)
    assert "DeepSpeed ZeRO-3 is switched on" in said
    assert "Use ZeRO-1 or ZeRO-2" in said


@pytest.mark.parametrize(
    ("config", "environment"),
    [
        ({"state_dict_type": "SHARDED_STATE_DICT"}, {}),
        ({"fsdp_state_dict_type": "sharded_state_dict"}, {}),
        (None, {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}),
    ],
)
def test_a_split_state_dict_is_refused(config, environment, monkeypatch):
    arguments = {"fsdp": True, "fsdp_config": config}
    said = refused(asked((arguments, environment), monkeypatch), has_adapter=False)
    assert "leaves no model in `output_dir`" in said


def test_settings_may_lie_in_files(tmp_path, monkeypatch):
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert sharding_of({"deepspeed": str(tmp_path / "zero.json")}).stage == 3
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    assert sharding_of({}).stage == 3
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    assert sharding_of({}).stage == 2
    for content in (None, "{", "[]"):
        if content is not None:
            (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ConfigError, match=r"`deepspeed` '.*bad\.json' "):
            sharding_of({"deepspeed": str(tmp_path / "bad.json")})


def test_nothing_is_sharded_by_default(monkeypatch):
    assert sharding_of({}) is None
    assert sharding_of({"fsdp": "", "deepspeed": None, "parallelism_config": None}) is None
    assert sharding_of({"parallelism_config": SimpleNamespace(dp_shard_size=1)}) is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert sharding_of({}) is None
    check_sharding(None, has_adapter=True, is_resumed=True)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"fsdp_plugin": SimpleNamespace(state_dict_type="x.FULL_STATE_DICT")}, "FSDP"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "DeepSpeed ZeRO-3"),
    ],
)
def test_an_accelerator_that_was_configured_elsewhere_is_asked_too(state, words):
    accelerator = SimpleNamespace(state=SimpleNamespace(**state))
    sharding = sharding_of_accelerator(accelerator, SimpleNamespace())
    assert f"{words} is switched on by the accelerator" in refused(sharding)
    whole = SimpleNamespace(state=SimpleNamespace())
    assert sharding_of_accelerator(whole, SimpleNamespace()) is None
    split = SimpleNamespace(is_distributed_loading_by_transformers=True)
    assert "`distributed_config`" in refused(sharding_of_accelerator(whole, split))


@pytest.mark.parametrize("make", [make_trainer, make_classification_trainer])
def test_both_trainers_refuse_before_they_are_built(make, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP is switched on by `ACCELERATE_USE_FSDP`"):
        make(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("make", [make_trainer, make_classification_trainer])
@pytest.mark.parametrize("stage", [1, 2])
def test_both_trainers_refuse_to_go_on_when_sharded(make, stage, tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    trainer.accelerator = SimpleNamespace(state=state)
    with pytest.raises(ConfigError, match=f"DeepSpeed ZeRO-{stage} is switched on"):
        trainer.train(resume_from_checkpoint=True)


LAUNCHED = {
    "FSDP with an adapter": (["--method", "lora"], {"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
    "FSDP by a field": (["--fsdp", "full_shard"], {}, "FSDP is switched on by `fsdp`"),
    "ZeRO-3 by a field": (
        ["--method", "full", "--deepspeed", "{zero_optimization: {stage: 3}}"],
        {},
        "DeepSpeed ZeRO-3 is switched on by `deepspeed`",
    ),
    "resuming under ZeRO-1": (
        ["--resume_from_checkpoint", "true"],
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
        "`resume_from_checkpoint` is set and DeepSpeed ZeRO-1",
    ),
    "split full fine-tuning": (
        ["--method", "full"],
        {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
        "SHARDED_STATE_DICT",
    ),
}


@pytest.mark.parametrize("case", LAUNCHED)
@pytest.mark.parametrize("task", [(), ("--task", "classification")], ids=["generation", "task"])
def test_the_command_line_refuses_before_it_looks_at_data_and_model(
    case, task, tmp_path, monkeypatch, capsys
):
    options, environment, sentence = LAUNCHED[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fields = {"model_name_or_path": "./none", "dataset_name": "./none.jsonl"}
    words = [f"--{name}={value}" for name, value in fields.items()]
    out = tmp_path / "out"
    assert main(["train", *words, *options, *task, "--output_dir", str(out)]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "balora:" in text]
    assert sentence in line
    assert not out.exists()
