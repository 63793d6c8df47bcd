"""Loading a model: what is refused, by which name, and what nobody needs to read."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
)

from balora.errors import ConfigError
from balora.models.load import accelerator, load_model, load_tokenizer
from balora.models.source import ModelSource
from support.models import CAUSAL, CLASSIFIERS, OTHER_HEADS, make_model, make_tokenizer

SETTING = "`--base`"


def source(folder, **settings):
    return ModelSource(name=str(folder), setting=SETTING, **settings)


def saved(folder, model):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", [*CAUSAL, *OTHER_HEADS])
def test_every_causal_model_loads_as_it_was_saved(architecture, tmp_path):
    model = make_model(architecture)
    loaded = load_model(source(saved(tmp_path, model)))
    assert not loaded.training
    own, found = model.state_dict(), loaded.state_dict()
    assert own.keys() == found.keys()
    assert all(torch.equal(own[key], found[key]) for key in own)


def test_dtype_is_the_one_that_is_asked_for(tmp_path):
    folder = saved(tmp_path, make_model("llama", dtype=torch.bfloat16))
    assert load_model(source(folder)).dtype == torch.float32
    assert load_model(source(folder, dtype="auto")).dtype == torch.bfloat16


_T5 = {"vocab_size": 128, "d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8}
OTHER_KINDS = {
    "BertModel": lambda: BertModel(BertConfig(**CLASSIFIERS["bert"])),
    "BertForMaskedLM": lambda: BertForMaskedLM(BertConfig(**CLASSIFIERS["bert"])),
    "T5Model": lambda: T5Model(T5Config(**_T5)),
    "T5ForConditionalGeneration": lambda: T5ForConditionalGeneration(T5Config(**_T5)),
    "LlamaModel": lambda: make_model("llama").model,
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_causal_language_model_is_refused(kind, tmp_path):
    with pytest.raises(ConfigError, match=rf"{SETTING}.*no causal.*saved as `{kind}`.*set `task`"):
        load_model(source(saved(tmp_path, OTHER_KINDS[kind]())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_named(value, dtype, tmp_path):
    model = make_model("llama", dtype=dtype)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(
        ConfigError, match=r"NaN or infinite, in `model.layers.1.mlp.up_proj.weight"
    ):
        load_model(source(saved(tmp_path, model), dtype="auto"))


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    saved(tmp_path, make_model("llama"))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 2 of the weights.*`model.layers.1.mlp.up_proj"):
        load_model(source(tmp_path))


def test_a_checkpoint_that_contradicts_its_config_is_refused(tmp_path):
    saved(tmp_path, make_model("llama"))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(47, 32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has shape \(47, 32\) in the weights and \(48, 32\) by"):
        load_model(source(tmp_path))


def test_loading_reports_nothing(tmp_path, caplog):
    saved(tmp_path, make_model("llama"))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["surplus"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.INFO):
        load_model(source(tmp_path))
    assert not caplog.records


@pytest.mark.parametrize("name", ["flash_attention_2", "no_such_kernel"])
def test_attention_that_cannot_be_used_is_named(name, tmp_path):
    folder = saved(tmp_path, make_model("llama"))
    with pytest.raises(ConfigError, match=rf"`attn_implementation` is '{name}'.*Set `sdpa`"):
        load_model(source(folder, attn_implementation=name))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_model_that_is_not_there_is_named_by_its_setting(load, tmp_path):
    with pytest.raises(ConfigError, match=rf"{SETTING} 'no-such/model' cannot be loaded: "):
        load(source("no-such/model"))
    with pytest.raises(
        ConfigError, match=rf"{SETTING} '/no/such' cannot be loaded: there is no such"
    ):
        load(source("/no/such"))


def test_a_tokenizer_of_the_run_comes_before_the_bases(tmp_path):
    base, run = saved(tmp_path / "base", make_model("llama")), tmp_path / "run"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "own"
    tokenizer.save_pretrained(run)
    assert load_tokenizer(source(base), run).chat_template == "own"
    assert load_tokenizer(source(base), tmp_path).chat_template != "own"


def test_torch_that_is_built_for_a_gpu_measures_on_the_cpu_where_there_is_none(monkeypatch):
    built_for = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: built_for)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert accelerator() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert accelerator() == built_for
