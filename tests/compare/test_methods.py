"""The grammar of methods' names, and the fields that a name stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.compare.methods import TERMS, Method, method_fields, parse_method, recipe_without
from balora.config.replay import RECOMMENDED
from balora.errors import ConfigError
from balora.recipes.kinds import CLASSIFICATION, GENERATION
from balora.recipes.load import check_recipe

RECIPE = {
    "model_name_or_path": "some/model",
    "dataset_name": "train.jsonl",
    "output_dir": "out",
    "method": "balora",
    "preset": "iclr2026",
    "diversity_coef": 0.25,
    "lora_r": 4,
    "pissa_svd": "exact",
}


def recipe_of(name, recipe=RECIPE, kind=GENERATION):
    method = parse_method(name)
    own = method_fields(method, recipe, kind)
    return check_recipe({**recipe_without(method, recipe), **own})


def coefficients(recipe):
    return tuple(
        getattr(recipe.objective, f"{term}_coef") for term in ("consistency", "diversity", "svd")
    )


@pytest.mark.parametrize(
    ("name", "method", "init", "expected"),
    [
        ("full", "full", "pissa", (0, 0, 0)),
        ("lora", "lora", "lora", (0, 0, 0)),
        ("pissa", "pissa", "pissa", (0, 0, 0)),
        ("balora", "balora", "pissa", (0.025, 0.25, 0.005)),
        ("lora+kl", "lora", "lora", (0.025, 0, 0)),
        ("lora+consistency", "lora", "lora", (0.025, 0, 0)),
        ("pissa+kl=0.3", "pissa", "pissa", (0.3, 0, 0)),
        ("olora+kl=0.3", "olora", "olora", (0.3, 0, 0)),
        ("mica", "mica", "mica", (0, 0, 0)),
        ("full+diversity", "full", "pissa", (0, 0.25, 0)),
        ("balora-consistency", "balora", "pissa", (0, 0.25, 0.005)),
        ("balora-svd-diversity", "balora", "pissa", (0.025, 0, 0)),
        ("balora+kl=1e-1-svd", "balora", "pissa", (0.1, 0.25, 0)),
    ],
)
def test_names_stand_for_start_and_coefficients(name, method, init, expected):
    recipe = recipe_of(name)
    assert (recipe.adapter.method, recipe.objective.adapter_init) == (method, init)
    assert coefficients(recipe) == expected


def test_a_term_that_is_added_has_the_settings_of_the_recipes_own():
    plain, with_kl = recipe_of("lora").objective, recipe_of("lora+kl").objective
    assert (with_kl.temperature, with_kl.schedule) == (2.0, "iclr2026")
    assert (plain.temperature, plain.schedule) == (1.0, "constant")
    # those of another term are not taken along, and the preset's SVD settings act in none of them
    assert with_kl.entropy_top_k is None
    assert recipe_of("pissa+diversity").objective.entropy_top_k == 20


def test_the_recipes_own_method_does_not_shine_through():
    """`lora` is plain LoRA, also where the recipe itself is LoRA with a term."""
    recipe = {**RECIPE, "method": "lora", "consistency_coef": 0.5, "temperature": 3.0}
    recipe = {k: v for k, v in recipe.items() if k not in ("preset", "diversity_coef", "pissa_svd")}
    assert coefficients(recipe_of("lora", recipe)) == (0, 0, 0)
    assert coefficients(recipe_of("lora+kl", recipe)) == (0.5, 0, 0)
    assert recipe_of("lora+kl", recipe).objective.temperature == 3.0


def test_full_sets_aside_the_adapter():
    full = recipe_of("full").to_dict()
    assert not [name for name in full if name.startswith(("lora_", "pissa_"))]


def test_classification_takes_its_own_numbers():
    recipe = {k: v for k, v in RECIPE.items() if k not in ("preset", "diversity_coef")}
    recipe |= {"task": "cola", "space": "features"}
    with_diversity = recipe_of("lora+diversity", recipe, CLASSIFICATION).objective
    assert (with_diversity.diversity_coef, with_diversity.space) == (4e-4, "features")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("loar", r"`loar` is no method \(did you mean `lora`\?\); there are base, full, lora"),
        ("loar+kl", r"`loar\+kl` is no method .*did you mean `lora"),
        ("", "`` is no method"),
        ("lora+", r"`lora\+` is no method"),
        ("lora+kl=x", r"`lora\+kl=x` is no method"),
        ("lora+kll", r"`lora\+kll` names no term with `kll` \(did you mean `kl`\?\)"),
        ("base+kl", "which is not trained"),
        ("full+kl", "`full.kl` cannot work: full fine-tuning would need a second copy"),
        ("full+consistency=0.1", "second copy of the model as reference; use lora"),
        ("lora-kl", "leaves out kl, which lora does not have"),
        ("balora-kl=0.1", "leaves out kl with a number"),
        ("balora+kl-consistency", "names the term consistency twice"),
        ("balora+kl=0", "adds kl with the coefficient 0; write -kl"),
        ("lora+kl=0.0", "adds kl with the coefficient 0; leave it out"),
    ],
)
def test_what_is_no_method_is_refused(name, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        parse_method(name)
    assert "\n" not in str(error.value)


def test_names_of_ones_own_are_suggested():
    with pytest.raises(ConfigError, match="did you mean `mine`"):
        parse_method("mime", ["mine"])


def test_a_term_without_a_number_needs_one_in_the_recipe():
    with pytest.raises(ConfigError, match="takes the recipe's `svd_coef`, which is 0"):
        recipe_of("lora+svd", {**RECIPE, "svd_coef": 0})


parts = st.dictionaries(
    st.sampled_from(["consistency", "diversity", "svd"]),
    st.sampled_from(["", "=0.3", "=1e-4", "=.5", "=2", "-"]),
)


@given(
    start=st.sampled_from(["full", "lora", "pissa", "balora"]), terms=parts, use_kl=st.booleans()
)
def test_every_name_is_refused_in_one_sentence_or_makes_a_recipe(start, terms, use_kl):
    words = {term: "kl" if use_kl and term == "consistency" else term for term in terms}
    name = start + "".join(
        f"-{words[term]}" if how == "-" else f"+{words[term]}{how}" for term, how in terms.items()
    )
    is_illegal = (start != "balora" and "-" in terms.values()) or (
        start == "full" and "consistency" in terms
    )
    try:
        method = parse_method(name)
    except ConfigError:
        assert is_illegal
        return
    assert not is_illegal
    expected = {
        TERMS[term]: 0.0 if how == "-" else float(how[1:]) if how else None
        for term, how in terms.items()
    }
    assert method == Method(start, tuple(sorted(expected.items())))
    resolved = recipe_of(name).objective
    for coefficient, value in expected.items():
        own = {"consistency_coef": 0.025, "diversity_coef": 0.25, "svd_coef": 0.005}[coefficient]
        assert getattr(resolved, coefficient) == (own if value is None else value)


REPLAYING = {"method": "balora", "replay": "texts.jsonl", "replay_every": 2, "replay_coef": 0.7}


@pytest.mark.parametrize(
    ("name", "recipe", "expected"),
    [
        ("lora", REPLAYING, {}),
        ("balora", REPLAYING, {k: v for k, v in REPLAYING.items() if k != "method"}),
        ("balora-replay", REPLAYING, {}),
        ("balora-replay", {"preset": "recommended"}, {"replay": None}),
        ("pissa+replay", {"preset": "recommended"}, dict(RECOMMENDED)),
        ("lora+replay=3", {"preset": "recommended"}, {**RECOMMENDED, "replay_coef": 3.0}),
        ("full+replay=0.3", {}, {"replay": "generated", "replay_coef": 0.3}),
        ("pissa+replay", {}, {"replay": "generated"}),
        (
            "lora+replay",
            REPLAYING,
            {"replay": "texts.jsonl", "replay_every": 2, "replay_coef": 0.7},
        ),
        (
            "pissa+kl=0.1+replay=2",
            REPLAYING,
            {"replay": "texts.jsonl", "replay_every": 2, "replay_coef": 2.0},
        ),
    ],
)
def test_replay_is_a_term_like_the_others(name, recipe, expected):
    method = parse_method(name)
    fields = recipe_without(method, recipe) | method_fields(method, recipe, GENERATION)
    assert {k: v for k, v in fields.items() if k.startswith("replay")} == expected
    assert fields["method"] == method.start
