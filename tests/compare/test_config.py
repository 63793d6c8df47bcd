"""What may stand under `compare:`, and what is refused."""

from __future__ import annotations

import pytest

from balora.compare.config import CompareConfig, compare_config
from balora.config.fields import describe, field_hints
from balora.config.values import parse_texts
from balora.errors import ConfigError
from balora.recipes import CLASSIFICATION, GENERATION, known_fields


def test_every_field_has_a_sentence_and_none_is_a_field_of_a_recipe():
    for name, _, _, sentence in describe(CompareConfig):
        assert sentence.endswith("."), name
        assert name not in known_fields(GENERATION)
        assert name not in known_fields(CLASSIFICATION)


def test_command_line_replaces_fields_and_null_takes_them_out():
    texts = {"methods": "lora,pissa+kl=0.3", "seeds": "3,1", "jobs": "2", "metric": "null"}
    given = parse_texts(texts, field_hints(CompareConfig))
    config = compare_config({"seeds": [0], "metric": "kl", "num_rows": 5}, given)
    assert config.methods == ["lora", "pissa+kl=0.3"]
    assert config.seeds == [3, 1]
    assert (config.jobs, config.metric, config.num_rows) == (2, None, 5)
    one = parse_texts({"seeds": "7", "methods": "lora"}, field_hints(CompareConfig))
    assert one == {"seeds": [7], "methods": ["lora"]}
    assert compare_config({"jobs": 3}, {"jobs": None}).jobs == 1


@pytest.mark.parametrize(
    ("mapping", "sentences"),
    [
        ({"method": ["lora"]}, ["`method` is no field of `compare` (did you mean `methods`?)"]),
        ({"methods": "lora"}, ["`methods` must be a list of texts or null, got the text `lora`"]),
        ({"methods": []}, ["`methods` is empty"]),
        ({"methods": ["lora", "loar"]}, ["`loar` is no method (did you mean `lora`?)"]),
        ({"methods": ["lora", "pissa", "lora"]}, ["`methods` has lora twice; keep one"]),
        (
            {"methods": ["lora+kl", "lora+consistency"]},
            ["`methods` names lora+kl and lora+consistency, which are the same"],
        ),
        ({"seeds": [0, 1, 0]}, ["`seeds` has 0 twice; keep one"]),
        ({"seeds": []}, ["`seeds` is empty"]),
        ({"seeds": [-1]}, ["`seeds` must be from 0 to 4294967295, got -1"]),
        ({"seeds": [2**32]}, ["`seeds` must be from 0 to 4294967295, got 4294967296"]),
        ({"seeds": [0.5]}, ["`seeds` must be a list of whole numbers or null, got [0.5]"]),
        (
            {"methods": ["lora", "pissa"], "baseline": "lara"},
            ["`baseline` is lara, which is none of the methods lora, pissa (did you mean `lora`?)"],
        ),
        ({"metric": "exactmatch"}, ["`exactmatch` is no metric (did you mean `exact_match`?)"]),
        ({"metric": "entropy"}, ["`metric` is entropy, of which neither more nor less is better"]),
        (
            {"jobs": 0, "held_out_fraction": 1.0, "num_rows": 0, "sweep_tolerance": -0.1},
            [
                "`jobs` must be 1",
                "`held_out_fraction` must be greater than 0 and less than 1",
                "`num_rows` must",
                "`sweep_tolerance` must be 0 or greater",
            ],
        ),
        ({"settings": {"mine": {"svd_coef": 1}}}, ["`settings` of `mine`: `mine` is no method"]),
        ({"settings": {"lora": {"method": "full"}}}, ["the name is one already"]),
        ({"settings": {"mine": {"method": "loar"}}}, ["`settings` of `mine`: `method`: `loar`"]),
        ({"settings": {"mine": {"method": "base"}}}, ["`method` is base, which is not trained"]),
        (
            {"settings": {"a/b": {"method": "lora"}}},
            ["`a/b`, which must be a line of text without /"],
        ),
        ({"settings": {"a\nb": {"method": "lora"}}}, ["which must be a line of text without / in"]),
        (
            {"settings": {"lora+kl": {"lora_r": 2}, "lora+consistency": {"lora_r": 3}}},
            ["`settings` of `lora+kl` and `lora+consistency` are of one method; keep one"],
        ),
        (
            {"sweep": {n: {"lora_r": [2, 3]} for n in ("pissa+kl=0.3", "pissa+kl=.3")}},
            ["`sweep` of `pissa+kl=0.3` and `pissa+kl=.3` are of one method; keep one"],
        ),
        ({"settings": {"lora": 3}}, ["`settings` of `lora` must be a mapping, got 3"]),
        ({"settings": {"base": {"seed": 3}}}, ["the pre-trained model is not trained"]),
        (
            {"conditions": {"a/b": {}}},
            ["`conditions` has the key the text `a/b`, which must be a line of text"],
        ),
        ({"conditions": {"a": 1}}, ["`conditions` of `a` must be a mapping or null, got 1"]),
        ({"conditions": {}}, ["`conditions` is empty"]),
        ({"sweep": {"loar": {"svd_coef": [1]}}}, ["`sweep` of `loar` is no method"]),
        (
            {"sweep": {"lora": {"learning_rate": 1}}},
            ["`sweep` of `lora` of `learning_rate` must be a list, got 1"],
        ),
        (
            {"sweep": {"lora": {"learning_rate": [1, 1.0]}}},
            ["`sweep` of `lora` of `learning_rate` has 1 twice; keep one"],
        ),
        (
            {"sweep": {"lora": {1: [1, 2]}}},
            ["`sweep` of `lora` has the key 1, which must be text, got 1"],
        ),
        ({"sweep": {1: {"seed": [1]}}}, ["`sweep` has the key 1, which must be text, got 1"]),
        (
            {"methods": ["1", "lora"], "settings": {1: {"method": "lora"}}},
            ["`settings` has the key 1, which must be text, got 1"],
        ),
        ({"settings": {1: {"method": "lora"}}, "sweep": {"foo": {"seed": [1]}}}, ["`settings`"]),
        ({"sweep": {"base": {"seed": [1]}}}, ["`sweep` of `base`: the pre-trained model"]),
    ],
)
def test_what_cannot_work_is_refused(mapping, sentences):
    with pytest.raises(ConfigError) as error:
        compare_config(mapping)
    assert error.value.exit_status == 2
    for sentence in sentences:
        assert sentence in str(error.value)


