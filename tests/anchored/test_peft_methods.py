"""PEFT's public methods beside an anchored adapter: each is right, refused by name, or reads none.

A method that a later PEFT adds is in none of the three lists, and the first tests say so.
"""

from __future__ import annotations

import inspect
from copy import deepcopy

import peft
import peft.helpers
import peft.optimizers
import peft.tuners.lora.intruders
import peft.utils.hotswap
import pytest
import torch
from peft import (
    LoraConfig,
    LoraModel,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForSequenceClassification,
    get_base_model_state_dict,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora.intruders import reduce_intruder_dimension
from peft.tuners.lora.layer import Linear
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import nn

from balora.anchored import ANCHOR_FILE, initialise, lora_layers
from balora.errors import ConfigError
from support.adapters import (
    adapted_model,
    anchored_model,
    anchors_of,
    assert_same_bits,
    dense_updates,
    logits_of,
    lora_config,
    make_batch,
    relative_error,
    start_of,
    train,
)
from support.models import make_model

# what is tested below, and right
RIGHT = {
    "PeftModel": {
        "add_adapter",
        "delete_adapter",
        "disable_adapter",
        "generate",
        "get_nb_trainable_parameters",
        "load_adapter",
        "save_pretrained",
        "set_adapter",
    },
    "LoraModel": {
        "delete_adapter",
        "inject_adapter",
        "merge_adapter",
        "merge_and_unload",
        "set_adapter",
        "unload",
        "unmerge_adapter",
    },
    "layer": {
        "delete_adapter",
        "get_delta_weight",
        "merge",
        "scale_layer",
        "set_scale",
        "unmerge",
        "unscale_layer",
    },
    "functions": {
        "get_base_model_state_dict",
        "get_peft_model_state_dict",
        "hotswap_adapter",
        "hotswap_adapter_from_state_dict",
        "rescale_adapter_scale",
        "set_peft_model_state_dict",
    },
}
# what is tested below, and raises an error that names what to do
REFUSED = {
    "PeftModel": {"supports_lora_conversion"},
    "LoraModel": {"add_weighted_adapter", "subtract_mutated_init", "supports_lora_conversion"},
    "layer": {
        "corda_init",
        "loftq_init",
        "lora_ga_init",
        "mica_init",
        "olora_init",
        "orthogonal_init",
        "pissa_init",
        "reset_lora_parameters",
        "supports_lora_conversion",
        "update_layer",
    },
    "functions": {
        "convert_to_lora",
        "initialize_lora_eva_weights",
        "prepare_model_for_compiled_hotswap",
        "reduce_intruder_dimension",
        "save_as_lora",
    },
}
# what looks at no A and B, or changes them as an optimizer does
UNREAD = {
    "PeftModel": {
        "active_adapters",
        "active_peft_config",
        "base_model_torch_dtype",
        "create_or_update_model_card",
        "from_pretrained",
        "get_base_model",
        "get_layer_status",
        "get_model_status",
        "get_prompt",
        "get_prompt_embedding_to_save",
        "has_active_enabled_adapter",
        "modules_to_save",
        "peft_config",
        "prepare_inputs_for_generation",
        "prepare_model_for_gradient_checkpointing",
        "print_trainable_parameters",
        "push_to_hub",  # calls save_pretrained
        "set_requires_grad",
    },
    "LoraModel": {
        "active_adapters",
        "disable_adapter_layers",
        "enable_adapter_layers",
        "get_model_config",
        "prefix",
        "set_requires_grad",
        "target_module_mapping",
        "tuner_layer_cls",
        "uses_shared_state",
    },
    "layer": {
        "active_adapter",
        "active_adapters",
        "adapter_layer_names",
        "bias",
        "disable_adapters",
        "enable_adapters",
        "frozen_peft_weight_names",
        "get_base_layer",
        "get_base_weight",
        "lora_variants",
        "merged",
        "merged_adapters",
        "other_param_names",
        "quantization_backend",
        "resolve_lora_variant",
        "set_adapter",
        "set_base_weight",
        "set_requires_grad",
        "weight",
    },
    "functions": {
        "bloom_model_postprocess_past_key_value",
        "cast_mixed_precision_params",
        "check_hotswap_configs_compatible",
        "check_if_peft_model",
        "compose_cartridge_adapters",
        "create_arrow_model",  # builds a model of its own
        "create_lorafa_optimizer",
        "create_loraplus_optimizer",
        "create_riemannian_optimizer",
        "disable_input_dtype_casting",
        "find_kappa_target_modules",
        "get_eva_state_dict",
        "get_layer_status",
        "get_model_status",
        "get_peft_config",
        "get_peft_model",
        "initialize_kv_prefix_from_past_key_values",
        "initialize_kv_prefix_from_text",
        "inject_adapter_in_model",
        "load_peft_weights",
        "prepare_model_for_kbit_training",
        "preprocess_loraga",
        "prompt_embeddings_from_past_key_values",
        "replace_lora_weights_loftq",  # for 4-bit bases only, which it changes
        "set_base_model_state_dict",
        "shift_tokens_right",
        "update_forward_signature",
        "update_generate_signature",
        "update_signature",
    },
}


def public_names(*classes):
    names = {name for cls in classes for name in dir(cls) if not name.startswith("_")}
    return names - set(dir(nn.Module))


def public_functions():
    modules = (peft.helpers, peft.utils.hotswap, peft.tuners.lora.intruders)
    own = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    optimizers = {name for name in dir(peft.optimizers) if name.startswith("create_")}
    return own | optimizers | {name for name in peft.__all__ if name[0].islower()}


@pytest.mark.parametrize("kind", RIGHT)
def test_every_public_method_of_peft_is_known(kind):
    installed = {
        "PeftModel": lambda: public_names(PeftModelForCausalLM, PeftModelForSequenceClassification),
        "LoraModel": lambda: public_names(LoraModel),
        "layer": lambda: public_names(Linear),
        "functions": public_functions,
    }[kind]()
    known = RIGHT[kind] | REFUSED[kind] | UNREAD[kind]
    new, gone = sorted(installed - known), sorted(known - installed)
    assert not new, (
        f"peft {peft.__version__} has {new} of {kind}: see whether they read A and B of an "
        "anchored adapter, make them right or refuse them, and put them into a list here"
    )
    assert not gone, f"peft {peft.__version__} no longer has {gone} of {kind}"
    assert len(known) == sum(len(part[kind]) for part in (RIGHT, REFUSED, UNREAD))


class Beside:
    """An anchored adapter after training, a plain one beside it, and what each alone gives."""

    def __init__(self, folder, rank, *, architecture="llama"):
        self.batch = make_batch(architecture, torch.Generator().manual_seed(0))
        plain = adapted_model(architecture, r=rank, lora_alpha=2 * rank)
        train(plain, self.batch)
        plain.save_pretrained(folder)
        self.second = logits_of(plain, self.batch)
        self.model = anchored_model(architecture)
        train(self.model, self.batch)
        self.first = logits_of(self.model, self.batch)
        self.model.load_adapter(str(folder), "second")
        self.model.base_model.set_adapter("default")
        self.base = logits_of(make_model(architecture), self.batch)
        self.folder = folder

    def logits(self, model=None):
        return logits_of(model or self.model, self.batch)

    def activate(self, *names):
        self.model.base_model.set_adapter(list(names), inference_mode=True)
        return self.logits()


@pytest.fixture(scope="module", params=[3, 4], ids=["another rank", "same rank"])
def of_any_rank(request, tmp_path_factory):
    return Beside(tmp_path_factory.mktemp("second"), request.param)


@pytest.fixture(scope="module")
def of_another_rank(tmp_path_factory):
    return Beside(tmp_path_factory.mktemp("second"), 3)


@pytest.fixture
def any_beside(of_any_rank):
    return deepcopy(of_any_rank)


@pytest.fixture
def beside(of_another_rank):
    return deepcopy(of_another_rank)


ACTIVE = [["default"], ["second"], ["default", "second"], ["second", "default"]]


@pytest.mark.parametrize("active", ACTIVE, ids="+".join)
def test_merged_is_what_the_forward_pass_gives(any_beside, active):
    expected = any_beside.activate(*active)
    if len(active) == 1:
        alone = {"default": any_beside.first, "second": any_beside.second}[active[0]]
        assert relative_error(expected, alone) < 1e-6
    any_beside.model.merge_adapter()
    assert relative_error(any_beside.logits(), expected) < 1e-5
    any_beside.model.unmerge_adapter()
    assert relative_error(any_beside.logits(), expected) < 1e-5
    merged = any_beside.model.merge_and_unload(safe_merge=True)
    assert relative_error(any_beside.logits(merged), expected) < 1e-5


def test_named_adapters_merge_whatever_is_active(beside):
    merged = beside.model.merge_and_unload(adapter_names=["second"])
    assert relative_error(beside.logits(merged), beside.second) < 1e-5


def test_unload_leaves_the_base(beside):
    assert torch.equal(beside.logits(beside.model.unload()), beside.base)


def test_delta_weight_is_of_the_adapter_that_is_asked_for(any_beside):
    first = dense_updates(any_beside.model, "default")
    for name, layer in lora_layers(any_beside.model):
        delta = layer.get_delta_weight("default").double()
        torch.testing.assert_close(delta, first[name], rtol=0, atol=1e-6)
        a, b = layer.lora_A["second"].weight, layer.lora_B["second"].weight
        torch.testing.assert_close(layer.get_delta_weight("second"), 2 * b @ a)


def test_a_batch_with_an_adapter_for_each_row(beside):
    names = ["default", "second", "__base__"]
    with torch.no_grad():
        mixed = beside.model(input_ids=beside.batch["input_ids"], adapter_names=names).logits
    each = torch.stack([beside.first[0], beside.second[1], beside.base[2]])
    assert relative_error(mixed, each) < 1e-5


def test_generation_uses_the_active_adapter(beside):
    prompt = beside.batch["input_ids"][:1]
    tokens = beside.model.generate(input_ids=prompt, max_new_tokens=1, do_sample=False)
    assert int(tokens[0, -1]) == int(beside.first[0, -1].argmax())


def test_a_scale_multiplies_the_update(beside):
    expected = {name: update / 2 for name, update in dense_updates(beside.model, "default").items()}

    def assert_halved():
        for name, layer in lora_layers(beside.model):
            delta = layer.get_delta_weight("default").double()
            torch.testing.assert_close(delta, expected[name], rtol=0, atol=1e-6)

    layers = [layer for _, layer in lora_layers(beside.model)]
    with rescale_adapter_scale(beside.model, 0.5):
        assert_halved()
    for layer in layers:
        layer.set_scale("default", 0.5)
    assert_halved()
    for layer in layers:
        layer.set_scale("default", 1)
        layer.scale_layer(0.5)
    assert_halved()
    for layer in layers:
        layer.unscale_layer()
    assert torch.equal(beside.logits(), beside.first)


def test_a_scale_of_the_moment_is_not_saved(beside, tmp_path):
    for _, layer in lora_layers(beside.model):
        layer.set_scale("default", 0.5)
    beside.model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(make_model("llama"), tmp_path)
    assert relative_error(beside.logits(plain.eval()), beside.first) < 1e-5


@pytest.mark.parametrize(
    "selected", [None, ["default"], ["second"], ["second", "default"]], ids=str
)
def test_each_selected_adapter_is_saved_as_a_plain_lora(beside, selected, tmp_path):
    configs = {name: config.to_dict() for name, config in beside.model.peft_config.items()}
    beside.model.save_pretrained(tmp_path, selected_adapters=selected)
    assert configs == {n: config.to_dict() for n, config in beside.model.peft_config.items()}
    folders = {"default": (tmp_path, beside.first), "second": (tmp_path / "second", beside.second)}
    for name, (folder, expected) in folders.items():
        is_saved = selected is None or name in selected
        assert (folder / "adapter_config.json").exists() == is_saved
        assert (folder / ANCHOR_FILE).exists() == (is_saved and name == "default")
        if is_saved:
            plain = PeftModel.from_pretrained(make_model("llama"), folder).eval()
            assert relative_error(beside.logits(plain), expected) < 1e-5


def test_a_checkpoint_loads_beside_another_adapter(beside, tmp_path):
    beside.model.save_pretrained(tmp_path, selected_adapters=["default"])
    before = anchors_of(beside.model)
    train(beside.model, beside.batch, num_steps=1)
    beside.model.load_adapter(str(tmp_path), "default")
    assert_same_bits(anchors_of(beside.model), before)
    assert relative_error(beside.activate("second"), beside.second) < 1e-6


def test_a_plain_adapter_that_is_there_is_loaded_into_as_in_peft(beside):
    beside.model.load_adapter(str(beside.folder), "second")
    assert torch.equal(beside.logits(), beside.first)
    assert relative_error(beside.activate("second"), beside.second) < 1e-6


@pytest.mark.parametrize("name", ["default", "second"])
def test_a_deleted_adapter_leaves_the_other(beside, name, tmp_path):
    other, expected = {
        "default": ("second", beside.second),
        "second": ("default", beside.first),
    }[name]
    beside.activate(other)
    beside.model.delete_adapter(name)
    assert list(beside.model.peft_config) == [other]
    assert relative_error(beside.logits(), expected) < 1e-6
    assert not [key for key in beside.model.state_dict() if f".{name}" in key]
    beside.model.save_pretrained(tmp_path)
    folder = tmp_path if other == "default" else tmp_path / other
    plain = PeftModel.from_pretrained(make_model("llama"), folder).eval()
    assert relative_error(beside.logits(plain), expected) < 1e-5


def test_a_name_that_was_deleted_is_a_plain_adapter_again(beside):
    beside.activate("second")
    beside.model.delete_adapter("default")
    beside.model.load_adapter(str(beside.folder), "default")
    assert relative_error(beside.activate("default"), beside.second) < 1e-6
    assert relative_error(beside.logits(beside.model.merge_and_unload()), beside.second) < 1e-5


def test_off_is_the_base_with_two_adapters(beside):
    beside.activate("default", "second")
    with beside.model.disable_adapter():
        assert torch.equal(beside.logits(), beside.base)


def test_anchors_are_no_parameters(beside):
    plain = adapted_model("llama").get_nb_trainable_parameters()
    beside.model.delete_adapter("second")
    assert beside.model.get_nb_trainable_parameters() == plain


# state dicts


def loaded_by_peft(model, own):
    return set_peft_model_state_dict(model, get_peft_model_state_dict(own))


def loaded_by_torch(model, own):
    return model.load_state_dict(own.state_dict(), strict=True)


@pytest.mark.parametrize("is_initialised", [False, True], ids=["fresh", "initialised"])
@pytest.mark.parametrize("load", [loaded_by_peft, loaded_by_torch])
def test_a_state_dict_gives_the_trained_model(load, is_initialised, rng, monkeypatch):
    trained, other = anchored_model("llama"), anchored_model("llama")
    batch = make_batch("llama", rng)
    train(trained, batch)
    if is_initialised:
        train(other, batch, num_steps=1)
    assert not load(other, trained).unexpected_keys
    assert_same_bits(anchors_of(other), anchors_of(trained))
    assert torch.equal(logits_of(other, batch), logits_of(trained, batch))
    # and training goes on from there, without another start
    assert train(other, batch, num_steps=2) == train(trained, batch, num_steps=2)


def test_a_state_dict_from_before_the_start_leaves_the_start_to_compute():
    model, fresh = anchored_model("llama"), anchored_model("llama")
    loaded_by_torch(model, fresh)
    initialise(model)
    initialise(fresh)
    assert_same_bits(anchors_of(model), anchors_of(fresh))


def test_the_start_of_a_weight_of_zeros_is_a_start(rng, tmp_path):
    trained, fresh = anchored_model("llama"), anchored_model("llama")
    for model in (trained, fresh):
        _, layer = lora_layers(model)[0]
        layer.get_base_layer().weight.data.zero_()
    train(trained, make_batch("llama", rng), num_steps=1)
    trained.save_pretrained(tmp_path)
    fresh.load_adapter(str(tmp_path), "default", is_trainable=True)
    fresh(**make_batch("llama", rng)).loss.backward()
    assert_same_bits(anchors_of(fresh), anchors_of(trained))


@pytest.mark.parametrize("is_initialised", [False, True], ids=["fresh", "initialised"])
def test_a_state_dict_without_the_start_is_refused(is_initialised, rng):
    plain, model = adapted_model("llama"), anchored_model("llama")
    train(plain, make_batch("llama", rng))
    if is_initialised:
        initialise(model)
    before = anchors_of(model)
    sentence = r"2 of the four matrices of the anchored adapter `default`.*`model\.load_adapter"
    with pytest.raises(ConfigError, match=sentence):
        set_peft_model_state_dict(model, get_peft_model_state_dict(plain))
    with pytest.raises(ConfigError, match=sentence):
        model.load_state_dict(plain.state_dict(), strict=False)
    assert_same_bits(anchors_of(model), before)


def test_weights_that_were_set_by_hand_are_not_overwritten(rng):
    model = anchored_model("llama")
    _, layer = lora_layers(model)[-1]
    with torch.no_grad():
        layer.lora_B["default"].weight[0, 0] = 1
    before = anchors_of(model)
    with pytest.raises(ConfigError, match=r"its start would overwrite.*`model\.load_adapter"):
        initialise(model)
    assert_same_bits(anchors_of(model), before)


def test_a_gathered_state_dict_is_saved_as_it_is(rng, tmp_path):
    # as accelerate hands it over: of all processes, while the layers hold a part
    trained, shell = anchored_model("llama"), anchored_model("llama")
    batch = make_batch("llama", rng)
    train(trained, batch)
    shell.save_pretrained(tmp_path, state_dict=trained.state_dict())
    fresh = anchored_model("llama")
    fresh.load_adapter(str(tmp_path), "default")
    assert_same_bits(anchors_of(fresh), anchors_of(trained))
    plain = PeftModel.from_pretrained(make_model("llama"), tmp_path).eval()
    assert relative_error(logits_of(plain, batch), logits_of(trained, batch)) < 1e-5


def test_a_state_dict_without_the_start_is_not_saved(tmp_path):
    with pytest.raises(ConfigError, match=r"`state_dict` has A and B .* but not their start"):
        anchored_model("llama").save_pretrained(
            tmp_path, state_dict=adapted_model("llama").state_dict()
        )


def test_the_state_of_the_base_is_the_base(beside):
    base = make_model("llama").state_dict()
    assert_same_bits(dict(get_base_model_state_dict(beside.model)), dict(base))


# another adapter in place of the anchored one


def test_hot_swap_gives_the_other_adapter(any_beside):
    hotswap_adapter(any_beside.model, str(any_beside.folder), "default", torch_device="cpu")
    assert relative_error(any_beside.activate("default"), any_beside.second) < 1e-5
    assert (
        relative_error(any_beside.logits(any_beside.model.merge_and_unload()), any_beside.second)
        < 1e-5
    )


def test_hot_swap_of_a_larger_rank_is_refused(tmp_path):
    beside = Beside(tmp_path, 6)
    hotswap_adapter(beside.model, str(tmp_path), "default", torch_device="cpu")
    beside.model.base_model.set_adapter("default")
    sentence = "were given other shapes, .*Load the other adapter under a name of its own"
    for call in (beside.logits, beside.model.merge_and_unload):
        with pytest.raises(ConfigError, match=sentence):
            call()


def test_padding_for_compiled_hot_swap_is_refused(beside):
    prepare_model_for_compiled_hotswap(beside.model, target_rank=8)
    with pytest.raises(ConfigError, match="were given other shapes"):
        beside.logits()


# what is refused


def test_every_combination_with_an_anchored_adapter_is_refused(any_beside):
    for kind in (
        "svd",
        "linear",
        "cat",
        "ties",
        "ties_svd",
        "dare_ties",
        "dare_linear",
        "dare_ties_svd",
        "dare_linear_svd",
        "magnitude_prune",
        "magnitude_prune_svd",
    ):
        for adapters in (["default"], ["second", "default"]):
            with pytest.raises(ConfigError, match="`adapters` holds `default`, which is anchored"):
                any_beside.model.add_weighted_adapter(
                    adapters, [1.0] * len(adapters), "both", combination_type=kind, density=0.5
                )
    assert list(any_beside.model.peft_config) == ["default", "second"]


def test_the_way_out_of_the_refusal_works(beside, tmp_path):
    beside.model.save_pretrained(tmp_path, selected_adapters=["default"])
    model = PeftModel.from_pretrained(make_model("llama"), tmp_path).eval()
    model.add_weighted_adapter(["default"], [1.0], "same", combination_type="linear")
    model.set_adapter("same")
    assert relative_error(beside.logits(model), beside.first) < 1e-5


def test_other_adapters_combine_as_in_peft(beside):
    beside.model.add_weighted_adapter(["second"], [1.0], "same")
    beside.model.add_weighted_adapter(["second"], [1.0], "linear", "linear")
    for name in ("same", "linear"):
        assert relative_error(beside.activate(name), beside.second) < 1e-5


def test_conversions_are_refused(beside, tmp_path):
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        peft.convert_to_lora(beside.model, 4)
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        peft.save_as_lora(tmp_path, beside.model, 4)
    with pytest.raises(ConfigError, match=r"`path_initial_model_for_weight_conversion` .*Leave it"):
        beside.model.save_pretrained(
            tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
    with pytest.raises(ConfigError, match="`path_initial_model_for_weight_conversion`"):
        beside.model.subtract_mutated_init({}, "second", {})
    assert not list(tmp_path.iterdir())


def test_a_pickle_is_refused(beside, tmp_path):
    with pytest.raises(ConfigError, match="`safe_serialization` is False"):
        beside.model.save_pretrained(tmp_path, safe_serialization=False)


def test_intruder_reduction_is_refused(beside):
    with pytest.raises(ConfigError, match="`peft_config` is that of the anchored adapter"):
        reduce_intruder_dimension(beside.model, logging_sink=None)
    assert list(beside.model.peft_config) == ["default", "second"]


def test_eva_is_refused_by_peft(beside):
    with pytest.raises(ValueError, match="can only be used with `init_lora_weights='eva'`"):
        peft.initialize_lora_eva_weights(beside.model, eva_state_dict={})


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_an_adapter_that_changes_the_base_is_refused(beside, init):
    config = lora_config("llama", init_lora_weights=init)
    sentence = f"`init_lora_weights` is '{init}', which changes the base"
    with pytest.raises(ConfigError, match=sentence):
        beside.model.add_adapter("third", config)
    assert list(beside.model.peft_config) == ["default", "second"]
    assert torch.equal(beside.logits(), beside.first)


def test_a_saved_pissa_adapter_is_not_loaded_beside(beside, tmp_path):
    adapted_model("llama", init_lora_weights="pissa").save_pretrained(tmp_path)
    with (
        pytest.warns(UserWarning, match="should thus not be used with other adapters"),
        pytest.raises(ConfigError, match="`init_lora_weights` is 'pissa', which changes the base"),
    ):
        beside.model.load_adapter(str(tmp_path), "third")
    assert torch.equal(beside.logits(), beside.first)


def test_another_adapter_can_be_added(beside):
    beside.model.add_adapter("third", LoraConfig(r=2, target_modules=["q_proj"]))
    assert torch.equal(beside.activate("third"), beside.base)
    assert relative_error(beside.activate("default"), beside.first) < 1e-6


@pytest.mark.parametrize("name", sorted(REFUSED["layer"] - {"supports_lora_conversion"}))
def test_a_new_start_of_one_layer_is_refused(beside, name):
    _, layer = lora_layers(beside.model)[0]
    arguments = {
        "update_layer": {"r": 4, "lora_alpha": 4, "config": LoraConfig()},
        "reset_lora_parameters": {"init_lora_weights": True},
    }.get(name, {})
    with pytest.raises(ConfigError, match=f"`{name}` would give the anchored adapter `default`"):
        getattr(layer, name)("default", **arguments)
    assert torch.equal(beside.logits(), beside.first)


def test_a_new_start_of_another_adapter_is_pefts(beside):
    for _, layer in lora_layers(beside.model):
        layer.reset_lora_parameters("second", True)
    assert torch.equal(beside.activate("second"), beside.base)
    assert torch.equal(beside.activate("default"), beside.first)


def test_each_adapter_has_its_own_start(beside):
    for _, layer in lora_layers(beside.model):
        assert list(layer.lora_anchor_A) == list(layer.lora_anchor_B) == ["default"]
        assert len(start_of(layer, "default")[0]) == 4
