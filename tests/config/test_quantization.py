"""The fields of a recipe that quantise the base: what goes together, and what is written down."""

from __future__ import annotations

import pytest

from balora.config.quantization import Quantization
from balora.errors import ConfigError
from balora.recipes import load_recipe

HEAD = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}


def test_without_a_field_nothing_is_quantised_and_nothing_written():
    quantization = Quantization()
    assert (quantization.scheme, quantization.acting, bool(quantization)) == (None, {}, False)
    assert load_recipe(None, HEAD).to_dict().keys().isdisjoint({"load_in_4bit", "torchao"})


@pytest.mark.parametrize(
    ("fields", "acting"),
    [
        (
            {"load_in_4bit": "true"},
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": False},
        ),
        (
            {"load_in_4bit": "true", "bnb_4bit_compute_dtype": "bfloat16"},
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_compute_dtype": "bfloat16",
                "use_bnb_nested_quant": False,
            },
        ),
        ({"load_in_8bit": "true"}, {"load_in_8bit": True}),
        ({"torchao": "int8_weight_only"}, {"torchao": "int8_weight_only"}),
    ],
)
def test_the_recipe_keeps_what_acts(fields, acting):
    recipe = load_recipe(None, HEAD | fields)
    written = recipe.to_dict()
    assert recipe.quantization.acting == acting
    assert written.items() >= acting.items()
    assert Quantization.of(written) == recipe.quantization


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"load_in_4bit": "true", "load_in_8bit": "true"},
            "`load_in_4bit` is true and `load_in_8bit` is true, but a weight is quantised once",
        ),
        (
            {"torchao": "int8_weight_only", "load_in_4bit": "true"},
            "`load_in_4bit` is true and `torchao` is int8_weight_only, but",
        ),
        (
            {"load_in_8bit": "true", "bnb_4bit_quant_type": "fp4"},
            "`bnb_4bit_quant_type` is fp4, but `load_in_4bit` is false and so it cannot act",
        ),
        ({"use_bnb_nested_quant": "true"}, "`use_bnb_nested_quant` is true, but `load_in_4bit` is"),
        (
            {"load_in_4bit": "true", "method": "full"},
            "`load_in_4bit` is true and `method` is full, but quantised weights cannot be trained",
        ),
        (
            {"torchao": "int8_weight_only", "method": "full"},
            "`torchao` is int8_weight_only and `method` is full, but quantised",
        ),
        ({"torchao": "int4"}, "`--torchao` must be one of `int8_weight_only` or null"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_recipe(None, HEAD | fields)


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True, "x": 1}


@pytest.mark.parametrize(
    ("given", "acting"),
    [
        ({}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}),
        ({"load_in_4bit": None}, Quantization.of(NF4).acting),
        ({"load_in_4bit": True}, Quantization.of(NF4).acting),
        ({"load_in_4bit": False}, {}),
        ({"load_in_8bit": True}, {"load_in_8bit": True}),
    ],
)
def test_the_command_line_takes_the_place_of_the_recipe(given, acting):
    assert Quantization.of(NF4, given).acting == acting
    assert str(Quantization.of({"load_in_8bit": True})) == "load_in_8bit: true"
