"""The reference pass leaves no trace: not in flags, not in gradients."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from balora.anchored import initialise, lora_layers, reference_mode
from support.adapters import (
    anchored_model,
    anchors_of,
    assert_same_bits,
    factors_of,
    logits_of,
    make_batch,
    start_of,
    train,
)
from support.models import make_model


def flags_of(model):
    """Every switch that a reference pass could leave turned."""
    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "training": {n: m.training for n, m in model.named_modules()},
        "disabled": {
            n: m.disable_adapters for n, m in model.named_modules() if isinstance(m, wrappers)
        },
    }


def model_with_mixed_flags():
    """A model in training mode with one module in eval, one factor frozen, one layer off."""
    model = anchored_model("bert").train()
    initialise(model)
    layers = [layer for _, layer in lora_layers(model)]
    layers[0].eval()
    layers[1].lora_A["default"].weight.requires_grad_(False)
    layers[2].enable_adapters(False)
    return model


@pytest.mark.parametrize("crashes", [False, True])
def test_every_flag_is_put_back(crashes, rng):
    model = model_with_mixed_flags()
    before = flags_of(model)
    batch = make_batch("bert", rng)
    try:
        with reference_mode(model):
            inside = flags_of(model)
            assert not torch.is_grad_enabled()
            logits = model(**batch).logits
            if crashes:
                raise KeyError
    except KeyError:
        assert crashes
    assert flags_of(model) == before
    assert set(before["training"].values()) == {True, False}
    assert set(before["disabled"].values()) == {True, False}
    assert not any(inside["training"].values())
    assert all(inside["disabled"].values())
    assert inside["requires_grad"] == before["requires_grad"]
    assert not logits.requires_grad
    assert torch.is_grad_enabled()


def test_reference_has_no_dropout_and_the_untrained_head(rng):
    model = anchored_model("bert").train()
    batch = make_batch("bert", rng)
    train(model, batch)
    with reference_mode(model):
        first, second = (logits_of(model, batch) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, logits_of(make_model("bert"), batch))
    assert not torch.equal(logits_of(model, batch), logits_of(model, batch))


def gradients_of(model, batch, *, reference):
    """Gradients of one step with reference passes before, between and after, or with none."""

    def look():
        if reference:
            with reference_mode(model):
                logits_of(model, batch)

    model.zero_grad()
    look()
    loss = model(**batch).loss
    look()
    loss.backward()
    look()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_do_not_depend_on_a_reference_pass(architecture, autocast, rng):
    model = anchored_model(architecture)
    batch = make_batch(architecture, rng)
    train(model, batch, num_steps=2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = gradients_of(model, batch, reference=False)
        actual = gradients_of(model, batch, reference=True)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert expected.keys() == trainable
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_gradients_with_a_reference_pass_between(use_reentrant, rng):
    model = anchored_model("llama").train()
    batch = make_batch("llama", rng)
    train(model, batch, num_steps=2)
    expected = gradients_of(model, batch, reference=False)
    # transformers renamed it and warns of the old name
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model.zero_grad()
    calls = count_calls(lora_layers(model)[0][1])
    gradients = gradients_of(model, batch, reference=True)
    assert len(calls) == 5  # three reference passes, the student's, and the recomputed one
    assert_same_bits(gradients, expected)


def count_calls(layer):
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_anchor_stays_through_training_with_reference_passes(rng):
    model = anchored_model("llama").train()
    batch = make_batch("llama", rng)
    initialise(model)
    before = anchors_of(model)
    for _ in range(3):
        with reference_mode(model):
            logits_of(model, batch)
        train(model, batch, num_steps=1)
    after = anchors_of(model)
    names = [name for name in before if name.endswith("0")]
    assert_same_bits({n: after[n] for n in names}, {n: before[n] for n in names})
    for _, layer in lora_layers(model):
        assert not start_of(layer)[0].requires_grad
        assert start_of(layer)[0].data_ptr() != factors_of(layer)[0].data_ptr()
