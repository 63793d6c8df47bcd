"""A recipe with `compare:` and `lab:`, the command line over it, and what has no place there."""

from __future__ import annotations

from pathlib import Path

import pytest

from balora.compare.comparison import read_comparison
from balora.compare.plan import Plan
from balora.errors import ConfigError
from balora.evaluation.metrics import measured_by, metric_of
from balora.recipes.kinds import GENERATION


def test_options_go_where_they_belong(comparison):
    given = {"seeds": "4,5", "learning_rate": "1e-3", "lora_r": "null", "baseline": "pissa"}
    found = comparison(given=given)
    assert found.config.seeds == [4, 5]
    assert found.config.baseline == "pissa"
    assert found.recipe["learning_rate"] == 1e-3
    assert "lora_r" not in found.recipe
    assert "compare" not in found.recipe


def test_defaults_are_those_of_the_kind(comparison):
    generation = comparison({"methods": None, "seeds": None})
    assert generation.config.methods == ["base", "full", "lora", "pissa", "balora"]
    assert (generation.config.seeds, generation.config.baseline) == ([0, 1, 2], "lora")
    classification = comparison({"methods": None}, task="cola", dataset_name=None)
    assert classification.config.methods == ["full", "lora", "pissa", "balora"]
    assert comparison({"methods": ["base", "pissa"]}).config.baseline == "pissa"
    assert comparison({"methods": ["base"]}).config.baseline is None


def test_what_is_written_down_asks_for_the_same(comparison, tmp_path):
    found = comparison(
        {
            "settings": {"full": {"learning_rate": 3e-4}},
            "conditions": {"a": None, "b": {"max_steps": 3}},
        },
        given={"jobs": "2", "weight_decay": "0.1"},
    )
    path = tmp_path / "again.yaml"
    path.write_text(found.to_yaml())
    assert read_comparison(path, {}).to_dict() == found.to_dict()
    assert read_comparison(path, {}).conditions == ("a", "b")


def test_conditions_replace_fields_of_recipe_and_lab(comparison):
    found = comparison(
        {"conditions": {"clean": {}, "noise": {"learning_rate": 0.5, "lab": {"noise_rate": 0.4}}}},
        lab={"noise_rate": 0.1, "num_people": 3},
        model_name_or_path=None,
        dataset_name=None,
        eval_dataset_name=None,
        learning_rate=0.1,
    )
    assert [found.recipe_of(name)["learning_rate"] for name in ("clean", "noise")] == [0.1, 0.5]
    assert found.lab_of("clean") == {"noise_rate": 0.1, "num_people": 3}
    assert found.lab_of("noise") == {"noise_rate": 0.4, "num_people": 3}


def test_a_coefficient_of_0_in_a_condition_sets_the_terms_settings_aside(comparison):
    found = comparison(
        {"conditions": {"off": {"consistency_coef": 0}}}, temperature=2.0, consistency_coef=0.1
    )
    assert "temperature" not in found.recipe_of("off")


LAB = {"model_name_or_path": None, "dataset_name": None, "eval_dataset_name": None, "lab": {}}
COLA = {"task": "cola", "dataset_name": None, "eval_dataset_name": None}


