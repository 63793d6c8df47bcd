"""From a comparison to cells: their order, their recipes, and what fails before anything runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from balora.compare.plan import LabFiles, Parts, Plan, combinations
from balora.errors import ConfigError, DataError
from balora.lab.config import LabConfig


def keys(cells):
    return [cell.key for cell in cells]


def test_the_first_seed_of_every_method_comes_first(comparison):
    plan = Plan(
        comparison(
            {
                "methods": ["base", "lora", "pissa"],
                "seeds": [4, 2],
                "conditions": {"a": {}, "b": {"learning_rate": 0.1}},
            }
        )
    )
    assert keys(plan.final()) == [
        "a/base",
        "a/lora/seed-4",
        "a/pissa/seed-4",
        "b/base",
        "b/lora/seed-4",
        "b/pissa/seed-4",
        "a/lora/seed-2",
        "a/pissa/seed-2",
        "b/lora/seed-2",
        "b/pissa/seed-2",
    ]
    assert plan.choosing() == []


def test_recipes_are_layered(comparison):
    """Recipe, condition, method, the method's own settings, chosen values: later ones win."""
    found = comparison(
        {
            "methods": ["lora+kl=0.3", "mine"],
            "settings": {"mine": {"method": "pissa+kl=0.5", "weight_decay": 0.3}},
            "conditions": {"c": {"learning_rate": 0.2}},
            "sweep": {"mine": {"consistency_coef": [0.1, 0.7]}},
        },
        learning_rate=0.1,
        weight_decay=0.1,
        warmup_steps=3,
    )
    plain, mine = Plan(found).final({"mine": {"consistency_coef": 0.7}})
    names = ("learning_rate", "weight_decay", "warmup_steps", "method", "consistency_coef", "seed")
    assert [plain.recipe[n] for n in names] == [0.2, 0.1, 3, "lora", 0.3, 0]
    assert [mine.recipe[n] for n in names] == [0.2, 0.3, 3, "pissa", 0.7, 0]
    assert mine.fields == {"weight_decay": 0.3, "consistency_coef": 0.7}
    assert Path(mine.recipe["output_dir"]).parts[-3:] == ("cells", mine.slug, "run")


def test_sweep_tries_every_combination_under_the_first_condition_with_the_first_seed(comparison):
    found = comparison(
        {
            "methods": ["base", "lora", "pissa", "full"],
            "seeds": [5, 6],
            "conditions": {"a": {}, "b": {}},
            "sweep": {
                "*": {"learning_rate": [0.1, 0.2]},
                "lora": {"weight_decay": [0, 1]},
                "full": {"learning_rate": [0.01]},
            },
        },
        dataset_train_split="train[:5]",
    )
    plan = Plan(found)
    cells = plan.choosing({"a": Parts(Path("fit.jsonl"), Path("held.jsonl"))})
    assert keys(cells) == [
        "choose/a/lora/seed-5/learning_rate=0.1,weight_decay=0",
        "choose/a/pissa/seed-5/learning_rate=0.1",
        "choose/a/lora/seed-5/learning_rate=0.1,weight_decay=1",
        "choose/a/pissa/seed-5/learning_rate=0.2",
        "choose/a/lora/seed-5/learning_rate=0.2,weight_decay=0",
        "choose/a/lora/seed-5/learning_rate=0.2,weight_decay=1",
    ]
    recipe = cells[1].recipe
    assert (recipe["dataset_name"], recipe["eval_dataset_name"]) == ("fit.jsonl", "held.jsonl")
    assert recipe["dataset_train_split"] == "train"
    assert recipe["learning_rate"] == 0.1
    # a single value is no choice
    full = next(cell for cell in plan.final() if cell.method == "full")
    assert full.recipe["learning_rate"] == 0.01
    assert full.recipe["dataset_train_split"] == "train[:5]"


