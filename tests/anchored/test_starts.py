"""Starts other than PiSSA: PEFT's own, with the base untouched and nothing lost on the way."""

from __future__ import annotations

import typing
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from torch import nn

from balora.anchored import get_balora_model, initialise, lora_layers
from balora.anchored.beside import BASE_UNTOUCHED
from balora.anchored.starts import STARTS
from balora.config import BALoraConfig
from balora.config.objective import PLAIN_STARTS, AdapterInit
from balora.errors import ConfigError
from balora.models.classifier import LoadedClassifier
from support.adapters import (
    adapted_model,
    anchored_model,
    assert_same_bits,
    factors_of,
    logits_of,
    lora_config,
    make_batch,
    relative_error,
    train,
)
from support.models import make_model

NAMES = typing.get_args(AdapterInit)
NO_SUCH_START = {
    "eva": "computed from data by a function of PEFT's own, into an adapter that is there",
    "loftq": "quantises the base model",
    "pissa_niter_[number of iters]": "`pissa` with `pissa_power_iterations`, without a seed",
}
"""Starts of PEFT's that `adapter_init` does not have, and why."""


def with_statistics(model, rank, rng):
    """Return the model with what PEFT's `preprocess_corda` leaves, for inputs that were drawn."""
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        inputs = torch.randn(200, layer.in_features, generator=rng)
        covariance = inputs.mT @ inputs
        u, s, vh = torch.linalg.svd(layer.weight.detach() @ covariance, full_matrices=False)
        v = (vh @ torch.linalg.inv(covariance)).mT
        layer.eigens = SimpleNamespace(
            S_WC=s[:rank].clone(), U_WC=u[:, :rank].clone(), V_WC=v[:, :rank].clone()
        )
    return model


@pytest.fixture(params=[name for name in NAMES if name != "corda"])
def start(request):
    return request.param


def test_every_start_of_peft_is_there_or_left_out_for_a_reason():
    hints = typing.get_type_hints(LoraConfig)["init_lora_weights"]
    of_peft = {
        name
        for part in typing.get_args(hints)
        for name in typing.get_args(part)
        if isinstance(name, str)
    }
    assert of_peft == (set(NAMES) - {"lora"}) | NO_SUCH_START.keys()
    assert set(NAMES) == set(PLAIN_STARTS) | STARTS.keys()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("lora", "corda")])
def test_what_changes_the_base_in_peft_is_anchored_here(name):
    base = make_model("llama")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, lora_config("llama", init_lora_weights=name))
    after = {n: m.get_base_layer().weight for n, m in lora_layers(model)}
    is_changed = any(not torch.equal(w, before[f"{n}.weight"]) for n, w in after.items())
    assert is_changed == (name in STARTS) == (name not in BASE_UNTOUCHED)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_the_function_is_unchanged_and_the_base_untouched(architecture, start, rng):
    base, batch = make_model(architecture), make_batch(architecture, rng)
    expected, before = logits_of(base, batch), {k: v.clone() for k, v in base.state_dict().items()}
    config = BALoraConfig(adapter_init=start)
    model = get_balora_model(base, lora_config(architecture), config)
    assert isinstance(model, PeftModel)
    torch.testing.assert_close(logits_of(model, batch), expected, rtol=0, atol=1e-5)
    weights = {n: m.get_base_layer().weight for n, m in lora_layers(model)}
    assert_same_bits(weights, {n: before[f"{n}.weight"] for n in weights})


def test_olora_starts_where_peft_starts_it():
    ours = get_balora_model(
        make_model("llama"), lora_config("llama"), BALoraConfig(adapter_init="olora")
    )
    theirs = adapted_model("llama", init_lora_weights="olora")
    for (_, own), (_, other) in zip(lora_layers(ours), lora_layers(theirs), strict=True):
        for actual, expected in zip(factors_of(own)[:2], factors_of(other)[:2], strict=True):
            torch.testing.assert_close(actual, expected)
        assert factors_of(own)[2] == factors_of(other)[2]


def test_training_goes_as_in_peft(rng):
    batch = make_batch("llama", rng)
    theirs = adapted_model("llama", init_lora_weights="olora")
    ours = anchored_model("llama", BALoraConfig(adapter_init="olora"))
    expected = train(theirs, batch)
    assert train(ours, batch) == pytest.approx(expected, rel=1e-4)


