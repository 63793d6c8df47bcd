"""The head, against the logits of the models themselves. Shapes: ``M`` rows, ``V`` vocabulary."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

from balora.errors import ConfigError
from balora.head import LMHead, agree, check_head, head_of
from tiny_models import CAUSAL, VOCAB

DECODER, GPT = CAUSAL["llama"], CAUSAL["gpt2"]
FAMILIES = {
    **CAUSAL,
    "gemma2": {**DECODER, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "granite": {**DECODER, "logits_scaling": 6.0},
    "cohere": {**DECODER, "logit_scale": 0.25},
    "hyperclovax": {**DECODER, "logits_scaling": 3.0},
    "gptj": {**GPT, "rotary_dim": 4},
    "phi": DECODER,
}
WITH_BIAS, WITH_SCALE, WITH_SOFTCAP = (
    {"gptj", "phi"},
    {"granite", "cohere", "hyperclovax"},
    {"gemma2"},
)


def make_family(name, *, dtype=torch.float32):
    """Return a tiny random model whose logits are large enough to feel a soft cap."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **FAMILIES[name])
        model = AutoModelForCausalLM.from_config(config)
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2 or "lm_head.bias" in key:
                torch.nn.init.normal_(parameter, std=2.0 if "embed" in key else 0.5)
    return model.to(dtype).eval()


def make_ids(length=6):
    return torch.arange(3, 3 + length)[None]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_head_of_is_the_models_own(family):
    model = make_family(family)
    expected = model(input_ids=make_ids()).logits
    hidden = model.base_model(input_ids=make_ids()).last_hidden_state
    head = head_of(model)
    torch.testing.assert_close(head(hidden), expected, rtol=1e-5, atol=1e-5)
    assert (head.bias is not None) == (family in WITH_BIAS)
    assert (head.scale != 1) == (family in WITH_SCALE)
    assert (head.softcap is not None) == (family in WITH_SOFTCAP)
    check_head(model, make_ids())


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
@pytest.mark.parametrize("autocast", [False, True])
def test_check_head_allows_half_precision(family, autocast):
    model = make_family(family, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        check_head(model, make_ids())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_check_head_refuses_a_model_that_does_something_else(family, monkeypatch):
    model = make_family(family)
    original = type(model).forward

    def forward(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = output.logits * 1.01
        return output

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(ConfigError, match=f"`{type(model).__name__}` makes its logits in a way"):
        check_head(model, make_ids())


def test_check_head_refuses_a_model_without_a_body(monkeypatch):
    model = make_family("llama")
    monkeypatch.setattr(type(model), "base_model", property(lambda self: self))
    with pytest.raises(ConfigError, match="`LlamaForCausalLM` makes its logits"):
        check_head(model, make_ids())


def test_scale_comes_before_the_soft_cap(rng):
    hidden, weight = torch.randn(2, 3, generator=rng), torch.randn(5, 3, generator=rng)
    head = LMHead(weight, scale=10.0, softcap=2.0)
    torch.testing.assert_close(head(hidden), 2 * torch.tanh(10 * (hidden @ weight.T) / 2))
    torch.testing.assert_close(head.linear(hidden), 10 * (hidden @ weight.T))


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
