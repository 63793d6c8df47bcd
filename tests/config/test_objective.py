"""The dataclasses of a recipe: numbers, sentences, and every value they refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest

from balora.config import (
    AdapterConfig,
    BALoraConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
)
from balora.errors import ConfigError


def test_defaults_are_the_papers_numbers_for_text_generation():
    config = BALoraConfig()
    assert (config.consistency_coef, config.diversity_coef, config.svd_coef) == (1e-4, 3e-4, 1e-4)
    assert (config.temperature, config.entropy_top_k, config.svd_k) == (1.0, None, 0.3)
    assert (config.svd_denominator, config.svd_variance_coef) == ("nuclear", 0.0)
    assert (config.schedule, config.svd_max_tokens) == ("constant", 1024)
    assert (config.adapter_init, config.pissa_svd) == ("pissa", "randomized")
    assert (config.pissa_oversampling, config.pissa_power_iterations, config.pissa_seed) == (
        16,
        8,
        0,
    )
    assert BALoraConfig.preset("paper", task="nlg") == config == BALoraConfig.preset("paper")


def test_preset_paper_for_classification():
    config = BALoraConfig.preset("paper", task="nlu")
    assert (config.consistency_coef, config.diversity_coef, config.svd_coef) == (1e-4, 4e-4, 1e-4)
    assert config.svd_k == 0.3


def test_preset_of_the_published_code():
    config = BALoraConfig.preset("iclr2026", task="nlg")
    assert (config.consistency_coef, config.diversity_coef, config.svd_coef) == (
        0.025,
        0.005,
        0.005,
    )
    assert (config.svd_k, config.temperature, config.entropy_top_k) == (10, 2.0, 20)
    assert isinstance(config.svd_k, int)
    assert (config.svd_denominator, config.schedule) == ("frobenius", "iclr2026")


def test_recommended_preset_has_none_of_the_three_terms():
    config = BALoraConfig.preset("recommended")
    assert (config.consistency_coef, config.diversity_coef, config.svd_coef) == (0, 0, 0)
    assert config.adapter_init == "pissa"


def test_preset_takes_overrides():
    config = BALoraConfig.preset("iclr2026", svd_coef=0.0, entropy_top_k=None)
    assert (config.svd_coef, config.entropy_top_k, config.consistency_coef) == (0.0, None, 0.025)


@pytest.mark.parametrize(
    ("name", "task", "sentence"),
    [
        (
            "papper",
            "nlg",
            r"`preset` must be one of paper, iclr2026, recommended, got `papper` \(did you mean `p",
        ),
        ("paper", "nlp", r"`task` must be one of nlg, nlu, got `nlp`"),
        (
            "iclr2026",
            "nlu",
            r"`preset` is iclr2026, which is for text generation \(nlg\) onl",
        ),
    ],
)
def test_preset_refuses(name, task, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        BALoraConfig.preset(name, task=task)
    assert error.value.exit_status == 2


def test_needs_reference_follows_the_consistency_coefficient():
    assert BALoraConfig().needs_reference
    assert not BALoraConfig(consistency_coef=0.0).needs_reference


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("consistency_coef", -1e-4, "`consistency_coef` must be 0 or greater, got -0.0001"),
        ("diversity_coef", math.nan, "`diversity_coef` must be a number, got nan"),
        ("svd_coef", math.inf, "`svd_coef` must be a number, got inf"),
        ("svd_coef", True, "`svd_coef` must be a number, got true"),
        ("svd_coef", "1", "`svd_coef` must be a number, got the text `1`"),
        ("svd_variance_coef", -1.0, "`svd_variance_coef` must be 0 or greater"),
        ("temperature", 0.0, "`temperature` must be greater than 0, got 0.0"),
        ("temperature", None, "`temperature` must be a number, got null"),
        ("entropy_top_k", 0, "`entropy_top_k` must be 1 or greater, got 0"),
        ("entropy_top_k", 20.0, "`entropy_top_k` must be a whole number or null, got 20.0"),
        ("svd_k", 0, "`svd_k` must be 1 or greater, got 0"),
        ("svd_k", 10.0, r"`svd_k` must be greater than 0 and at most 1, got 10.0; write a whole"),
        ("svd_k", 0.0, "`svd_k` must be greater than 0 and at most 1, got 0.0"),
        ("svd_k", True, "`svd_k` must be a number, got true"),
        ("svd_k", math.nan, "`svd_k` must be a number, got nan"),
        ("svd_max_tokens", 0, "`svd_max_tokens` must be 1 or greater"),
        ("svd_denominator", "frob", r"must be one of `nuclear`, `frobenius`, got the text `frob`"),
        ("schedule", "cosine", "`schedule` must be one of `constant`, `iclr2026`"),
        ("adapter_init", "pisa", r"`adapter_init` must be .* \(did you mean `pissa`\?\)"),
        ("pissa_svd", "fast", "`pissa_svd` must be one of `randomized`, `exact`"),
        ("pissa_oversampling", -1, "`pissa_oversampling` must be from 0 to 1000000"),
        ("pissa_power_iterations", 1.5, "`pissa_power_iterations` must be a whole number, got 1.5"),
        ("pissa_seed", -1, "`pissa_seed` must be from 0 to 4294967295"),
    ],
)
def test_objective_refuses(field, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        BALoraConfig(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("svd_k", 1.0), ("svd_k", 1), ("temperature", 2)])
def test_objective_accepts_the_edges(field, value):
    assert getattr(BALoraConfig(**{field: value}), field) == value


def test_every_problem_is_listed_at_once():
    with pytest.raises(ConfigError) as error:
        BALoraConfig(consistency_coef=-1, temperature=0, svd_k=2.5)
    for name in ("consistency_coef", "temperature", "svd_k"):
        assert f"`{name}`" in str(error.value)
    assert str(error.value).startswith("objective: ")


def test_settings_of_the_svd_are_refused_without_pissa():
    with pytest.raises(ConfigError, match="`pissa_seed` is 3, but `adapter_init` is lora and has"):
        BALoraConfig(adapter_init="lora", pissa_seed=3)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BALoraConfig().svd_k = 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"method": "lroa"},
            r"`method` must be one of .*, got the text `lroa` \(did you mean `lora`",
        ),
        ({"lora_r": 12.5}, "`lora_r` must be a whole number, got 12.5"),
        ({"lora_r": 0}, "`lora_r` must be 1 or greater, got 0"),
        ({"lora_alpha": -1}, "`lora_alpha` must be 1 or greater, got -1"),
        (
            {"lora_dropout": 1.0, "method": "lora"},
            "`lora_dropout` must be 0 or greater",
        ),
        (
            {"preset": "paper", "method": "lora"},
            "`preset` is paper, but it only acts with method ba",
        ),
        (
            {"preset": "icml", "method": "lora"},
            "`preset` must be one of `paper`, `iclr2026`, `recommended` or null",
        ),
        ({"lora_target_modules": []}, "`lora_target_modules` is empty"),
        ({"lora_target_modules": ["q", ""]}, "`lora_target_modules` is empty"),
        ({"lora_target_modules": ["q", 1]}, "`lora_target_modules` must be text or a list"),
        ({"use_rslora": 1}, "`use_rslora` must be true or false, got 1"),
    ],
)
def test_adapter_refuses(settings, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        AdapterConfig(**settings)
    assert str(error.value).startswith("adapter: ")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dataset_name": "  "}, "`dataset_name` is empty"),
        ({"prompt_column": "q"}, "`prompt_column` is q, so `response_column` must be set too"),
        ({"response_column": "a"}, "`response_column` is a, so `prompt_column` must be set too"),
        ({"input_column": "i"}, "`input_column` is i, so `prompt_column` must be set too"),
        ({"prompt_template": "alpca"}, r"holds no \{instruction\} \(did you mean `alpaca`\?\)"),
        ({"prompt_template": "Q: {instruction} A: "}, "`prompt_template` ends in a space"),
        ({"overlong_rows": "cut"}, "`overlong_rows` must be one of `error`, `drop`"),
        (
            {
                "prompt_column": "q",
                "response_column": "a",
                "input_column": "i",
                "prompt_template": "{instruction}:",
            },
            r"`input_column` is i, but `prompt_template` has no \{input\}",
        ),
    ],
)
def test_data_refuses(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DataConfig(**{"dataset_name": "rows.jsonl", **settings})


def test_model_and_run_refuse_wrong_types():
    with pytest.raises(ConfigError, match=r"`dtype` must be .*bfloat16.*got the text `bf16`"):
        ModelConfig(model_name_or_path="m", dtype="bf16")
    with pytest.raises(ConfigError, match="`model_name_or_path` is empty"):
        ModelConfig(model_name_or_path="")
    with pytest.raises(ConfigError, match="`overwrite` must be true or false, got the text `yes`"):
        RunConfig(overwrite="yes")