def test_a_sweep_chooses_for_each_model_under_its_first_condition(comparison):
    found = comparison(
        {
            "methods": ["lora", "pissa"],
            "seeds": [5, 6],
            "models": {
                "one": {"model_name_or_path": "x/one"},
                "two": {"model_name_or_path": "x/2"},
            },
            "conditions": {"a": {}, "b": {"weight_decay": 0.1}},
            "sweep": {"lora": {"learning_rate": [0.1, 0.2]}},
        },
        model_name_or_path=None,
    )
    plan = Plan(found)
    places = {
        name: Parts(Path(name, "fit"), Path(name, "out")) for name in plan.choosing_conditions
    }
    cells = plan.choosing(places)
    assert keys(cells) == [
        "choose/one/a/lora/seed-5/learning_rate=0.1",
        "choose/two/a/lora/seed-5/learning_rate=0.1",
        "choose/one/a/lora/seed-5/learning_rate=0.2",
        "choose/two/a/lora/seed-5/learning_rate=0.2",
    ]
    named = [(cell.recipe["model_name_or_path"], cell.recipe["dataset_name"]) for cell in cells[:2]]
    assert named == [("x/one", "one/a/fit"), ("x/2", "two/a/fit")]
    final = plan.final({"one/lora": {"learning_rate": 0.2}, "two/lora": {"learning_rate": 0.1}})
    rates = {c.key: c.recipe["learning_rate"] for c in final if c.method == "lora"}
    assert set(rates.items()) == {
        (f"{model}/{condition}/lora/seed-{seed}", rate)
        for model, rate in (("one", 0.2), ("two", 0.1))
        for condition in "ab"
        for seed in (5, 6)
    }
    # another model changes nothing of those that are there
    tried = {cell.key: cell.sweep["condition"] for cell in final if cell.method == "lora"}
    assert set(tried.values()) == {"one/a", "two/a"}
    assert all(key.startswith(condition[:3]) for key, condition in tried.items())


def test_a_choice_sees_no_data_of_another_origin(comparison, tmp_path):
    (tmp_path / "other.csv").write_text("text,label\nx,0\n")
    found = comparison(
        {"sweep": {"lora": {"learning_rate": [0.1, 0.2]}}, "methods": ["lora"]},
        task="classification",
        out_of_domain=[{"name": "other", "dataset_name": "other.csv"}],
    )
    plan = Plan(found)
    assert "out_of_domain" not in plan.choosing()[0].recipe
    assert plan.final()[0].recipe["out_of_domain"][0]["name"] == "other"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dataset_name": "tain.jsonl"}, r"tain.jsonl, which does not exist \(did you mean"),
        ({"eval_dataset_name": "gone/test.jsonl"}, "there is no folder gone"),
        ({"model_name_or_path": "./gone"}, "`model_name_or_path` './gone' cannot be loaded"),
    ],
)
@pytest.mark.parametrize("is_condition", [False, True])
def test_files_that_are_missing_are_found_before_anything_runs(
    comparison, fields, sentence, is_condition
):
    asked = {"conditions": {"a": {}, "b": fields}} if is_condition else {}
    plan = Plan(comparison(asked, **({} if is_condition else fields)))
    plan.check()
    with pytest.raises((ConfigError, DataError), match=sentence):
        plan.check_files()


def test_files_are_looked_for_with_the_settings_of_the_method(comparison):
    """The recipe alone would be refused of the last method."""
    asked = {"methods": ["lora", "pissa"], "settings": {"pissa": {"lora_dropout": 0}}}
    plan = Plan(comparison(asked, lora_dropout=0.05))
    plan.check()
    plan.check_files()
    assert [cell.recipe.get("lora_dropout") for cell in plan.final()] == [0.05, 0]


def test_a_file_of_another_split_is_another_content(tmp_path):
    from balora.compare.fingerprints import fingerprint

    files = [tmp_path / name for name in ("test-1.jsonl", "train-1.jsonl", "train-2.jsonl")]
    for i, file in enumerate(files):
        file.write_text(str(i))
    a, b, c = files
    before = fingerprint({"test": [a], "train": [b, c]})
    assert fingerprint({"train": [b, c], "test": [a]}) == before
    assert fingerprint({"test": [a, b], "train": [c]}) != before
    with pytest.raises(ConfigError, match="cannot be read"):
        fingerprint({"": [tmp_path / "gone"]})


def test_rows_that_have_changed_make_another_cell(comparison, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one")
    asked = {"retention_file": str(text)}
    before = Plan(comparison(asked)).final()[0].identity()
    assert Plan(comparison(asked)).final()[0].identity() == before
    for file, name in ((tmp_path / "test.jsonl", "eval_dataset_name"), (text, "retention_file")):
        now = Plan(comparison(asked)).final()[0].identity()
        with file.open("a") as lines:
            lines.write("\n")
        changed = Plan(comparison(asked)).final()[0].identity()
        assert {n for n in now if now[n] != changed[n]} == {f"contents of.{name}"}
        comparison(asked)  # writes the rows anew


def test_every_recipe_is_checked_at_once_and_a_problem_is_told_once(comparison):
    plan = Plan(
        comparison(
            {
                "methods": ["lora", "pissa", "full"],
                "settings": {"full": {"lora_r": 4}},
                "conditions": {"a": {}, "b": {"learning_rat": 1}},
            }
        )
    )
    with pytest.raises(ConfigError) as error:
        plan.check()
    message = str(error.value)
    assert message.count("`learning_rat` is no field of a recipe (did you mean") == 1
    assert "b/lora, b/pissa, b/full: " in message
    assert (
        "`settings` or `sweep` of `full`: method full: `lora_r` is 4, but full fine-tuning"
        in message
    )
    assert "--learning_rat" not in message


BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}


