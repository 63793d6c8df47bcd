"""The head, against the logits of the models themselves. Shapes: ``M`` rows, ``V`` vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from balora.errors import ConfigError
from balora.models.head import LMHead, agree, check_head, head_of
from support.models import CAUSAL, OTHER_HEADS, VOCAB, make_model

WITH_BIAS, WITH_SCALE, WITH_SOFTCAP = (
    {"gptj", "phi"},
    {"granite", "cohere", "hyperclovax"},
    {"gemma2", "gemma3_text"},
)


def make_ids(length=6):
    return torch.arange(3, 3 + length)[None]


@pytest.mark.parametrize("family", [*CAUSAL, *OTHER_HEADS])
@torch.no_grad()
def test_head_of_is_the_models_own(family):
    model = make_model(family)
    expected = model(input_ids=make_ids()).logits
    hidden = model.base_model(input_ids=make_ids()).last_hidden_state
    head = head_of(model)
    assert expected.std() > 0.1
    torch.testing.assert_close(head(hidden), expected, rtol=1e-5, atol=1e-5)
    assert (head.bias is not None) == (family in WITH_BIAS)
    assert (head.scale != 1) == (family in WITH_SCALE)
    assert (head.softcap is not None) == (family in WITH_SOFTCAP)
    check_head(model, make_ids())


@pytest.mark.parametrize(
    ("family", "name", "wrong"),
    [
        *[(family, "bias", None) for family in sorted(WITH_BIAS)],
        *[(family, "scale", 1.0) for family in sorted(WITH_SCALE)],
        *[(family, "softcap", None) for family in sorted(WITH_SOFTCAP)],
    ],
)
@torch.no_grad()
def test_a_head_without_its_bias_scale_or_soft_cap_is_not_the_models_own(family, name, wrong):
    model = make_model(family)
    head = head_of(model)
    hidden = model.base_model(input_ids=make_ids()).last_hidden_state
    expected = model(input_ids=make_ids()).logits
    assert agree(head(hidden), expected)
    assert not agree(replace(head, **{name: wrong})(hidden), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
@pytest.mark.parametrize("autocast", [False, True])
def test_check_head_allows_half_precision(family, autocast):
    model = make_model(family, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        check_head(model, make_ids())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_check_head_refuses_a_model_that_does_something_else(family, monkeypatch):
    model = make_model(family)
    original = type(model).forward

    def forward(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = output.logits * 1.01
        return output

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(ConfigError, match=f"`{type(model).__name__}` makes its logits in a way"):
        check_head(model, make_ids())


def test_check_head_refuses_a_model_without_a_body(monkeypatch):
    model = make_model("llama")
    monkeypatch.setattr(type(model), "base_model", property(lambda self: self))
    with pytest.raises(ConfigError, match="`LlamaForCausalLM` makes its logits"):
        check_head(model, make_ids())


def test_scale_comes_before_the_soft_cap(rng):
    hidden, weight = torch.randn(2, 3, generator=rng), torch.randn(5, 3, generator=rng)
    head = LMHead(weight, scale=10.0, softcap=2.0)
    torch.testing.assert_close(head(hidden), 2 * torch.tanh(10 * (hidden @ weight.T) / 2))
    torch.testing.assert_close(head.linear(hidden), 10 * (hidden @ weight.T))


HEADS = {
    "plain": {},
    "bias": {"bias": torch.linspace(-1.0, 1.0, 7)},
    "scale": {"scale": 0.25},
    "soft cap": {"softcap": 1.5},
    "all": {"bias": torch.linspace(-1.0, 1.0, 7), "scale": 3.0, "softcap": 1.5},
}


def make_head(name, weight):
    settings = {k: v.double() if k == "bias" else v for k, v in HEADS[name].items()}
    return LMHead(weight, **settings)


@pytest.mark.parametrize("name", HEADS)
def test_finish_makes_the_logits_of_a_product_in_place(name, rng):
    hidden, weight = (torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in (5, 7))
    head, product = make_head(name, weight), hidden @ weight.T
    finished = head.finish_(product)
    assert finished.data_ptr() == product.data_ptr()
    torch.testing.assert_close(finished, head(hidden), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_slope_is_the_derivative_of_the_logits_by_the_product(name, rng):
    head = make_head(name, torch.eye(7, dtype=torch.float64))
    product = torch.randn(5, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    logits = head(product)
    # each logit depends on its own product alone, so the gradient of the sum is the derivative
    (expected,) = torch.autograd.grad(logits.sum(), product)
    slope = head.slope(logits.detach()) * torch.ones_like(expected)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-12)
    assert (expected == 1).all() == (name in ("plain", "bias"))


def test_is_trained_when_the_weight_or_the_bias_is(rng):
    weight, bias = torch.randn(7, 4, generator=rng), torch.randn(7, generator=rng)
    assert not LMHead(weight).is_trained
    assert not LMHead(weight, bias).is_trained
    assert LMHead(weight, bias.clone().requires_grad_()).is_trained
    assert LMHead(weight.clone().requires_grad_()).is_trained
    assert LMHead(weight.clone().requires_grad_(), bias).is_trained


@pytest.mark.parametrize("autocast", [False, True])
def test_logits_of_half_precision_states_are_float32(autocast, rng):
    hidden = torch.randn(4, 8, generator=rng).bfloat16()
    weight = torch.randn(VOCAB, 8, generator=rng).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = LMHead(weight)(hidden)
    expected = hidden.double() @ weight.double().T
    assert logits.dtype == torch.float32
    # products of bfloat16 numbers are exact in float32: only the sum rounds
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_max_rank(rng):
    weight = torch.randn(9, 4, generator=rng)
    assert LMHead(weight).max_rank == 4
    assert LMHead(weight, bias=torch.zeros(9)).max_rank == 5


def test_agree_knows_the_rounding_of_its_dtype():
    one = torch.ones(3)
    assert agree(one + 5e-4, one)
    assert not agree(one + 5e-3, one)
    assert agree((one + 5e-3).bfloat16(), one.bfloat16())
    assert not agree((one + 0.2).bfloat16(), one.bfloat16())
    assert not agree(one * torch.nan, one)
