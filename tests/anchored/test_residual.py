"""``pissa_residual``: the residual alone is quantised, and the start is always on."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from balora.anchored import get_balora_model, lora_layers, reference_mode
from balora.anchored.layer import base_weight, configured_scaling, dequantised_weight
from balora.config import BALoraConfig
from balora.config.quantization import Quantization
from balora.errors import ConfigError
from balora.models.classifier import load_classifier
from balora.models.load import load_model
from balora.models.quantization import quantised
from balora.models.run_folder import load_run
from balora.models.source import ModelSource, base_of_runs
from balora.recipes import load_recipe
from support.adapters import factors_of, logits_of, lora_config, make_batch, start_of
from support.command_line import train_with
from support.models import make_model, make_tokenizer
from support.training import QUICK_STEPS

scale = pytest.mark.scale
RESIDUAL = BALoraConfig(pissa_residual=True, pissa_svd="exact")
SCHEMES = {
    "nf4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
    "torchao": {"torchao": "int8_weight_only"},
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("residual")
    for name in ("llama", "gpt2", "roberta"):
        sizes = {"n_embd": 64} if name == "gpt2" else {"hidden_size": 64, "intermediate_size": 128}
        make_model(name, **sizes).save_pretrained(place / name)
        make_tokenizer().save_pretrained(place / name)
    lines = [f'{{"prompt": "{i}+{i}=", "completion": "{2 * i}"}}' for i in range(16)]
    (place / "rows.jsonl").write_text("\n".join(lines))
    return place


def source_of(folder, name, scheme):
    return ModelSource(name=str(folder / name), quantization=Quantization(**scheme))


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_it_needs_a_quantised_base():
    head = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    with pytest.raises(ConfigError, match="`pissa_residual` is true, but the base is not quantis"):
        load_recipe(None, head | {"pissa_residual": "true"})
    with pytest.raises(ConfigError, match=r"`pissa_residual` is True, but `adapter_init` is lora"):
        BALoraConfig(adapter_init="lora", pissa_residual=True)
    recipe = load_recipe(None, head | {"pissa_residual": "true", "load_in_4bit": "true"})
    assert recipe.objective.pissa_residual
    assert load_recipe(None, head | {"load_in_4bit": "true"}).objective.pissa_residual is False
    with pytest.raises(ConfigError, match="`pissa_residual` is true, but the model is not quanti"):
        get_balora_model(make_model("llama"), lora_config("llama"), RESIDUAL)


@scale
@every_scheme
def test_a_weight_that_is_quantised_anew_is_the_one_that_was_loaded(folder, scheme, rng):
    """Else a start of zero would change the base."""
    model, whole = load_model(source_of(folder, "llama", scheme)), make_whole(folder)
    batch = make_batch("llama", rng)
    expected = logits_of(model, batch)
    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            own = model.get_submodule(name)
            own.weight = quantised(own, module.weight.detach())
    assert torch.equal(logits_of(model, batch), expected)


def make_whole(folder):
    return load_model(ModelSource(name=str(folder / "llama")))


@scale
@every_scheme
def test_base_and_start_are_nearer_to_the_whole_weights(folder, scheme, rng):
    whole, plain = make_whole(folder), load_model(source_of(folder, "llama", scheme))
    config = lora_config("llama", r=16)
    model = get_balora_model(load_model(source_of(folder, "llama", scheme)), config, RESIDUAL)
    for name, layer in lora_layers(model):
        a0, b0 = start_of(layer)
        w, s = whole.get_submodule(name).weight.detach(), configured_scaling(layer, "default")
        exact = torch.linalg.svd(w).S
        assert relative(s * b0 @ a0, w) < 1
        kept = relative(base_weight(layer).float() + s * b0 @ a0, w)
        own = plain.get_submodule(name)
        lost = relative(dequantised_weight(own).float(), w)
        assert kept < lost
        # the residual is quantised with the relative error of any matrix
        left = float(exact[16:].norm() / exact.norm())
        assert kept == pytest.approx(lost * left, rel=0.2)
    batch = make_batch("llama", rng)
    expected = logits_of(whole, batch)
    assert relative(logits_of(model, batch), expected) < relative(logits_of(plain, batch), expected)


@scale
@every_scheme
def test_the_reference_is_the_adapter_at_its_anchor(folder, scheme, rng):
    base = load_model(source_of(folder, "llama", scheme))
    model = get_balora_model(base, lora_config("llama"), RESIDUAL)
    batch = make_batch("llama", rng)
    start = logits_of(model, batch)
    with reference_mode(model):
        assert torch.equal(logits_of(model, batch), start)
    # Q x + s B A x, by the definition
    name, layer = lora_layers(model)[0]
    a, b, scaling = factors_of(layer)
    a.add_(0.05 * torch.randn(a.shape, generator=rng))
    b.add_(0.05 * torch.randn(b.shape, generator=rng))
    x = torch.randn(2, 3, a.shape[1], generator=rng)
    with torch.no_grad():
        quantised_part = torch.nn.functional.linear(x, base_weight(layer).float())
        expected = quantised_part + scaling * x @ a.mT @ b.mT
        if "load_in_8bit" not in scheme:  # which rounds its input too
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert name.endswith("q_proj")
    with reference_mode(model):
        assert torch.equal(logits_of(model, batch), start)


@scale
def test_what_is_saved_is_a_plain_lora_for_the_whole_weights(folder, tmp_path, rng):
    scheme, batch = SCHEMES["nf4"], make_batch("llama", rng)
    base = load_model(source_of(folder, "llama", scheme))
    model = get_balora_model(base, lora_config("llama"), RESIDUAL)
    for _, layer in lora_layers(model):
        for factor in factors_of(layer)[:2]:
            factor.add_(0.02 * torch.randn(factor.shape, generator=rng))
    trained = logits_of(model, batch)
    model.save_pretrained(str(tmp_path))
    plain = PeftModel.from_pretrained(make_whole(folder), str(tmp_path)).eval()
    for (_, own), (_, saved) in zip(lora_layers(model), lora_layers(plain), strict=True):
        a, b, scaling = factors_of(own)
        a0, b0 = start_of(own)
        up, down = saved.lora_B["default"].weight, saved.lora_A["default"].weight
        delta = saved.scaling["default"] * up @ down
        torch.testing.assert_close(delta, scaling * (b @ a - b0 @ a0), rtol=1e-4, atol=1e-5)
    # what is left between the two is the rounding of the residual
    away = relative(logits_of(plain, batch), trained)
    anew = get_balora_model(
        load_model(source_of(folder, "llama", scheme)), lora_config("llama"), RESIDUAL
    )
    start = relative(logits_of(anew, batch), logits_of(make_whole(folder), batch))
    assert away < 2 * start
    # and an anchored model that reads it goes on from the same bits
    anew.load_adapter(str(tmp_path), "default")
    assert torch.equal(logits_of(anew, batch), trained)


@scale
@pytest.mark.parametrize("task", ["generation", "classification"])
def test_a_run_resumes_bit_for_bit_and_is_measured_on_the_whole_weights(
    folder, task, tmp_path, capsys, caplog
):
    run = tmp_path / "run"
    fields = {
        "model_name_or_path": str(folder / "llama"),
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(run),
        **{name: str(value).lower() for name, value in QUICK_STEPS.items()},
        **{"max_steps": "4", "save_strategy": "steps", "save_steps": "2", "bf16": "false"},
        **{"lora_r": "2", "lora_alpha": "4", "load_in_4bit": "true", "pissa_residual": "true"},
    }
    if task == "classification":
        rows = [f"text {i},{('neg', 'pos')[i % 2]}" for i in range(16)]
        (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
        fields |= {"task": "classification", "dataset_name": str(tmp_path / "rows.csv")}
        fields |= {"model_name_or_path": str(folder / "roberta"), "max_length": "32"}
        fields |= {"ignore_mismatched_sizes": "true"}
    assert train_with(fields, []) == 0
    assert "quantization_config" not in capsys.readouterr().out
    expected = load_file(run / "anchor.safetensors")
    shutil.rmtree(run / "checkpoint-4")
    for name in ("environment.json", "results.json", "anchor.safetensors"):
        (run / name).unlink(missing_ok=True)
    assert train_with(fields, ["--resume_from_checkpoint", "true"]) == 0
    found = load_file(run / "anchor.safetensors")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    with caplog.at_level("INFO", logger="balora"):
        source = base_of_runs([run], fields["model_name_or_path"])
    assert source.quantization == Quantization()
    assert "for it quantised the residual alone" in caplog.text
    load_run(run, source)


@scale
def test_layers_that_store_their_transpose_and_layers_that_are_not_quantised(folder, rng):
    scheme = SCHEMES["nf4"]
    for name, targets in (("gpt2", ["c_attn", "c_fc"]), ("roberta", ["query", "dense"])):
        source, batch = source_of(folder, name, scheme), make_batch(name, rng)
        config = lora_config(name, target_modules=targets, fan_in_fan_out=False)
        if name == "gpt2":
            loaded, whole = (
                load_model(source),
                load_model(dataclasses.replace(source, quantization=Quantization())),
            )
        else:
            names = ["a", "b", "c"]
            loaded = load_classifier(source, class_names=names)
            whole = load_classifier(str(folder / name), class_names=names, dtype="float32").model
        model = get_balora_model(loaded, config, RESIDUAL)
        assert relative(logits_of(model, batch), logits_of(whole, batch)) < 0.3