@pytest.mark.parametrize("place", ["recipe", "settings", "conditions"])
@pytest.mark.parametrize("task", [None, "classification"])
def test_the_rows_that_are_reported_choose_no_checkpoint(comparison, place, task):
    compare = {"methods": ["lora"]}
    if place != "recipe":
        compare[place] = {"lora": BEST}
    found = comparison(compare, task=task, **(BEST if place == "recipe" else {}))
    with pytest.raises(ConfigError, match=r"`load_best_model_at_end` is true.*that are reported"):
        Plan(found).check()


def test_a_retention_text_that_cannot_be_read_is_found_before_anything_runs(comparison, tmp_path):
    with pytest.raises(ConfigError, match=r"`retention_file` 'nope.txt' cannot be read"):
        Plan(comparison({"retention_file": "nope.txt"})).check()
    (tmp_path / "text").write_text("kept")
    Plan(comparison({"retention_file": str(tmp_path / "text")})).check()


def test_a_metric_that_the_task_has_not_is_refused_with_those_it_has(comparison):
    fields = {"task": "cola", "dataset_name": None, "eval_dataset_name": None}
    with pytest.raises(
        ConfigError, match=r"pearson, which is not computed for cola; choose one of matthews_correl"
    ):
        Plan(comparison({"metric": "pearson"}, **fields)).check()
    Plan(comparison({"metric": "accuracy"}, **fields)).check()


def test_what_is_wrong_everywhere_is_nobodys_in_particular(comparison):
    with pytest.raises(ConfigError, match=r"^`model_name_or_path` is missing"):
        Plan(comparison(model_name_or_path=None)).check()


def test_a_value_of_a_sweep_is_checked_before_anything_runs(comparison):
    sweep = {"lora": {"learning_rate": [0.1, -1]}}
    with pytest.raises(ConfigError, match=r"lora: .*`learning_rate` must be 0 or greater, got -1"):
        Plan(comparison({"sweep": sweep})).check()


def test_there_must_be_rows_to_evaluate_on(comparison):
    with pytest.raises(ConfigError, match="nothing to evaluate on: set `eval_dataset_name`"):
        Plan(comparison(eval_dataset_name=None)).check()
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        Plan(comparison(task="classification", eval_dataset_name=None)).check()
    Plan(comparison(eval_dataset_name=None, dataset_test_split="train[5:]")).check()
    Plan(comparison(task="cola", eval_dataset_name=None)).check()


NO_DATA = dict.fromkeys(("model_name_or_path", "dataset_name", "eval_dataset_name"))


def test_the_lab_gives_model_and_data_by_condition(comparison):
    found = comparison(
        {"methods": ["lora"], "conditions": {"a": {}, "b": {"lab": {"noise_rate": 0.4}}}},
        lab={},
        **NO_DATA,
        given={"lab.num_people": "7"},
    )
    Plan(found).check()
    labs = {n: LabFiles(*(Path(f"{n}-{what}") for what in ("m", "train", "test"))) for n in "ab"}
    one, other = Plan(found, labs).final()
    assert one.lab == dataclasses.asdict(LabConfig(noise_rate=0.2, num_people=7))
    assert other.lab == dataclasses.asdict(LabConfig(noise_rate=0.4, num_people=7))
    names = ("model_name_or_path", "dataset_name", "eval_dataset_name", "prompt_template")
    assert [other.recipe[n] for n in names] == ["b-m", "b-train", "b-test", "alpaca"]
    # where the lab was built is no part of the identity, what it was built from is
    assert Plan(found).final()[1].identity() == other.identity() != one.identity()


def test_combinations():
    assert combinations({}) == [{}]
    assert combinations({"a": [1, 2], "b": [3]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


@pytest.mark.parametrize(
    ("methods", "settings", "fields", "is_one"),
    [
        (["balora", "balora+replay"], {}, {"replay": "generated"}, True),
        (["balora-replay", "balora+replay"], {}, {"replay": "generated"}, False),
        (["balora", "balora+replay"], {}, {}, False),
        (["pissa", "mine"], {"mine": {"method": "pissa"}}, {}, True),
        (["pissa", "mine"], {"mine": {"method": "pissa", "learning_rate": 1e-6}}, {}, False),
    ],
)
def test_a_run_is_not_compared_with_itself(comparison, methods, settings, fields, is_one):
    asked = {"methods": ["base", *methods], "settings": settings}
    plan = Plan(comparison(asked, **fields))
    plan.check()
    if not is_one:
        plan.check_files()
        return
    one, other = methods
    with pytest.raises(ConfigError, match=re.escape(f"`{one}` and `{other}` are the same run")):
        plan.check_files()
