"""Layers that an adapter can be put on: what cannot be adapted is named with what works."""

from __future__ import annotations

import re

import pytest
from peft import LoraConfig
from transformers.models.auto.configuration_auto import AutoConfig

from balora.errors import ConfigError
from balora.models.adaptable import check_adaptable
from balora.models.source import ModelSource
from support.models import ARCHITECTURES, CAUSAL, make_model

_SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OTHERS = {
    "mixtral": {**_SMALL, "num_local_experts": 4},
    "qwen3_moe": {**_SMALL, **_EXPERTS, "head_dim": 8},
    "qwen2_moe": {**_SMALL, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "mamba": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def check(architecture, targets, *, rank=4):
    if architecture in OTHERS:
        config = AutoConfig.for_model(architecture, **OTHERS[architecture])
    else:
        config = make_model(architecture).config
    kind = "CAUSAL_LM" if architecture in (*CAUSAL, *OTHERS) else "SEQ_CLS"
    lora = LoraConfig(task_type=kind, target_modules=targets)
    lora.r = rank
    check_adaptable(config, lora, ModelSource(name="some/model"))


def remedy_of(architecture, targets, **settings):
    """Return the layers that the refusal names, and its text."""
    with pytest.raises(ConfigError) as caught:
        check(architecture, targets, **settings)
    found = re.search(r"`lora_target_modules: \[([^]]*)\]`", str(caught.value))
    return (found[1].split(", ") if found else None), str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_fits_every_architecture(architecture):
    check(architecture, "all-linear")


@pytest.mark.parametrize("architecture", OTHERS)
def test_the_layers_that_are_named_instead_of_all_linear_work(architecture):
    names, text = remedy_of(architecture, "all-linear")
    assert names
    check(architecture, names)
    said = {
        "mamba": "cannot be adapted: `out_proj`",
        "qwen2_moe": r"shape (1, 32) and so only 1 singular values. Lower the rank to 1",
    }
    assert said.get(architecture, "cannot be adapted: the experts of its mixture") in text


@pytest.mark.parametrize(
    "targets", [["nope"], "nope.*", ["norm"], "lm_head", ["q_proj", "lm_head"]]
)
def test_names_that_cannot_be_adapted_are_told_with_names_that_can(targets):
    names, text = remedy_of("llama", targets)
    assert "q_proj" in names
    assert repr(targets) in text or repr(sorted(targets)) in text
    check("llama", names)


def test_a_rank_out_of_reach_names_the_limit():
    names, text = remedy_of("llama", "all-linear", rank=10**30)
    assert names is None
    assert "and so only 16 singular values. Lower the rank to 16." in text
    check("llama", "all-linear", rank=16)
