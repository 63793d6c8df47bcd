"""What of sharded training is refused, by whatever it is switched on, before a weight is loaded."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from balora.cli import main
from balora.config import BALoraConfig
from balora.errors import BaloraError, ConfigError, DataError
from balora.trainers.checks import check_shares
from balora.trainers.sharding import (
    _keep_scales_aside,
    check_classifier,
    check_layout,
    full,
    shape_of,
    whole,
)
from balora.trainers.sharding_settings import Sharding, sharding_of, sharding_of_accelerator
from support.classification import make_trainer as make_classification_trainer
from support.training import make_rows, make_trainer

START = BALoraConfig()
GATHER = "stage3_gather_16bit_weights_on_model_save"
LAUNCHED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
FSDP = {
    "argument": ({"fsdp": "full_shard"}, {}),
    "truth": ({"fsdp": True}, {}),
    "list": ({"fsdp": ["full_shard", "auto_wrap"]}, {}),
    "launcher": ({}, LAUNCHED),
    "argument before the launcher": ({"fsdp": True}, {"ACCELERATE_USE_FSDP": "true"}),
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


@pytest.fixture
def asked(monkeypatch):
    """Return the arguments of a case once its environment is set."""

    def arguments(case, stage=""):
        given, environment = case
        for name, value in environment.items():
            monkeypatch.setenv(name, value.replace("STAGE", str(stage)))
        return _with_stage(given, stage)

    return arguments


def _with_stage(value, stage):
    if isinstance(value, dict):
        return {name: _with_stage(item, stage) for name, item in value.items()}
    if isinstance(value, SimpleNamespace) and hasattr(value, "zero_stage"):
        return SimpleNamespace(zero_stage=stage)
    return stage if value == "STAGE" else value


def refused(arguments, *, has_adapter=True, quantised_by=None):
    with pytest.raises(ConfigError) as caught:
        check_layout(arguments, START if has_adapter else None, quantised_by)
    return str(caught.value)


@pytest.mark.parametrize("case", FSDP)
def test_fsdp_is_version_2_where_nothing_else_is_said(case, asked):
    arguments = asked(FSDP[case])
    assert sharding_of(arguments).words == "FSDP2"
    for has_adapter in (True, False):
        check_layout(arguments, START if has_adapter else None)


@pytest.mark.parametrize(
    "case",
    [
        ({"fsdp": True, "fsdp_config": {"version": 1}}, {}),
        ({"fsdp": True, "fsdp_config": {"fsdp_version": 1}}, {}),
        ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}),
        ({}, {"ACCELERATE_USE_FSDP": "true"}),  # what accelerate takes by itself
    ],
)
def test_fsdp_1_is_refused(case, asked):
    said = refused(asked(case), has_adapter=False)
    assert said.startswith("FSDP1 is switched on by ")
    assert "Set `fsdp_version: 2`" in said


@pytest.mark.parametrize(
    "case",
    [
        ({"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}, {}),
        ({}, {**LAUNCHED, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}),
    ],
)
def test_weights_are_read_once_but_for_what_needs_them_before_training(case, asked):
    arguments = asked(case)
    assert sharding_of(arguments).reads_once
    for start in (START, None):
        check_layout(arguments, start)
    with pytest.raises(ConfigError, match="every process of a classifier") as error:
        check_classifier(arguments)
    assert "`fsdp_cpu_ram_efficient_loading: false`" in str(error.value)


@pytest.mark.parametrize("case", DEEPSPEED)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_is_known_by_its_stage(case, stage, asked):
    arguments = asked(DEEPSPEED[case], stage)
    assert sharding_of(arguments).words == f"DeepSpeed ZeRO-{stage}"
    check_layout(arguments, START)
    if stage == 3:
        said = refused(arguments, has_adapter=False)
        assert f"`{GATHER}`, which leaves no model in `output_dir`" in said
    else:
        check_layout(arguments, None)


@pytest.mark.parametrize(
    "case",
    [
        ({"deepspeed": {"zero_optimization": {"stage": 3, GATHER: True}}}, {}),
        (
            {},
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
            },
        ),
    ],
)
def test_full_fine_tuning_under_zero_3_gathers_the_model_that_it_saves(case, asked):
    check_layout(asked(case), None)


@pytest.mark.parametrize(
    "case",
    [
        ({"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}, {}),
        ({"fsdp": True, "fsdp_config": {"fsdp_state_dict_type": "sharded_state_dict"}}, {}),
        ({}, {**LAUNCHED, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}),
    ],
)
def test_a_split_state_dict_is_noticed(case, asked):
    arguments = asked(case)
    assert sharding_of(arguments).is_split_dict
    check_layout(arguments, START)


SPLIT = {
    **{name: ({"parallelism_config": {name: 2}}, {}) for name in ("tp_size", "cp_size", "sp_size")},
    "tp_size of the launcher": (
        {},
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
    ),
    "autotp_size": ({"deepspeed": {"tensor_parallel": {"autotp_size": 2}}}, {}),
    "sequence_parallel_size": ({"deepspeed": {"sequence_parallel_size": 2}}, {}),
    "Megatron-LM": ({}, {"ACCELERATE_USE_MEGATRON_LM": "true"}),
}


@pytest.mark.parametrize("case", SPLIT)
def test_what_splits_a_matrix_a_sequence_or_a_layer_is_refused_by_its_name(case, asked):
    said = refused(asked(SPLIT[case]))
    assert case.removesuffix(" of the launcher") in said
    assert "Use plain data parallelism" in said


@pytest.mark.parametrize(
    "precision",
    [
        ({"bf16": True}, {}),
        ({"deepspeed": {"bf16": {"enabled": True}}}, {}),
        ({}, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    ],
)
def test_deepspeed_would_cast_an_anchored_adapter_to_16_bits(precision, asked):
    given, environment = precision
    given = {"deepspeed": {"zero_optimization": {"stage": 2}}, **given}
    said = refused(asked((given, environment)))
    assert said.startswith("`bf16` is on and DeepSpeed")
    assert "`torch_autocast: {enabled: true, dtype: bfloat16}`" in said
    check_layout(given, None)
    check_layout(given, BALoraConfig(adapter_init="lora"))
    check_layout({**given, "deepspeed": None, "fsdp": True}, START)


def test_deepspeed_has_a_mixed_precision_that_casts_no_weight():
    check_layout({"deepspeed": {"torch_autocast": {"enabled": True}}}, START)


def test_deepspeed_may_not_round_an_anchored_adapter_where_it_sends_it():
    def zero(*modules):
        autocast = {"enabled": True, "lower_precision_safe_modules": list(modules)}
        return {"deepspeed": {"zero_optimization": {"stage": 3}, "torch_autocast": autocast}}

    said = refused(zero("torch.nn.Conv1d", "torch.nn.Linear"))
    assert "`torch_autocast` names torch.nn.Conv1d, torch.nn.Linear, so A and B would be" in said
    for fine in (zero(), zero("torch.nn.Conv1d")):
        check_layout(fine, START)
    check_layout(zero("torch.nn.Linear"), BALoraConfig(adapter_init="lora"))


RESIDUAL = BALoraConfig(pissa_residual=True)
ZERO = [{"deepspeed": {"zero_optimization": {"stage": stage}}} for stage in (1, 2, 3)]


def test_weights_of_8_bits_are_split_by_deepspeed_alone_and_those_of_4_read_by_each_process():
    said = refused({"fsdp": True}, quantised_by="load_in_8bit")
    assert said.startswith("the base is quantised by `load_in_8bit` and FSDP2 is switched on by `f")
    once = {"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}
    said = refused(once, quantised_by="load_in_4bit")
    assert "but a base that is quantised by `load_in_4bit` is read by each process" in said
    for field in ("load_in_4bit", "load_in_8bit"):
        for arguments in ({}, *ZERO, *([{"fsdp": True}] if field == "load_in_4bit" else [])):
            check_layout(arguments, START, field)
            check_layout(arguments, RESIDUAL, field)


def test_scales_of_4_bit_weights_are_left_out_of_state_dicts():
    layer = nn.Linear(2, 2)
    layer.weight.quant_state = "there is one"
    layer.register_state_dict_post_hook(lambda m, state, p, _: state.update({f"{p}weight.x": 1}))
    model = nn.Sequential(layer, nn.Linear(2, 2))
    assert "0.weight.x" in model.state_dict()
    _keep_scales_aside(model)
    assert [*model.state_dict()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("arguments", [{"fsdp": True}, *ZERO, {}], ids=str)
def test_weights_of_torchao_stay_in_one_process(arguments, monkeypatch):
    check_layout({}, RESIDUAL, "torchao")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "Set `load_in_8bit: true` instead" in refused(arguments, quantised_by="torchao")


def test_a_classifier_is_not_split_while_it_is_loaded():
    zero = {"zero_optimization": {"stage": 3}}
    with pytest.raises(ConfigError, match="ZeRO-3 is switched on by `deepspeed`, which splits the"):
        check_classifier({"deepspeed": zero})
    check_classifier({"deepspeed": {"zero_optimization": {"stage": 2}}})


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
    check_layout({"parallelism_config": {"dp_replicate_size": 2, "tp_size": 1}}, START)


def test_an_accelerator_that_was_configured_elsewhere_is_asked_too():
    def found(**plugins):
        state = SimpleNamespace(**plugins)
        return sharding_of_accelerator(SimpleNamespace(state=state), SimpleNamespace())

    fsdp = SimpleNamespace(
        state_dict_type="x.SHARDED_STATE_DICT", fsdp_version=1, cpu_ram_efficient_loading=True
    )
    one = found(fsdp_plugin=fsdp)
    assert (one.words, one.is_split_dict, one.reads_once) == ("FSDP1", True, True)
    zero = SimpleNamespace(
        zero_stage=3, deepspeed_config={"zero_optimization": {"stage": 3, GATHER: True}}
    )
    three = found(deepspeed_plugin=zero)
    assert (three.words, three.gathers_on_save) == ("DeepSpeed ZeRO-3", True)
    assert found() is None
    split = SimpleNamespace(is_distributed_loading_by_transformers=True)
    with pytest.raises(ConfigError, match="`distributed_config` splits the model"):
        sharding_of_accelerator(SimpleNamespace(state=SimpleNamespace()), split)


def test_what_is_not_split_is_whole():
    layer = nn.Linear(3, 2)
    assert full(layer.weight) is layer.weight
    assert shape_of(layer.weight) == (2, 3)
    layer.weight.ds_shape = torch.Size([4, 3])  # as a part of a weight has it
    assert shape_of(layer.weight) == (4, 3)
    with whole(layer):
        assert layer.weight.shape == (2, 3)


@pytest.mark.parametrize("make", [make_trainer, make_classification_trainer])
def test_both_trainers_refuse_before_they_are_built(make, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP1 is switched on by `ACCELERATE_USE_FSDP`"):
        make(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_belongs_to_its_engine(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    trainer._sharding = Sharding(kind="DeepSpeed", setting="a test", stage=2)
    with pytest.raises(ConfigError, match=r"belongs to another run: .*sharding.*ZeRO-2"):
        trainer.train(resume_from_checkpoint=True)


def test_a_run_that_writes_no_model_says_so(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, max_steps=1)
    monkeypatch.setattr(trainer, "_write_model", lambda folder: None)
    with pytest.raises(BaloraError, match="nothing of the model was written to"):
        trainer.save_model()


def test_more_processes_than_rows_are_refused():
    check_shares(make_rows(3), 3)
    check_shares(None, 3)
    with pytest.raises(DataError, match="has 3 rows for 4 processes"):
        check_shares(make_rows(3), 4)


AT_THE_COMMAND_LINE = {
    "FSDP1 with an adapter": (["--method", "lora"], {"ACCELERATE_USE_FSDP": "true"}, "FSDP1"),
    "FSDP1 by a field": (
        ["--fsdp", "full_shard", "--fsdp_config", "{version: 1}"],
        {},
        "FSDP1 is switched on by `fsdp`",
    ),
    "ZeRO-3 without a model": (
        ["--method", "full", "--deepspeed", "{zero_optimization: {stage: 3}}"],
        {},
        "DeepSpeed ZeRO-3 is switched on by `deepspeed`",
    ),
    "a base in 8 bits under FSDP2": (
        ["--load_in_8bit", "true", "--fsdp", "full_shard"],
        {},
        "the base is quantised by `load_in_8bit` and FSDP2 is switched on by `fsdp`",
    ),
    "tensor parallelism": (
        ["--deepspeed", "{tensor_parallel: {autotp_size: 2}}"],
        {},
        "`autotp_size` of DeepSpeed is 2",
    ),
}


@pytest.mark.parametrize("case", AT_THE_COMMAND_LINE)
@pytest.mark.parametrize("task", [(), ("--task", "classification")], ids=["generation", "task"])
def test_the_command_line_refuses_before_it_looks_at_data_and_model(
    case, task, tmp_path, monkeypatch, capsys
):
    options, environment, sentence = AT_THE_COMMAND_LINE[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fields = {"model_name_or_path": "./none", "dataset_name": "./none.jsonl"}
    words = [f"--{name}={value}" for name, value in fields.items()]
    out = tmp_path / "out"
    assert main(["train", *words, *options, *task, "--output_dir", str(out)]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "balora:" in text]
    assert sentence in line
    assert not out.exists()
