"""What a method's name stands for, and which explicitly given fields cannot act under it."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.config import BALoraConfig
from balora.config.adapter import Method
from balora.errors import ConfigError
from balora.recipes.methods import METHODS, acting_fields, foreign_fields, resolve


@pytest.mark.parametrize(
    ("method", "adapter_init", "coefficients"),
    [
        ("full", "pissa", (0.0, 0.0, 0.0)),
        ("lora", "lora", (0.0, 0.0, 0.0)),
        ("pissa", "pissa", (0.0, 0.0, 0.0)),
        ("olora", "olora", (0.0, 0.0, 0.0)),
        ("mica", "mica", (0.0, 0.0, 0.0)),
        ("balora", "pissa", (1e-4, 3e-4, 1e-4)),
    ],
)
def test_methods_stand_for_start_and_coefficients(method, adapter_init, coefficients):
    adapter, config = resolve({"method": method})
    assert adapter.method == method
    assert config.adapter_init == adapter_init
    assert (config.consistency_coef, config.diversity_coef, config.svd_coef) == coefficients


def test_every_method_has_its_row():
    assert METHODS.keys() == set(typing.get_args(Method))


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_of_another_method_runs_without_what_is_foreign(method):
    recipe = {
        "lora_r": 4,
        "pissa_svd": "exact",
        "svd_coef": 0.5,
        "svd_k": 3,
        "schedule": "iclr2026",
    }
    own = {name: v for name, v in recipe.items() if name not in foreign_fields(method)}
    assert resolve({**own, "method": method}).adapter.method == method
    assert ("pissa_svd" in own) == (METHODS[method].start == "pissa")
    assert ("lora_r" in own) == METHODS[method].has_adapter


def test_nothing_given_is_the_papers_method():
    adapter, config = resolve({})
    assert adapter.method == "balora"
    assert config == BALoraConfig.preset("paper")


def test_preset_gives_the_numbers_and_explicit_fields_replace_them():
    _, config = resolve({"preset": "iclr2026", "svd_k": 3})
    assert (config.svd_k, config.entropy_top_k, config.schedule) == (3, 20, "iclr2026")


def test_task_chooses_the_presets_numbers():
    assert resolve({}, task="nlu").objective.diversity_coef == 4e-4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "pissa", "svd_coef": 0.5}, ("pissa", 0.0, 0.0, 0.5)),
        ({"method": "lora", "consistency_coef": 0.1}, ("lora", 0.1, 0.0, 0.0)),
        ({"method": "balora", "adapter_init": "lora"}, ("lora", 1e-4, 3e-4, 1e-4)),
        ({"method": "balora", "diversity_coef": 0}, ("pissa", 1e-4, 0, 1e-4)),
        ({"method": "full", "diversity_coef": 0.2}, ("pissa", 0.0, 0.2, 0.0)),
    ],
)
def test_start_and_coefficients_are_independent(settings, expected):
    config = resolve(settings).objective
    got = (config.adapter_init, config.consistency_coef, config.diversity_coef, config.svd_coef)
    assert got == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"method": "full", "consistency_coef": 0.1},
            "`consistency_coef` is 0.1, but full fine-tuning would need a second copy of the model",
        ),
        ({"method": "full", "lora_r": 8}, "`lora_r` is 8, but full fine-tuning has no adapter"),
        ({"method": "full", "use_rslora": False}, "`use_rslora` is False, but full fine-tuning"),
        ({"method": "full", "pissa_seed": 0}, "`pissa_seed` is 0, but full fine-tuning has no"),
        ({"method": "full", "adapter_init": "pissa"}, "`adapter_init` is pissa, but full"),
        ({"method": "lora", "pissa_seed": 0}, "`pissa_seed` is 0, but `adapter_init` is lora"),
        ({"adapter_init": "lora", "pissa_svd": "exact"}, "`adapter_init` is lora and has no such"),
        ({"pissa_svd": "exact", "pissa_seed": 1}, "`pissa_seed` is 1, but `pissa_svd` is exact"),
        ({"method": "lora", "preset": "paper"}, "`preset` is paper, but it only acts with method"),
        ({"lora_dropout": 0.1}, "`lora_dropout` is 0.1, but the start .* has no dropout"),
        ({"adapter_init": "corda"}, "`adapter_init` is corda, which is computed from sample data"),
        (
            {"method": "lora", "adapter_init": "pissa", "lora_dropout": 0.1},
            "`lora_dropout` is 0.1, but the start .`adapter_init` pissa. has no dropout",
        ),
        ({"method": "lora", "svd_k": 3}, "`svd_k` is 3, but `svd_coef` is 0 and so it cannot act"),
        (
            {"consistency_coef": 0, "temperature": 2.0},
            "`temperature` is 2.0, but `consistency_coef`",
        ),
        ({"diversity_coef": 0, "entropy_top_k": 5}, "`entropy_top_k` is 5, but `diversity_coef`"),
        ({"method": "pissa", "schedule": "iclr2026"}, "`schedule` is iclr2026, but every coeff"),
    ],
)
def test_what_cannot_act_is_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        resolve(settings)
    assert error.value.exit_status == 2


def test_problems_of_every_part_are_in_one_message():
    with pytest.raises(ConfigError) as error:
        resolve({"method": "full", "lora_r": 0, "svd_k": 7.5})
    for part in (
        "`lora_r` must be 1",
        "`svd_k` must be greater than 0 and at most 1, got 7.5",
        "full fine-tuning has no",
    ):
        assert part in str(error.value)


def test_a_preset_with_a_term_switched_off_is_no_contradiction():
    assert resolve({"preset": "iclr2026", "consistency_coef": 0}).objective.temperature == 2.0


settings = st.fixed_dictionaries(
    {"method": st.sampled_from(list(METHODS))},
    optional={
        "preset": st.sampled_from([None, "paper", "iclr2026", "recommended"]),
        "lora_r": st.integers(1, 64),
        "lora_dropout": st.sampled_from([0.0, 0.25]),
        "adapter_init": st.sampled_from(["lora", "pissa", "olora"]),
        "pissa_svd": st.sampled_from(["exact", "randomized"]),
        "pissa_seed": st.integers(0, 3),
        "consistency_coef": st.sampled_from([0, 0.5]),
        "diversity_coef": st.sampled_from([0, 0.5]),
        "svd_coef": st.sampled_from([0, 0.5]),
        "entropy_top_k": st.sampled_from([None, 5]),
        "temperature": st.sampled_from([1.0, 4]),
        "svd_k": st.sampled_from([1, 1.0, 0.3]),
        "schedule": st.sampled_from(["constant", "iclr2026"]),
    },
)


@given(settings)
def test_what_is_written_down_resolves_to_the_same(values):
    try:
        resolved = resolve(values)
    except ConfigError:
        return
    assert resolve(acting_fields(resolved)) == resolved