def test_what_is_saved_loads_in_plain_peft(start, rng, tmp_path):
    batch, config = make_batch("llama", rng), BALoraConfig(adapter_init=start)
    model = get_balora_model(make_model("llama"), lora_config("llama"), config)
    losses = train(model, batch)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(make_model("llama"), tmp_path).eval()
    assert plain.peft_config["default"].r == (8 if start in STARTS else 4)
    assert relative_error(logits_of(plain, batch), logits_of(model, batch)) < 1e-5


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_checkpoint_brings_its_start(name, rng, tmp_path, monkeypatch):
    batch, config = make_batch("llama", rng), BALoraConfig(adapter_init=name)
    model = get_balora_model(make_model("llama"), lora_config("llama"), config)
    train(model, batch)
    model.save_pretrained(tmp_path)
    resumed = anchored_model("llama", config)
    monkeypatch.setattr("balora.anchored.layer.STARTS", {})
    resumed.load_adapter(tmp_path, "default", is_trainable=True)
    initialise(resumed)
    assert torch.equal(logits_of(resumed, batch), logits_of(model, batch))


def test_the_global_generator_is_not_touched():
    model = anchored_model("llama", BALoraConfig(adapter_init="olora"))
    before = torch.get_rng_state()
    initialise(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_corda_reads_the_statistics_that_peft_has_left(rng, tmp_path):
    base, batch = make_model("llama"), make_batch("llama", rng)
    expected = logits_of(base, batch)
    with_statistics(base, 4, rng)
    corda = lora_config("llama", init_lora_weights="corda", corda_config=CordaConfig())
    theirs = get_peft_model(deepcopy(base), corda)
    model = get_balora_model(base, lora_config("llama"), BALoraConfig(adapter_init="corda"))
    torch.testing.assert_close(logits_of(model, batch), expected, rtol=0, atol=1e-5)
    for (_, layer), (_, other) in zip(lora_layers(model), lora_layers(theirs), strict=True):
        for actual, expected in zip(factors_of(layer)[:2], factors_of(other)[:2], strict=True):
            torch.testing.assert_close(actual, expected)
        assert not hasattr(layer.get_base_layer(), "eigens")
    train(model, batch)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(make_model("llama"), tmp_path).eval()
    assert relative_error(logits_of(plain, batch), logits_of(model, batch)) < 1e-5


def test_corda_without_statistics_is_refused():
    with pytest.raises(ConfigError, match=r"`adapter_init` is corda.*`preprocess_corda`"):
        get_balora_model(
            make_model("llama"), lora_config("llama"), BALoraConfig(adapter_init="corda")
        )


def test_corda_of_another_rank_is_refused(rng):
    base = with_statistics(make_model("llama"), 3, rng)
    own = lora_config("llama")
    with pytest.raises(ConfigError, match=r"statistics .* do not fit"):
        get_balora_model(base, own, BALoraConfig(adapter_init="corda"))


def test_mica_trains_half_of_its_factors(rng):
    config = BALoraConfig(adapter_init="mica")
    model = get_balora_model(make_model("llama"), lora_config("llama"), config)
    for _, layer in lora_layers(model):
        assert layer.lora_A["default"].weight.requires_grad
        assert not layer.lora_B["default"].weight.requires_grad


def test_the_callers_settings_stay_as_they_are():
    own = lora_config("llama")
    get_balora_model(make_model("llama"), own, BALoraConfig(adapter_init="mica"))
    assert own.init_lora_weights is True
    assert own.target_modules == "all-linear"


def test_two_starts_are_refused():
    own = lora_config("llama", init_lora_weights="olora")
    with pytest.raises(ConfigError, match=r"`init_lora_weights` of .*'olora' and .* is mica"):
        get_balora_model(make_model("llama"), own, BALoraConfig(adapter_init="mica"))
    with pytest.raises(ConfigError, match=r"'olora'.*leave it at True.*`adapter_init: olora`"):
        get_balora_model(make_model("llama"), own)


def test_an_adapter_of_ones_own_start_is_kept():
    own = lora_config("llama", init_lora_weights="orthogonal")
    model = get_balora_model(make_model("llama"), own, BALoraConfig(adapter_init="lora"))
    assert model.peft_config["default"].init_lora_weights == "orthogonal"


def test_new_modules_of_a_classifier_are_trained():
    loaded = LoadedClassifier(make_model("bert"), ("classifier",))
    model = get_balora_model(loaded, lora_config("bert", task_type=None), BALoraConfig())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("classifier.modules_to_save" in name for name in trained)


def test_no_layer_matches():
    with pytest.raises(ConfigError, match=r"`target_modules` .*'nothing'.* match no linear layer"):
        get_balora_model(make_model("llama"), lora_config("llama", target_modules="nothing"))