@pytest.mark.parametrize(
    ("compare", "fields", "sentence"),
    [
        ({}, {"seed": 3}, "`seed` is set, but the seeds of a comparison are `seeds`"),
        ({}, {"overwrite": True}, "`overwrite` is set, but a comparison starts again with"),
        ({}, {"output_dir": None}, "`output_dir` is missing"),
        ({}, {"lab": 3}, "`lab` must be a mapping of fields, got 3"),
        ({"settings": {"lora": {"seed": 1}}}, {}, "`settings` of `lora`: `seed` is set"),
        ({"settings": {"lora": {"output_dir": "x"}}}, {}, "it holds for all cells"),
        ({"conditions": {"a": {"method": "lora"}}}, {}, "`method` is set; methods are named"),
        ({"conditions": {"a": {"lab": {}}}}, {}, "`a` has `lab`, but the recipe has none"),
        ({"conditions": {"a": {"task": "cola"}}}, {}, "makes the run one of classification"),
        ({}, {**LAB, "dataset_name": "x"}, "`dataset_name` is set, but model and data are the lab"),
        (
            {"num_rows": 3},
            LAB,
            "`num_rows` is set, but the lab has its own; leave it out (`lab: {num_test: N}`",
        ),
        ({"retention_file": "x"}, COLA, "`retention_file` is set, but this is classification"),
        ({"methods": ["base", "lora"]}, COLA, "the head of a classifier is new"),
        ({"metric": "recall"}, {}, "`metric` is recall, which is not measured of text generation"),
        ({"metric": "retention_loss"}, {}, "`metric` is retention_loss, but there is no `reten"),
        ({"metric": "memorised_noise"}, LAB, "but `label_noise` of the lab is 0; set it"),
        (
            {"metric": "corrupted_repeat"},
            {**LAB, "lab": {"noise_rate": 0}},
            "`metric` is corrupted_repeat, but `noise_rate` of the lab is 0; set it",
        ),
        (
            {"settings": {"lora": {"dataset_name": "x"}}},
            {},
            "`settings` of `lora`: `dataset_name` is set, but all methods have the same model",
        ),
        (
            {"sweep": {"*": {"model_name_or_path": ["a", "b"]}}},
            {},
            "`sweep` of `*`: `model_name_or_path` is set, but all methods have the same model",
        ),
        (
            {"conditions": {"a": {"lora_r": 4}}, "settings": {"lora": {"lora_r": 2}}},
            {},
            "`settings` of `lora`: `lora_r` is set, which `conditions`, `a` sets as well",
        ),
        (
            {"conditions": {"a": {"lora_r": 4}}, "sweep": {"*": {"lora_r": [2, 8]}}},
            {},
            "`sweep` of `*`: `lora_r` is set, which `conditions`, `a` sets as well",
        ),
        ({"metric": "kl"}, COLA, "`metric` is kl, which is not measured of classification"),
        (
            {"metric": "hans:accuracy", "sweep": {"lora": {"learning_rate": [1, 2]}}},
            COLA,
            "chooses on held-out training rows, and that metric is measured on the very rows",
        ),
        ({"held_out_fraction": 0.2}, {}, "`held_out_fraction` is set, but there is no `sweep`"),
        ({"sweep_tolerance": 0.02}, {}, "`sweep_tolerance` is set, but there is no `sweep`"),
    ],
)
def test_what_has_no_place_in_a_comparison(comparison, compare, fields, sentence):
    with pytest.raises(ConfigError) as error:
        comparison(compare, **fields)
    assert sentence in str(error.value)


KINDS = {
    "generation": (measured_by(*GENERATION.instruments), {"retention_file": "keep.txt"}, {}),
    "lab": (measured_by(*GENERATION.instruments, "lab"), {}, {**LAB, "lab": {"label_noise": 0.1}}),
    "classification": ((*measured_by("classification"), "hans:accuracy"), {}, COLA),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_chooses_by_nothing_that_is_measured_on_what_is_reported(comparison, kind):
    names, compare, fields = KINDS[kind]
    sweep = {"lora": {"learning_rate": [1, 2]}}
    for name in names:
        if metric_of(name).higher_is_better is None:
            continue
        comparison({**compare, "metric": name}, **fields)
        if metric_of(name).is_of_task_rows:
            comparison({**compare, "metric": name, "sweep": sweep}, **fields)
            continue
        with pytest.raises(ConfigError, match=f"`metric` is {name}, but `sweep` chooses on held"):
            comparison({**compare, "metric": name, "sweep": sweep}, **fields)


def test_noise_is_planted_where_the_lab_does_not_say(comparison):
    comparison({"metric": "corrupted_repeat"}, **LAB)


def test_a_recipe_of_train_is_compared_as_it_stands():
    """Its seed is that of a single run."""
    recipe = Path(__file__).parents[2] / "recipes" / "gsm8k.yaml"
    given = {"model_name_or_path": "some/model", "seeds": "1,2"}
    found = read_comparison(recipe, given)
    Plan(found).check()
    assert {cell.recipe.get("seed") for cell in Plan(found).final()} == {None, 1, 2}
    with pytest.raises(ConfigError, match="`seed` is set, but the seeds of a comparison"):
        read_comparison(recipe, {**given, "seed": "3"})


def test_a_sweep_switched_off_on_the_command_line_takes_its_settings_along(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{model_name_or_path: m, dataset_name: d, dataset_test_split: test, output_dir: o, compare:"
        " {methods: [lora], sweep: {lora: {learning_rate: [1.0e-3, 2.0e-3]}},"
        " sweep_tolerance: 0.02, held_out_fraction: 0.2}}",
        encoding="utf-8",
    )
    assert read_comparison(path, {}).config.sweep_tolerance == 0.02
    off = read_comparison(path, {"sweep": "null"})
    assert (off.config.sweep, off.config.sweep_tolerance) == (None, 0.0)
    with pytest.raises(ConfigError, match="`sweep_tolerance` is set, but there is no `sweep`"):
        read_comparison(path, {"sweep": "null", "sweep_tolerance": "0.1"})


def test_problems_come_together(comparison):
    with pytest.raises(ConfigError) as error:
        comparison(seed=1, resume_from_checkpoint="true")
    assert "`seed`" in str(error.value)
    assert "`resume_from_checkpoint`" in str(error.value)
