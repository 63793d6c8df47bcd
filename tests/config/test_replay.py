"""The settings of replay: ranges, and what cannot act under the others."""

from __future__ import annotations

import math

import pytest

from balora.config.replay import ReplayConfig, acting_fields
from balora.errors import ConfigError


def test_off_by_default():
    config = ReplayConfig()
    assert not config.is_on
    assert not config.needs_reference
    assert acting_fields(config) == {}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"replay_num_texts": 0}, "`replay_num_texts` must be 1 or greater, got 0"),
        ({"replay_length": 1}, "`replay_length` must be 2 or greater, got 1"),
        ({"replay_batch_size": 0}, "`replay_batch_size` must be 1 or greater, got 0"),
        ({"replay_every": 0}, "`replay_every` must be 1 or greater, got 0"),
        ({"replay_coef": 0.0}, "`replay_coef` must be greater than 0, got 0.0"),
        ({"replay_coef": -1.0}, "`replay_coef` must be greater than 0, got -1.0"),
        ({"replay_coef": math.nan}, "`replay_coef`"),
        ({"replay_reference_gib": -1.0}, "`replay_reference_gib` must be 0 or greater"),
        ({"replay_num_texts": 4}, "`replay_num_texts` is 4, fewer than the 16 of a step"),
        ({"replay_prompt": "  "}, "`replay_prompt` is empty"),
        ({"replay": " "}, "`replay` is empty"),
        ({"replay_column": "body"}, "`replay_column` is body, but the model writes"),
        ({"replay": "a.txt", "replay_prompt": "x"}, "`replay_prompt` is x, but the texts come"),
        (
            {"replay_loss": "cross_entropy", "replay_reference": "live"},
            "`replay_reference` is live, but `replay_loss` is cross_entropy",
        ),
        (
            {"replay_reference": "disk", "replay_reference_gib": 1.0},
            "`replay_reference_gib` is 1.0, but `replay_reference` is disk",
        ),
    ],
)
def test_refused_with_the_name_and_the_value(fields, match):
    with pytest.raises(ConfigError, match=match):
        ReplayConfig(**{"replay": "generated", **fields})


@pytest.mark.parametrize(
    ("name", "value"),
    [("replay_coef", 0.3), ("replay_every", 2), ("replay_prompt", "x"), ("replay_seed", 1)],
)
def test_a_field_that_is_set_without_replay_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"`{name}` is {value}, but `replay` is null"):
        ReplayConfig(**{name: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"replay": "generated"},
        {"replay": "generated", "replay_prompt": "chat", "replay_reference": "disk"},
        {"replay": "texts.jsonl", "replay_column": "body"},
        {"replay": "texts.jsonl", "replay_loss": "cross_entropy"},
    ],
)
def test_what_acts_gives_the_same_config_again(fields):
    config = ReplayConfig(**fields)
    assert ReplayConfig(**acting_fields(config)) == config
