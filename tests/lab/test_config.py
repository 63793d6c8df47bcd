"""The laboratory's settings: described, checked, and each of them at work in one place."""

from __future__ import annotations

import dataclasses
import re

import pytest

from balora.cli_help import lab_fields
from balora.config.fields import describe
from balora.errors import ConfigError
from balora.lab.config import LabConfig, lab_config
from balora.lab.settings import (
    TrainingSettings,
    WorldSettings,
)

OTHER = {
    "num_people": 100,
    "num_stories": 50,
    "held_out_fraction": 0.1,
    "zipf_exponent": 0.5,
    "noise_rate": 0.4,
    "stereotype_rate": 0.5,
    "num_passes": 20,
    "max_steps": 7,
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_layers": 2,
    "num_heads": 2,
    "block_size": 128,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "world_seed": 1,
    "task_seed": 1,
    "num_train": 20,
    "num_test": 10,
    "max_problem_steps": 3,
    "label_noise": 0.3,
}
OF_THE_TASK = {"task_seed", "num_train", "num_test", "max_problem_steps", "label_noise"}


def test_a_sentence_stands_where_the_default_does():
    by_name = {entry.name: entry for entry in describe(LabConfig)}
    assert by_name["num_people"].default == 400
    assert "9600" in by_name["num_people"].sentence
    assert by_name["num_layers"].sentence == "Decoder layers of the model."


def test_what_is_left_out_has_its_default():
    assert lab_config({}) == LabConfig()
    assert lab_config({"noise_rate": 0}).noise_rate == 0
    assert lab_config({"num_people": 30}) == LabConfig(num_people=30)


def test_the_table_of_other_values_is_complete():
    assert OTHER.keys() == {field.name for field in dataclasses.fields(LabConfig)}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_decides_the_model_or_the_task_and_not_both(name):
    usual, other = LabConfig(), lab_config({name: OTHER[name]})
    is_of_task = name in OF_THE_TASK
    assert (other.task() != usual.task()) is is_of_task
    assert (other.pretraining() != usual.pretraining()) is not is_of_task


def test_the_fields_reach_their_settings():
    config = lab_config(OTHER)
    settings, task = config.pretraining(), config.task()
    for field in dataclasses.fields(WorldSettings):
        assert getattr(settings.corpus, field.name) == OTHER[field.name]
    for field in dataclasses.fields(TrainingSettings):
        assert getattr(settings, field.name) == OTHER[field.name]
    assert settings.seed == settings.corpus.seed == 1
    assert dataclasses.asdict(task) == {name: OTHER[name] for name in OF_THE_TASK}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise_rat": 0.1}, r"`noise_rat` is no field of the lab \(did you mean `noise_rate`\?\)"),
        ({"noise_rate": "much"}, "`noise_rate` must be a number, got the text `much`"),
        ({"noise_rate": True}, "`noise_rate` must be a number, got true"),
        ({"noise_rate": 1.0}, "`noise_rate` must be 0 or greater and less than 1, got 1.0"),
        ({"noise_rate": float("nan")}, "`noise_rate` must be a number, got nan"),
        ({"num_people": 3}, "`num_people` must be from 4 to 9600, got 3"),
        ({"num_people": 9601}, "`num_people` must be from 4 to 9600, got 9601"),
        ({"zipf_exponent": 200}, "`zipf_exponent` is 200, which leaves most people unspoken of"),
        ({"zipf_exponent": -0.1}, "`zipf_exponent` must be 0 or greater, got -0.1"),
        ({"stereotype_rate": 0.4}, r"`stereotype_rate` must be from 0.5 to 1"),
        ({"stereotype_rate": None}, "`stereotype_rate` must be a number, got null"),
        ({"held_out_fraction": 0.0}, "`held_out_fraction` must be greater than 0 and less than 1"),
        ({"label_noise": 1.1}, "`label_noise` must be from 0 to 1, got 1.1"),
        ({"num_train": 40_000}, "`num_train` and `num_test` are 40000 and 200"),
        ({"hidden_size": 100}, "`hidden_size` is 100, but must be a multiple of 8"),
        ({"num_heads": 0}, "`num_heads` must be 1 or greater, got 0"),
        ({"max_steps": 0}, "`max_steps` must be 1 or greater or -1, got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be greater than 0, got 0.0"),
        ({"world_seed": -1}, "`world_seed` must be from 0 to 4294967295, got -1"),
        ({"num_passes": 2}, "least mentioned of .*400 is spoken of 0.91 times .* to 3 or more"),
    ],
)
def test_what_cannot_work_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        lab_config(given)


def test_all_problems_are_said_at_once():
    with pytest.raises(ConfigError, match=r"^lab: .*`noise_rate`.*`label_noise`.*`hidden_size`"):
        LabConfig(noise_rate=2.0, hidden_size=3, label_noise=-1.0)


def test_the_least_passes_that_are_named_are_enough():
    assert LabConfig(num_passes=3).num_passes == 3
    assert LabConfig(num_passes=1, zipf_exponent=0.0).num_passes == 1


def test_the_help_says_how_many_passes_are_the_least():
    pattern = r"at least (\d+) for (\d+) people, (\d+) at `zipf_exponent`\s+([\d.]+)\."
    ((few, people, many, exponent),) = re.findall(pattern, lab_fields())
    for passes, own in ((int(few), 1.0), (int(many), float(exponent))):
        fields = {"num_people": int(people), "zipf_exponent": own}
        LabConfig(num_passes=passes, **fields)
        with pytest.raises(ConfigError, match=f"set it to {passes} or more"):
            LabConfig(num_passes=passes - 1, **fields)
