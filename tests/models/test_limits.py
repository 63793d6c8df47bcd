"""How long a row may be and which tokens a model knows, held to what the models do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel
from transformers.models.auto.configuration_auto import AutoConfig

from balora.models.limits import Limits, max_positions, num_positions
from support.models import ARCHITECTURES, OTHER_HEADS, make_model, make_tokenizer

_TINY = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
LEARNED = {
    "gpt2": lambda: make_model("gpt2", n_positions=32),
    "gptj": lambda: make_model("gptj", n_positions=32),
    "bert": lambda: make_model("bert", max_position_embeddings=32),
    "roberta": lambda: make_model("roberta", max_position_embeddings=34),
    "opt": lambda: AutoModel.from_config(
        AutoConfig.for_model(
            "opt", **_TINY, ffn_dim=32, max_position_embeddings=32, word_embed_proj_dim=32
        )
    ),
    "electra": lambda: AutoModel.from_config(
        AutoConfig.for_model("electra", **_TINY, embedding_size=32, max_position_embeddings=32)
    ),
}


@pytest.mark.parametrize("architecture", LEARNED)
def test_positions_are_as_many_as_the_model_takes(architecture):
    model = LEARNED[architecture]().eval()
    assert num_positions(model) == 32
    with torch.no_grad():
        model(input_ids=torch.full((1, 32), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 33), 5))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHER_HEADS])
def test_no_model_fails_below_its_limit(architecture):
    model = make_model(architecture)
    length = num_positions(model) or 300
    with torch.no_grad():
        model(input_ids=torch.full((1, length), 5))


def test_a_model_without_a_limit_takes_rows_of_any_length():
    config = AutoConfig.for_model(
        "xlnet", vocab_size=128, d_model=8, n_layer=1, n_head=2, d_inner=8
    )
    model = AutoModel.from_config(config)
    assert config.max_position_embeddings == -1
    assert max_positions(model) == 2048
    assert Limits.of(model, make_tokenizer()).num_positions is None


def rows(*lengths, token=5):
    return Dataset.from_list([{"input_ids": [token] * length} for length in lengths])


LIMITS = Limits(num_tokens=128, num_positions=32)


def test_the_first_row_that_is_too_long_is_found():
    assert LIMITS.first_problem(rows(3, 32, 32)) is None
    number, problem = LIMITS.first_problem(rows(3, 33, 40))
    assert number == 1
    assert "it has 33 tokens, but the model has 32 positions. Set `max_length: 32`" in problem
    assert LIMITS.first_problem(rows(3, 33, 40), kept=slice(32)) is None
    assert LIMITS.first_problem(rows(3, 33, 40), kept=slice(-32, None)) is None
    assert replace(LIMITS, num_positions=None).first_problem(rows(1, 4000)) is None
    padded = replace(LIMITS, multiple_of=64)
    assert "`pad_to_multiple_of` 64 makes it 64 tokens" in padded.first_problem(rows(3))[1]


def test_rows_beyond_the_first_thousand_are_looked_at():
    assert LIMITS.first_problem(rows(*[2] * 2500, 33))[0] == 2500


@pytest.mark.parametrize("token", [128, -1])
def test_a_token_that_the_model_does_not_know_is_found(token):
    data = Dataset.from_list([{"input_ids": [1, 127]}, {"input_ids": [5, token, 5]}])
    number, problem = LIMITS.first_problem(data)
    assert number == 1
    assert f"number {token}, but the model knows 128 tokens" in problem


def test_an_added_token_is_spelled_and_may_not_pad():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    limits = Limits.of(make_model("llama"), tokenizer)
    assert "`<tool>` with the number 128" in limits.problem([1, 128])
    assert limits.unknown_padding() is None
    tokenizer.pad_token = "<tool>"
    assert "pads with `<tool>`, number 128" in limits.unknown_padding()
