"""One layer and one model: initialise once, merge, copy, refuse what cannot work."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, convert_to_lora, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

import balora.anchored.starts
from balora.anchored import (
    anchor_adapter,
    check_adapter,
    difference_factors,
    initialise,
    lora_layers,
)
from balora.config import BALoraConfig
from balora.errors import ConfigError
from support.adapters import (
    EXACT,
    adapted_model,
    anchored_model,
    anchors_of,
    assert_same_bits,
    dense_updates,
    factors_of,
    logits_of,
    lora_config,
    make_batch,
    relative_error,
    start_of,
    train,
)
from support.models import CAUSAL, make_model

PLAIN = BALoraConfig(adapter_init="lora")
STARTS = {"pissa": EXACT, "lora": PLAIN}


def test_forward_is_the_definition(rng):
    # y = W x + s (B A - B0 A0) x, in the plain dense form
    model = anchored_model("gpt2", dtype=torch.float64)
    train(model, make_batch("gpt2", rng), num_steps=2)
    updates = dense_updates(model)
    for name, layer in lora_layers(model):
        base = layer.get_base_layer()
        x = torch.randn(3, layer.in_features, generator=rng, dtype=torch.float64)
        expected = x @ base.weight + base.bias + x @ updates[name].mT
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            layer.get_delta_weight("default"), updates[name].mT, rtol=1e-12, atol=1e-12
        )


def test_bf16_forward_loses_only_the_size_of_the_update(rng):
    # adding B A x and subtracting B0 A0 x would lose a bf16 rounding of the whole start
    model = anchored_model("llama", dtype=torch.bfloat16, autocast_adapter_dtype=False)
    initialise(model)
    _, layer = lora_layers(model)[0]
    a, b, scaling = factors_of(layer)
    # a step that the weights themselves can hold: one power of two in a single entry
    b[0, 0] += 2**-6 if b[0, 0].abs() < 1 else 2**-5
    x = torch.randn(64, layer.in_features, generator=rng).to(torch.bfloat16)
    variant = layer.lora_variant["default"]
    actual = variant.forward(layer, "default", x, torch.zeros(64, layer.out_features))
    update = b.double() @ a.double() - start_of(layer)[1].double() @ start_of(layer)[0].double()
    expected = scaling * x.double() @ update.mT
    assert float(expected.abs().max()) > 0
    assert relative_error(actual, expected) < 0.02


def test_initialise_runs_the_svd_once(monkeypatch, rng):
    calls = []
    original = balora.anchored.starts.principal_components

    def counting(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(balora.anchored.starts, "principal_components", counting)
    model = anchored_model("llama")
    assert not calls
    logits_of(model, make_batch("llama", rng))
    assert not calls  # the update is zero with or without a start
    for _ in range(2):
        initialise(model)
        assert len(calls) == len(lora_layers(model))


def test_training_without_a_start_is_refused(rng):
    model = anchored_model("llama")
    batch = make_batch("llama", rng)
    with pytest.raises(ConfigError, match=r"the adapter `default` has no start yet.*initialise"):
        model(**batch)
    initialise(model)
    model(**batch).loss.backward()


def test_start_does_not_depend_on_a_scale_of_the_moment():
    model, scaled = anchored_model("llama"), anchored_model("llama")
    for _, layer in lora_layers(scaled):
        layer.set_scale("default", 0)
    for each in (model, scaled):
        initialise(each)
    assert_same_bits(anchors_of(scaled), anchors_of(model))


def test_autocast_does_not_change_the_start():
    under, plain = (anchored_model("llama", BALoraConfig()) for _ in range(2))
    initialise(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        initialise(under)
    assert_same_bits(anchors_of(under), anchors_of(plain))


def test_anchor_is_copied_after_the_cast():
    model = anchored_model("llama", dtype=torch.bfloat16, autocast_adapter_dtype=False)
    initialise(model)
    for _, layer in lora_layers(model):
        a, b, _ = factors_of(layer)
        assert a.dtype == start_of(layer)[0].dtype == torch.bfloat16
        assert torch.equal(a, start_of(layer)[0])
        assert torch.equal(b, start_of(layer)[1])


@pytest.mark.parametrize("alpha", [0, -4])
def test_alpha_that_gives_no_scale_is_refused(alpha):
    model = adapted_model("llama", alpha_pattern={"v_proj": alpha})
    with pytest.raises(
        ConfigError, match=f"`lora_alpha` is {alpha} for `model.layers.0.self_attn.v"
    ):
        anchor_adapter(model, EXACT)
    check_adapter(model, PLAIN)


def test_difference_factors_have_the_documented_shapes():
    model = anchored_model("llama")
    initialise(model)
    for _, layer in lora_layers(model):
        down, up = difference_factors(layer, "default")
        assert down.shape == (8, layer.in_features)
        assert up.shape == (layer.out_features, 8)


MERGE_DTYPES = {torch.float32: 1e-5, torch.bfloat16: 0.05}


@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize("dtype", MERGE_DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merge_and_unmerge(architecture, dtype, safe_merge, rng):
    model = anchored_model(architecture, dtype=dtype)
    batch = make_batch(architecture, rng)
    train(model, batch)
    updates, expected = dense_updates(model), logits_of(model, batch)
    model.merge_adapter(safe_merge=safe_merge)
    base = make_model(architecture, dtype=dtype)
    for name, layer in lora_layers(model):
        merged, weight = layer.get_base_layer().weight, base.get_parameter(f"{name}.weight")
        update = updates[name].mT if architecture == "gpt2" else updates[name]
        assert merged.dtype == dtype
        # added in float32 and cast last: one rounding of the sum, half a unit in the last place
        torch.testing.assert_close(
            merged.double(), weight.double() + update, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-6
        )
    assert relative_error(logits_of(model, batch), expected) < MERGE_DTYPES[dtype]
    model.unmerge_adapter()
    for name, layer in lora_layers(model):
        assert torch.equal(layer.get_base_layer().weight, base.get_parameter(f"{name}.weight"))
    assert torch.equal(logits_of(model, batch), expected)


def test_merge_and_unload(rng):
    model = anchored_model("llama")
    batch = make_batch("llama", rng)
    train(model, batch)
    expected = logits_of(model, batch)
    merged = model.merge_and_unload()
    assert not [m for m in merged.modules() if hasattr(m, "lora_A")]
    assert relative_error(logits_of(merged, batch), expected) < 1e-5


def test_merge_of_a_model_that_never_ran_is_the_base(rng):
    merged = anchored_model("llama").merge_and_unload()
    batch = make_batch("llama", rng)
    assert torch.equal(logits_of(merged, batch), logits_of(make_model("llama"), batch))


def test_conversion_to_lora_is_refused():
    model = anchored_model("llama")
    initialise(model)
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, 4)


def test_copy_is_independent(rng, tmp_path):
    model = anchored_model("llama")
    batch = make_batch("llama", rng)
    train(model, batch)
    before, expected = anchors_of(model), logits_of(model, batch)
    copied = deepcopy(model)
    assert_same_bits(anchors_of(copied), before)
    train(copied, batch)
    assert_same_bits(anchors_of(model), before)
    changed = logits_of(copied, batch)
    assert relative_error(changed, expected) > 1e-3
    copied.save_pretrained(tmp_path)
    # merging reads the copy's own factors
    assert relative_error(logits_of(copied.merge_and_unload(), batch), changed) < 1e-5
    assert torch.equal(logits_of(model, batch), expected)


REFUSED = {
    "lora_dropout": (0.1, "`lora_dropout` is 0.1"),
    "use_dora": (True, "`use_dora` is True"),
    "init_lora_weights": ("pissa", "`init_lora_weights` is 'pissa'"),
    "bias": ("all", "`bias` is 'all'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_setting_that_does_not_go_with_pissa_is_refused(name):
    value, sentence = REFUSED[name]
    model = adapted_model("llama", **{name: value})
    with pytest.raises(ConfigError, match=sentence + ".*does not go with the start"):
        anchor_adapter(model, EXACT)


@pytest.mark.parametrize("init", ["olora", "gaussian", "pissa_niter_2", "orthogonal", False])
def test_start_of_another_method_is_refused(init):
    model = adapted_model("llama", init_lora_weights=init)
    with pytest.raises(ConfigError, match=f"`init_lora_weights` is {init!r}.*leave it at True"):
        anchor_adapter(model, EXACT)


def test_bias_of_the_adapter_is_refused():
    model = adapted_model("bert", lora_bias=True, modules_to_save=[])
    with pytest.raises(ConfigError, match="`lora_bias` is True"):
        anchor_adapter(model, EXACT)


def test_target_parameters_are_refused():
    model = adapted_model(
        "llama", target_modules=[], target_parameters=["model.layers.0.mlp.up_proj.weight"]
    )
    with pytest.raises(ConfigError, match=r"`target_parameters` is .*leave it at None\.$"):
        anchor_adapter(model, EXACT)


_EXPERTS = {
    **CAUSAL["llama"],
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 24,
}
MIXTURES = {
    "mixtral": {**CAUSAL["llama"], "num_local_experts": 2},
    "qwen3_moe": _EXPERTS,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24},
}


def adapted_mixture(architecture, targets):
    config = AutoConfig.for_model(architecture, **MIXTURES[architecture])
    base = AutoModelForCausalLM.from_config(config)
    return get_peft_model(base, lora_config("llama", target_modules=targets))


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
@pytest.mark.parametrize("method", STARTS)
@pytest.mark.parametrize("architecture", MIXTURES)
def test_all_linear_of_a_mixture_works_or_names_the_layers_that_do(architecture, method, rng):
    model = adapted_mixture(architecture, "all-linear")
    if method == "pissa" or architecture == "qwen2_moe":
        reason = "shared_expert_gate` has shape" if architecture == "qwen2_moe" else "PEFT adds"
        with pytest.raises(ConfigError, match=reason) as error:
            check_adapter(model, STARTS[method])
        (names,) = re.findall(r"set `lora_target_modules: \[(.*)\]`\.$", str(error.value))
        assert {"q_proj", "v_proj"} < set(names.split(", "))
        model = adapted_mixture(architecture, names.split(", "))
    check_adapter(model, STARTS[method])
    if method == "pissa":
        anchor_adapter(model, EXACT)
    losses = train(model.eval(), make_batch("llama", rng), num_steps=2)
    assert losses[-1] < losses[0]


WRONG_ARGUMENTS = {
    "a base model": (lambda: (make_model("llama"), EXACT), "`model` is a LlamaForCausalLM, not a"),
    "a mapping": (lambda: (adapted_model("llama"), {}), "`config` is a dict, not a `BALoraConfig`"),
}


@pytest.mark.parametrize(("make", "sentence"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_arguments_of_another_kind_are_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        anchor_adapter(*make())


def test_every_refused_setting_is_in_one_message():
    model = adapted_model("llama", lora_dropout=0.1, use_dora=True)
    with pytest.raises(ConfigError, match=r"`lora_dropout` is 0\.1.*; `use_dora` is True"):
        anchor_adapter(model, EXACT)


def test_embedding_is_refused_for_pissa():
    model = adapted_model("llama", target_modules=["embed_tokens", "q_proj"])
    sentence = "`model.embed_tokens` is a Embedding, but the start"
    with pytest.raises(ConfigError, match=sentence):
        anchor_adapter(model, EXACT)
    check_adapter(model, PLAIN)


@pytest.mark.parametrize("method", STARTS)
def test_rank_above_the_matrix_is_refused(method):
    model = adapted_model("llama", rank_pattern={"k_proj": 17})
    sentence = (
        "`lora_r` is 17, but `model.layers.0.self_attn.k_proj` has shape (16, 32) and so only 16 "
        "singular values. Lower the rank to 16"
    )
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        check_adapter(model, STARTS[method])


def test_largest_possible_rank_is_the_whole_weight():
    model = anchored_model("llama", target_modules=["k_proj"], r=16)
    initialise(model)
    for _, layer in lora_layers(model):
        a, b, scaling = factors_of(layer)
        torch.testing.assert_close(
            scaling * b @ a, layer.get_base_layer().weight, rtol=0, atol=1e-5
        )


def test_two_adapters_are_refused():
    model = adapted_model("llama")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match=re.escape("the adapters ['default', 'other']")):
        anchor_adapter(model, EXACT)


def test_anchoring_twice_is_refused_and_keeps_the_anchor(rng):
    model = anchored_model("llama")
    train(model, make_batch("llama", rng), num_steps=1)
    before = anchors_of(model)
    with pytest.raises(ConfigError, match="is anchored already"):
        anchor_adapter(model, EXACT)
    assert_same_bits(anchors_of(model), before)


def test_convolution_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["conv"]))
    with pytest.raises(ConfigError, match="`conv` is a Conv2d, but the start"):
        anchor_adapter(model, EXACT)
