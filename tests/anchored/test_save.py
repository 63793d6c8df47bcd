"""What is on disk: a plain LoRA of rank 2r for anybody, and the exact anchor for resuming."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import balora.anchored.starts
from balora.anchored import (
    ADAPTER_FILE,
    ANCHOR_FILE,
    anchor_adapter,
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
from support.models import make_model

PATTERNS = {
    "none": {},
    "rank": {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7}},
    "alpha": {"alpha_pattern": {"v_proj": 5}},
    "both": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3, "o_proj": 1}},
}


def forbid_svd(monkeypatch):
    def refuse(*_):
        raise AssertionError("an SVD ran")

    monkeypatch.setattr(balora.anchored.starts, "principal_components", refuse)


@pytest.mark.parametrize("use_rslora", [False, True], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize("patterns", PATTERNS)
def test_plain_reload_gives_every_update_without_a_pattern(patterns, use_rslora, rng, tmp_path):
    # servers drop the patterns without a word: one rank and one scale serve all layers
    model = anchored_model("llama", use_rslora=use_rslora, **PATTERNS[patterns])
    batch = make_batch("llama", rng)
    train(model, batch)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(make_model("llama"), tmp_path).eval()
    config = plain.peft_config["default"]
    largest = 2 * max(layer.r["default"] for _, layer in lora_layers(model))
    assert (config.r, config.use_rslora, config.init_lora_weights) == (largest, False, True)
    assert config.rank_pattern == config.alpha_pattern == {}
    scalings = {layer.scaling["default"] for _, layer in lora_layers(model)}
    scale = scalings.pop() if len(scalings) == 1 else 1.0  # several are folded into B
    assert config.lora_alpha == pytest.approx(scale * config.r, rel=1e-12)
    updates = dense_updates(model)
    for name, own in lora_layers(plain):
        torch.testing.assert_close(
            own.get_delta_weight("default").double(), updates[name], rtol=0, atol=1e-6
        )
    assert relative_error(logits_of(plain, batch), logits_of(model, batch)) < 1e-5


def test_saving_leaves_the_model_as_it_was(rng, tmp_path):
    model = anchored_model("llama", use_rslora=True, rank_pattern={"q_proj": 2})
    batch = make_batch("llama", rng)
    train(model, batch)
    before, logits = anchors_of(model), logits_of(model, batch)
    config = model.peft_config["default"]
    described = config.to_dict()
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"] is config
    assert config.to_dict() == described
    assert_same_bits(anchors_of(model), before)
    assert torch.equal(logits_of(model, batch), logits)


def test_config_is_restored_when_saving_fails(tmp_path):
    model = anchored_model("llama")
    config = model.peft_config["default"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="should be a directory"):
        model.save_pretrained(str(tmp_path / "file"))
    assert model.peft_config["default"] is config


def test_saved_form_survives_a_cast_to_bf16(rng, tmp_path):
    # a server casts the file to bf16; [A; A0], [B, -B0] would lose a rounding of the whole start
    model = anchored_model("llama", r=8, lora_alpha=8)
    train(model, make_batch("llama", rng), num_steps=2, learning_rate=1e-3)
    model.save_pretrained(tmp_path)
    saved = {k: v.bfloat16().double() for k, v in load_file(tmp_path / ADAPTER_FILE).items()}
    for name, expected in dense_updates(model).items():
        layer = f"base_model.model.{name}"
        a, b = saved[f"{layer}.lora_A.weight"], saved[f"{layer}.lora_B.weight"]
        assert relative_error(b @ a, expected) < 0.02, name


def test_model_that_never_ran_is_initialised_when_saved(rng, tmp_path):
    anchored_model("llama").save_pretrained(tmp_path)
    anchor = load_file(tmp_path / ANCHOR_FILE)
    assert all(tensor.any() for tensor in anchor.values())
    expected = anchors_of(initialised("llama"))
    layer = "model.layers.0.self_attn.q_proj"
    assert torch.equal(anchor[f"base_model.model.{layer}.anchor_A"], expected[f"{layer}.A0"])
    plain = PeftModel.from_pretrained(make_model("llama"), tmp_path)
    batch = make_batch("llama", rng)
    assert torch.equal(logits_of(plain, batch), logits_of(make_model("llama"), batch))


def initialised(architecture, **arguments):
    model = anchored_model(architecture, **arguments)
    initialise(model)
    return model


DTYPES = {
    "fp32": {"dtype": torch.float32},
    "bf16 base": {"dtype": torch.bfloat16},
    "bf16 adapters": {"dtype": torch.bfloat16, "autocast_adapter_dtype": False},
}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "roberta"])
def test_checkpoint_loads_without_an_svd(architecture, dtypes, rng, tmp_path, monkeypatch):
    model = anchored_model(architecture, **DTYPES[dtypes])
    batch = make_batch(architecture, rng)
    train(model, batch)
    model.save_pretrained(tmp_path)
    forbid_svd(monkeypatch)
    fresh = anchored_model(architecture, **DTYPES[dtypes])
    result = fresh.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert not result.unexpected_keys
    assert_same_bits(anchors_of(fresh), anchors_of(model))
    trainable, expected = (
        {n: p.detach() for n, p in m.named_parameters() if p.requires_grad} for m in (fresh, model)
    )
    assert_same_bits(trainable, expected)  # with the head of a classifier
    assert torch.equal(logits_of(fresh, batch), logits_of(model, batch))
    # and the next step is the same step
    assert train(fresh, batch, num_steps=2) == train(model, batch, num_steps=2)


def test_checkpoint_replaces_an_anchor_that_was_computed(rng, tmp_path):
    model = initialised("llama")
    train(model, make_batch("llama", rng))
    model.save_pretrained(tmp_path)
    coarse = BALoraConfig(pissa_oversampling=0, pissa_power_iterations=0)
    other = initialised("llama", config=coarse)
    name, layer = lora_layers(other)[0]
    assert not torch.equal(start_of(layer)[0], anchors_of(model)[f"{name}.A0"])
    other.load_adapter(str(tmp_path), "default")
    assert_same_bits(anchors_of(other), anchors_of(model))


def test_checkpoint_of_another_dtype_loads_in_the_models_own(rng, tmp_path):
    model = initialised("llama")
    train(model, make_batch("llama", rng))
    model.save_pretrained(tmp_path)
    fresh = anchored_model("llama", **DTYPES["bf16 adapters"])
    fresh.load_adapter(str(tmp_path), "default")
    for _, layer in lora_layers(fresh):
        assert start_of(layer)[0].dtype == start_of(layer)[1].dtype == factors_of(layer)[0].dtype
    assert logits_of(fresh, make_batch("llama", rng)).isfinite().all()


def test_adapter_with_a_name_of_its_own(rng, tmp_path):
    def make():
        model = get_peft_model(make_model("llama"), lora_config("llama"), adapter_name="mine")
        return anchor_adapter(model.eval(), EXACT)

    model, fresh = make(), make()
    batch = make_batch("llama", rng)
    train(model, batch)
    model.save_pretrained(tmp_path)
    # where Trainer looks for it
    fresh.load_adapter(str(tmp_path / "mine"), "mine", is_trainable=True)
    assert_same_bits(anchors_of(fresh), anchors_of(model))
    plain = PeftModel.from_pretrained(make_model("llama"), tmp_path / "mine")
    assert relative_error(logits_of(plain, batch), logits_of(model, batch)) < 1e-5


def test_other_adapters_load_as_in_peft(tmp_path):
    adapted_model("llama").save_pretrained(tmp_path)
    model = anchored_model("llama")
    model.load_adapter(str(tmp_path), "second")
    assert set(model.peft_config) == {"default", "second"}


def test_checkpoint_without_an_anchor_is_refused(tmp_path):
    adapted_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"has no {ANCHOR_FILE}, which resuming needs"):
        anchored_model("llama").load_adapter(str(tmp_path), "default")


@pytest.mark.parametrize("name", [ANCHOR_FILE, ADAPTER_FILE])
def test_damaged_checkpoint_is_refused_and_changes_nothing(name, tmp_path):
    anchored_model("llama").save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:1000])
    other = initialised("llama")
    before = anchors_of(other)
    with pytest.raises(ConfigError, match=rf"`{re.escape(str(path))}` is damaged.*Resume from"):
        other.load_adapter(str(tmp_path), "default")
    assert_same_bits(anchors_of(other), before)


def test_start_that_is_missing_from_a_checkpoint_is_refused(tmp_path):
    model = initialised("llama")
    model.save_pretrained(tmp_path)
    anchor = load_file(tmp_path / ANCHOR_FILE)
    kept = {key: value for key, value in anchor.items() if not key.endswith("k_proj.anchor_B")}
    save_file(kept, tmp_path / ANCHOR_FILE)
    with pytest.raises(ConfigError, match=r"k_proj\.lora_anchor_B` is missing there"):
        model.load_adapter(str(tmp_path), "default")


@pytest.mark.parametrize(
    ("settings", "found", "expected"),
    [
        ({"r": 5}, "(4, 48)", "(5, 48)"),
        ({"target_modules": ["q_proj"]}, "(4, 48)", "absent"),
        ({"rank_pattern": {"o_proj": 3}}, "(4, 32)", "(3, 32)"),
    ],
    ids=["rank", "modules", "pattern"],
)
def test_checkpoint_of_another_shape_is_refused_and_changes_nothing(
    settings, found, expected, tmp_path
):
    anchored_model("llama").save_pretrained(tmp_path)
    other = initialised("llama", **settings)
    before = anchors_of(other)
    sentence = f"is {found} there and {expected} here. Resume with the `lora_r`"
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        other.load_adapter(str(tmp_path), "default")
    assert_same_bits(anchors_of(other), before)


@pytest.mark.parametrize("name", [ANCHOR_FILE, ADAPTER_FILE])
@pytest.mark.parametrize("size", [0, 50, -10])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(name, size, tmp_path):
    anchored_model("llama").save_pretrained(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
    other = initialised("llama")
    before = anchors_of(other)
    with pytest.raises(ConfigError, match=rf"^`{tmp_path / name}` is .* an earlier checkpoint"):
        other.load_adapter(str(tmp_path), "default")
    assert_same_bits(anchors_of(other), before)


def test_other_process_writes_no_anchor(tmp_path):
    anchored_model("llama").save_pretrained(str(tmp_path), is_main_process=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_anchor_file_holds_four_matrices_per_layer(tmp_path):
    model = anchored_model("bert")
    model.save_pretrained(tmp_path)
    anchor = load_file(tmp_path / ANCHOR_FILE)
    assert len(anchor) == 4 * len(lora_layers(model))
    assert not any("classifier" in name for name in anchor)
    saved = load_file(tmp_path / ADAPTER_FILE)
    assert {"base_model.model.classifier.weight"} == {k for k in saved if "classifier.w" in k}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 8


PLAIN_PEFT = """
import sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

for folder in map(Path, sys.argv[1:]):
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    ids = torch.load(folder / "ids.pt")
    with torch.no_grad():
        torch.save(model(input_ids=ids).logits, folder / "logits.pt")
assert not [name for name in sys.modules if name.split(".")[0] == "balora"]
"""


def test_adapter_loads_in_a_process_without_balora(rng, tmp_path):
    expected = {}
    for architecture in ("llama", "gpt2"):
        folder = tmp_path / architecture
        batch = make_batch(architecture, rng)
        make_model(architecture).save_pretrained(folder / "base")
        model = anchored_model(architecture, BALoraConfig(), use_rslora=True)
        train(model, batch)
        model.save_pretrained(folder / "adapter")
        torch.save(batch["input_ids"], folder / "ids.pt")
        expected[folder] = logits_of(model, batch)
    command = [sys.executable, "-c", PLAIN_PEFT, *map(str, expected)]
    subprocess.run(command, check=True, timeout=600)
    for folder, logits in expected.items():
        assert relative_error(torch.load(folder / "logits.pt"), logits) < 1e-5