def test_methods_of_ones_own_stand_for_another_with_settings():
    config = CompareConfig(
        methods=["mine", "lora"],
        settings={"mine": {"method": "lora+kl=0.3", "learning_rate": 1e-3}},
    )
    assert config.method("mine").coefficients == (("consistency_coef", 0.3),)
    assert config.settings_of("mine") == {"learning_rate": 1e-3}
    assert config.settings_of("lora") == {}


def test_sweep_of_every_method_leaves_alone_what_a_method_sets_itself():
    config = CompareConfig(
        methods=["base", "full", "lora", "pissa"],
        settings={"full": {"learning_rate": 3e-4}, "pissa": {"learning_rate": 1e-3}},
        sweep={
            "*": {"learning_rate": [1, 2], "weight_decay": [0]},
            "pissa": {"learning_rate": [3, 4]},
        },
    )
    assert config.swept("base") == {}
    assert config.swept("full") == {"weight_decay": [0]}
    assert config.swept("lora") == {"learning_rate": [1, 2], "weight_decay": [0]}
    assert config.swept("pissa") == {"learning_rate": [3, 4], "weight_decay": [0]}


@pytest.mark.parametrize("text", ["0,\N{SUPERSCRIPT TWO}", "a", "0-2", "1.5"])
def test_seeds_of_the_command_line_that_are_none(text):
    with pytest.raises(ConfigError, match="`seeds` must be a list of whole numbers or null"):
        compare_config({}, parse_texts({"seeds": text}, field_hints(CompareConfig)))


def test_an_entry_is_of_its_method_however_that_is_spelt():
    config = compare_config(
        {
            "methods": ["lora+consistency=0.3", "pissa-like", "lora"],
            "settings": {"lora+kl=0.3": {"lora_r": 8}, "pissa-like": {"method": "pissa"}},
            "sweep": {"lora+kl=.3": {"learning_rate": [1, 2]}, "pissa": {"learning_rate": [3]}},
        }
    )
    assert config.settings_of("lora+consistency=0.3") == {"lora_r": 8}
    assert config.swept("lora+consistency=0.3") == {"learning_rate": [1, 2]}
    assert config.swept("lora") == {}
    # a name of one's own is another method, even where it is made of the same
    assert config.swept("pissa-like") == {}
    assert config.idle_entries() == [
        "`sweep` of `pissa` is of none of the methods lora+consistency=0.3, pissa-like, lora"
    ]
