"""Arguments that hold the settings: parsers, trackers and files see them; they are said once."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, fields

import pytest
import torch
from transformers import HfArgumentParser, TrainerCallback, TrainingArguments
from trl import SFTConfig, TrlParser

from balora.config import BALoraConfig
from balora.config.replay import ReplayConfig
from balora.errors import ConfigError
from balora.trainers import BALoraSFTTrainer
from balora.trainers.arguments import BALoraSFTConfig, BALoraTrainingArguments, part_of
from support.classification import make_trainer as make_classification_trainer
from support.models import make_model, make_tokenizer
from support.training import (
    CHECKPOINTING,
    LARGE,
    OFF,
    lora_config,
    make_rows,
    make_trainer,
    recomposed,
    run,
    sft_config,
)

CPU = ["--output_dir", "out", "--use_cpu", "true", "--bf16", "false"]
CPU += [f"--{CHECKPOINTING}", "false"]
PLAIN = {"use_cpu": True, "bf16": False, CHECKPOINTING: False, "report_to": "none"}
KINDS = {
    BALoraSFTConfig: (SFTConfig, BALoraConfig()),
    BALoraTrainingArguments: (TrainingArguments, BALoraConfig.preset("paper", task="nlu")),
}


def held_by(tmp_path, **settings):
    """Return arguments for a few quick steps that hold the settings."""
    return BALoraSFTConfig(output_dir=str(tmp_path), logging_steps=1, **PLAIN, **settings)


class _Tracker(TrainerCallback):
    """Reads what trackers do: the arguments as a mapping, when training begins."""

    def on_train_begin(self, args, state, control, **_) -> None:
        self.seen = args.to_sanitized_dict()


@pytest.mark.parametrize("holder", KINDS)
def test_the_fields_are_those_of_the_config(holder):
    plain, config = KINDS[holder]
    own = {f.name: f for f in fields(holder)}
    added = own.keys() - {f.name for f in fields(plain)}
    expected = {f.name for f in fields(BALoraConfig)}
    if holder is BALoraSFTConfig:
        expected |= {f.name for f in fields(ReplayConfig)}
    assert added < expected
    assert expected - added == ({"space"} if holder is BALoraSFTConfig else added ^ expected)
    assert all(own[name].default == asdict(config)[name] for name in added & asdict(config).keys())
    assert all(own[name].metadata["help"] for name in added)
    assert part_of(holder(output_dir="out", **PLAIN), BALoraConfig) == config


def test_what_classification_has_not():
    assert not {"temperature", "replay"} & BALoraTrainingArguments.__dataclass_fields__.keys()


@pytest.mark.parametrize("holder", KINDS)
def test_the_help_shows_every_field(holder):
    text = " ".join(HfArgumentParser(holder).format_help().split())
    assert "Multiplies the consistency term" in text
    assert "the first 30%" in text


def test_values_on_a_command_line():
    given = ["--svd_k", "10", "--consistency_coef", "0.5", "--entropy_top_k", "5"]
    given += ["--replay", "generated", "--replay_swap", "[[he, she]]", "--adapter_init", "olora"]
    (args,) = HfArgumentParser(BALoraSFTConfig).parse_args_into_dataclasses([*CPU, *given])
    config, replay = part_of(args, BALoraConfig), part_of(args, ReplayConfig)
    assert (config.svd_k, config.consistency_coef, config.entropy_top_k) == (10, 0.5, 5)
    assert type(config.svd_k) is int
    assert config.adapter_init == "olora"
    assert (replay.replay, replay.replay_swap) == ("generated", [["he", "she"]])


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("0.3", 0.3)])
def test_a_count_is_no_fraction(text, value):
    (args,) = HfArgumentParser(BALoraSFTConfig).parse_args_into_dataclasses([*CPU, "--svd_k", text])
    assert args.svd_k == value
    assert type(args.svd_k) is type(value)


def test_values_of_a_yaml_file_and_a_command_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    lines = ["svd_k: 7", "consistency_coef: 0.25", "replay: generated", "replay_swap: [[a, b]]"]
    recipe.write_text("\n".join(lines))
    given = ["--config", str(recipe), *CPU, "--diversity_coef", "0.125"]
    (args,) = TrlParser(BALoraSFTConfig).parse_args_and_config(given)
    assert (args.svd_k, args.consistency_coef, args.diversity_coef) == (7, 0.25, 0.125)
    assert args.replay_swap == [["a", "b"]]
    (args,) = TrlParser(BALoraTrainingArguments).parse_args_and_config(
        [*CPU, "--space", "features"]
    )
    assert (args.space, args.diversity_coef) == ("features", 4e-4)


WRONG = {
    "a range": ({"consistency_coef": -1}, "`consistency_coef` must be 0 or greater, got -1"),
    "a type": ({"svd_k": "many"}, "`svd_k` must be a number, got the text"),
    "a choice": ({"adapter_init": "pisa"}, "did you mean `pissa`"),
    "an idle field": ({"replay_length": 5}, "`replay_length` is 5, but `replay` is null"),
    "two that do not go together": ({"adapter_init": "lora", "pissa_seed": 1}, "has no such"),
}


@pytest.mark.parametrize(("given", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_work_is_refused_when_it_is_made(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        BALoraSFTConfig(output_dir="out", **PLAIN, **given)


def test_a_trainer_reads_them(tmp_path):
    tracker = _Tracker()
    args = held_by(tmp_path, max_steps=2, **LARGE)
    trainer = BALoraSFTTrainer(
        make_model("llama"),
        args,
        peft_config=lora_config(),
        processing_class=make_tokenizer(),
        train_dataset=make_rows(),
        callbacks=[tracker],
    )
    assert trainer.balora_config == BALoraConfig(**LARGE)
    rows = run(trainer)
    assert rows[0]["consistency_coef"] == LARGE["consistency_coef"]
    assert rows[-1]["loss"] == pytest.approx(recomposed(rows[-1]), rel=1e-4)
    assert tracker.seen["consistency_coef"] == LARGE["consistency_coef"]


def test_the_short_way_is_held_too(tmp_path):
    tracker = _Tracker()
    trainer = make_trainer(
        tmp_path,
        objective=OFF | {"svd_coef": 0.5},
        max_steps=1,
        options={"callbacks": [tracker], "replay_config": ReplayConfig()},
    )
    run(trainer)
    assert tracker.seen["svd_coef"] == 0.5
    assert tracker.seen["max_steps"] == 1
    assert json.loads(trainer.args.to_json_string())["diversity_coef"] == 0
    trainer.save_model(str(tmp_path / "out"))
    saved = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    for args in (saved, copy.copy(trainer.args), pickle.loads(pickle.dumps(trainer.args))):
        assert type(args) is BALoraSFTConfig
        assert part_of(args, BALoraConfig) == trainer.balora_config


def test_the_callers_arguments_stay_as_they_are(tmp_path):
    args = sft_config(tmp_path)
    before = dict(vars(args))
    trainer = BALoraSFTTrainer(
        make_model("llama"),
        args,
        peft_config=lora_config(),
        processing_class=make_tokenizer(),
        train_dataset=make_rows(),
    )
    assert type(args) is SFTConfig
    assert isinstance(trainer.args, SFTConfig)
    assert vars(args) == before


def test_arguments_of_ones_own_class_stay_of_it(tmp_path):
    class Own(SFTConfig):
        pass

    args = Own(output_dir=str(tmp_path), **PLAIN)
    options = {"processing_class": make_tokenizer(), "train_dataset": make_rows()}
    trainer = BALoraSFTTrainer(make_model("llama"), args, peft_config=lora_config(), **options)
    assert type(trainer.args) is Own


def test_both_ways_at_once_must_agree(tmp_path):
    def build(config, replay=None):
        return BALoraSFTTrainer(
            make_model("llama"),
            held_by(tmp_path, svd_coef=0.5),
            balora_config=config,
            replay_config=replay,
            peft_config=lora_config(),
            processing_class=make_tokenizer(),
            train_dataset=make_rows(),
        )

    assert build(BALoraConfig(svd_coef=0.5)).balora_config.svd_coef == 0.5
    with pytest.raises(
        ConfigError,
        match=r"`svd_coef` is 0\.5 in `args` and 0\.25 in `balora_config`\. Leave `balora_config`",
    ):
        build(BALoraConfig(svd_coef=0.25))
    with pytest.raises(ConfigError, match="`replay` is None in `args` and generated in `replay_co"):
        build(BALoraConfig(svd_coef=0.5), ReplayConfig(replay="generated"))


def test_arguments_of_the_other_trainer_are_refused(tmp_path):
    other = BALoraTrainingArguments(output_dir=str(tmp_path), **PLAIN)
    with pytest.raises(ConfigError, match="`args` is a BALoraTrainingArguments, which is for"):
        BALoraSFTTrainer(make_model("llama"), other, train_dataset=make_rows())


def test_classification_holds_them_too(tmp_path):
    trainer = make_classification_trainer(tmp_path)
    assert type(trainer.args) is BALoraTrainingArguments
    assert part_of(trainer.args, BALoraConfig) == trainer.balora_config
