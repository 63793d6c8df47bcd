"""Anchored PiSSA on every architecture of the paper: what it starts from and how it trains."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from torch.overrides import TorchFunctionMode

from balora.anchored import initialise, lora_layers, reference_mode
from balora.config import BALoraConfig
from support.adapters import (
    EXACT,
    adapted_model,
    anchored_model,
    anchors_of,
    assert_same_bits,
    factors_of,
    logits_of,
    make_batch,
    relative_error,
    start_of,
    train,
)
from support.models import ARCHITECTURES, CAUSAL, make_model


class Precision(NamedTuple):
    base: torch.dtype
    autocast_adapter_dtype: bool = True
    autocast: bool = False

    def context(self):
        if self.autocast:
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return contextlib.nullcontext()


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "bf16 base": Precision(torch.bfloat16),
    "bf16 adapters": Precision(torch.bfloat16, autocast_adapter_dtype=False),
    "autocast": Precision(torch.float32, autocast=True),
}


def perturb(model, rng):
    for _, layer in lora_layers(model):
        for factor in factors_of(layer)[:2]:
            factor += 0.2 * torch.randn(factor.shape, generator=rng).to(factor.dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_start_and_adapters_off_are_the_base_bit_for_bit(architecture, precision, rng):
    base_dtype, autocast_adapter_dtype, _ = precision = PRECISIONS[precision]
    batch = make_batch(architecture, rng)
    base = make_model(architecture, dtype=base_dtype)
    model = anchored_model(
        architecture,
        BALoraConfig(),
        dtype=base_dtype,
        autocast_adapter_dtype=autocast_adapter_dtype,
    )
    with precision.context():
        expected = logits_of(base, batch)
        before = logits_of(model, batch)
        initialise(model)
        start = logits_of(model, batch)
        perturb(model, rng)
        student = logits_of(model, batch)
        with reference_mode(model):
            reference = logits_of(model, batch)
        with model.disable_adapter():
            disabled = logits_of(model, batch)
    adapter_dtypes = {factors_of(layer)[0].dtype for _, layer in lora_layers(model)}
    assert adapter_dtypes == {base_dtype if not autocast_adapter_dtype else torch.float32}
    assert expected.isfinite().all()
    assert torch.equal(before, expected)
    assert torch.equal(start, expected)
    assert torch.equal(reference, expected)
    assert torch.equal(disabled, expected)
    # not because the adapter is nothing
    assert relative_error(student, expected) > 0.1
    assert student.dtype == expected.dtype


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_start_holds_the_eckart_young_optimum(architecture):
    model = anchored_model(architecture)
    base = make_model(architecture).get_parameter
    initialise(model)
    for name, layer in lora_layers(model):
        a, b, scaling = factors_of(layer)
        stored = layer.get_base_layer().weight
        weight = stored.mT if architecture == "gpt2" else stored
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        leading = (u[:, :4] * s[:4]) @ vh[:4]
        torch.testing.assert_close(scaling * b @ a, leading, rtol=0, atol=1e-5)
        # the square root of S goes to either side
        torch.testing.assert_close(b.mT @ b, a @ a.mT, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            layer.get_delta_weight("default"), torch.zeros_like(stored), rtol=0, atol=0
        )
        assert torch.equal(stored, base(f"{name}.weight"))


@torch.no_grad()
def in_place_pissa(anchored, architecture, **settings):
    """PiSSA as published: a plain LoRA from A0, B0 on the residual W - s B0 A0."""
    model = adapted_model(architecture, **settings)
    for (_, own), (_, layer) in zip(lora_layers(model), lora_layers(anchored), strict=True):
        residual = own.get_base_layer().weight
        start = own.scaling["default"] * start_of(layer)[1] @ start_of(layer)[0]
        residual -= start.mT if architecture == "gpt2" else start
        own.lora_A["default"].weight.copy_(start_of(layer)[0])
        own.lora_B["default"].weight.copy_(start_of(layer)[1])
    return model


class KeepFloat64(TorchFunctionMode):
    """Leave float64 alone where a model goes down to float32 (norms, softmax, rotary angles)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        is_double = bool(args) and getattr(args[0], "dtype", None) == torch.float64
        to_single = func is torch.Tensor.float or (
            func is torch.Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype"))
        )
        if is_double and to_single:
            return args[0]
        if is_double and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def gradients_of(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["alpha/r", "rslora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_in_place_pissa(architecture, settings, rng):
    batch = make_batch(architecture, rng)
    settings = {"dtype": torch.float64, "modules_to_save": [], **settings}
    model = anchored_model(architecture, **settings)
    initialise(model)
    pissa = in_place_pissa(model, architecture, **settings)
    with KeepFloat64():
        for _ in range(2):  # at the start, and after a few steps
            actual, expected = gradients_of(model, batch), gradients_of(pissa, batch)
            assert actual.keys() == expected.keys()
            for name, gradient in expected.items():
                scale = float(gradient.abs().max())
                assert scale > 1e-9, name
                assert relative_error(actual[name], gradient) < 1e-10, name
            torch.testing.assert_close(
                logits_of(model, batch), logits_of(pissa, batch), rtol=1e-10, atol=1e-10
            )
            losses = train(model, batch), train(pissa, batch)
            assert losses[0] == pytest.approx(losses[1], rel=1e-10)


class Trained(NamedTuple):
    model: PeftModel
    before: dict[str, torch.Tensor]
    losses: list[float]
    batch: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request):
    """An anchored model after a few steps; the tests below only look at it."""
    model = anchored_model(request.param, BALoraConfig())
    initialise(model)
    batch = make_batch(request.param, torch.Generator().manual_seed(0))
    before = anchors_of(model)
    return Trained(model, before, train(model, batch, num_steps=5), batch)


def test_a_few_steps_lower_the_loss(trained):
    assert trained.losses[-1] < 0.9 * trained.losses[0]


def test_training_moves_the_factors_and_nothing_else(trained, request):
    after = anchors_of(trained.model)
    anchors = [name for name in after if name.endswith("0")]
    assert_same_bits({n: after[n] for n in anchors}, {n: trained.before[n] for n in anchors})
    factors = after.keys() - set(anchors)
    assert not any(torch.equal(after[name], trained.before[name]) for name in factors)
    architecture = request.node.callspec.params["trained"]
    base = make_model(architecture)
    for name, layer in lora_layers(trained.model):
        assert torch.equal(layer.get_base_layer().weight, base.get_parameter(f"{name}.weight"))
    with reference_mode(trained.model):
        assert torch.equal(logits_of(trained.model, trained.batch), logits_of(base, trained.batch))


def test_only_the_factors_and_the_head_are_trainable(trained, request):
    with reference_mode(trained.model):
        logits_of(trained.model, trained.batch)
    trainable = {n for n, p in trained.model.named_parameters() if p.requires_grad}
    heads = {name for name in trainable if "modules_to_save" in name}
    factors = {
        f"base_model.model.{name}.lora_{factor}.default.weight"
        for name, _ in lora_layers(trained.model)
        for factor in "AB"
    }
    assert trainable - heads == factors
    is_causal = request.node.callspec.params["trained"] in CAUSAL
    assert bool(heads) == (not is_causal)


def test_saved_adapter_gives_the_trained_logits_on_the_base(trained, request, tmp_path):
    architecture = request.node.callspec.params["trained"]
    trained.model.save_pretrained(tmp_path)
    base = make_model(architecture)
    plain = PeftModel.from_pretrained(base, tmp_path).eval()
    expected = logits_of(trained.model, trained.batch)
    assert relative_error(logits_of(plain, trained.batch), expected) < 1e-5
    with plain.disable_adapter():
        assert relative_error(logits_of(plain, trained.batch), expected) > 1e-3


def test_gpt2_layers_by_name(rng):
    names = ["c_attn", "c_proj", "c_fc"]
    model = anchored_model("gpt2", EXACT, target_modules=names)
    batch = make_batch("gpt2", rng)
    assert torch.equal(logits_of(model, batch), logits_of(make_model("gpt2"), batch))
    assert {name.split(".")[-1] for name, _ in lora_layers(model)} == set(names)
    losses = train(model, batch)
    assert losses[-1] < losses[0]
