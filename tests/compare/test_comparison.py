"""A recipe with `compare:` and `lab:`, the command line over it, and what has no place there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balora.compare.plan import Plan
from balora.compare.reading import read_comparison
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
        ({"conditions": {"a": {"lab": {}}}}, {}, "`a`: `lab` is set, but the recipe has none"),
        (
            {"conditions": {"b": {}, "a": {"task": "cola"}}},
            {},
            "makes the run one of classification",
        ),
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
            {"sweep": {"*": {"svd_coef": [0, 1]}}},
            {},
            "`sweep` of `*`: `svd_coef` is set, which would add the term to methods without it",
        ),
        (
            {"sweep": {"lora": {"method": ["lora", "full"]}}},
            {},
            "`method` is set; methods are named",
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


MODELS = {"models": {"small": {"model_name_or_path": "a"}, "large": {"model_name_or_path": "b"}}}
SMALL = {"model_name_or_path": "a", "lora_r": 2}
SKILLS = {"bench": {"benchmarks": ["gsm8k"]}}
NO_MODEL = {"model_name_or_path": None}


def test_a_model_and_a_condition_set_fields_of_their_own(comparison):
    models = {"small": {"model_name_or_path": "a", "lora_r": 8}, "large": MODELS["models"]["large"]}
    found = comparison({"models": models, "conditions": {"c": {"max_steps": 3}}}, **NO_MODEL)
    assert found.conditions == ("small/c", "large/c")
    recipes = [found.recipe_of(name) for name in found.conditions]
    assert [(r["model_name_or_path"], r["lora_r"], r["max_steps"]) for r in recipes] == [
        ("a", 8, 3),
        ("b", 2, 3),
    ]


def test_rows_are_picked_by_model_and_task_and_the_command_line_goes_before_them(
    comparison, tmp_path
):
    tasks = {"cola": {"num_train_epochs": 3}, "rte": {"num_train_epochs": 5}}
    row = {"lora_alpha": 16, "lora_r": 4, "tasks": tasks}
    (tmp_path / "rows.yaml").write_text(json.dumps({"rows": {"a": row, "b": row}}))
    fields = {**NO_MODEL, "dataset_name": None, "eval_dataset_name": None, "lora_alpha": None}
    conditions = {"conditions": {"cola": {"task": "cola"}, "rte": {"task": "rte"}}}
    fields |= {"lora_r": None, "rows": "rows.yaml"}
    found = comparison({**MODELS, **conditions}, given={"lora_r": "3"}, **fields)
    recipes = [found.recipe_of(name) for name in found.conditions]
    assert [(r["task"], r["num_train_epochs"]) for r in recipes] == 2 * [("cola", 3), ("rte", 5)]
    assert {(r["lora_alpha"], r["lora_r"]) for r in recipes} == {(16, 3)}
    again = tmp_path / "again.yaml"
    again.write_text(found.to_yaml())
    assert read_comparison(again, {}).to_dict() == found.to_dict()


def test_fields_of_benchmarks_are_set_on_the_command_line(comparison):
    bench = {"benchmarks": ["gsm8k"], "num_rows": 7}
    given = {"bench.num_rows": "3", "bench.gsm8k.dataset_name": "x.jsonl"}
    found = comparison({"conditions": {"c": {"bench": bench}}}, given=given)
    assert found.bench_of("c") == {
        "benchmarks": ["gsm8k"],
        "num_rows": 3,
        "gsm8k": {"dataset_name": "x.jsonl"},
    }


def test_a_summary_takes_metrics_conditions_and_metrics_of_a_condition(comparison):
    conditions = {"conditions": {"a": SKILLS, "b": {}}}
    columns = ["gsm8k", "a", "b/exact_match", "gsm8k_paper"]
    values = {"small": {"lora": {"gsm8k": 42.5, "average": 3}}}
    reference = {"source": "a paper", "values": values}
    comparison(
        {**MODELS, **conditions, "summary": {"S": columns}, "reference": reference}, **NO_MODEL
    )


def _reference(**figures):
    return {"summary": {"S": ["gsm8k"]}, **SKILLS, "reference": {"source": "x", **figures}}


@pytest.mark.parametrize(
    ("compare", "fields", "sentence"),
    [
        (MODELS, {}, "`model_name_or_path` is set, but each of `models` names its own"),
        ({"models": {"a": {"lora_r": 2}}}, NO_MODEL, "`models`, `a` names no `model_name_or_path`"),
        (
            {**MODELS, "conditions": {"c": {"model_name_or_path": "c"}}},
            NO_MODEL,
            "`models`, `small` and `conditions`, `c` both set `model_name_or_path`",
        ),
        ({**MODELS}, LAB, "`models`, `small`: `model_name_or_path` is set, but model and data"),
        (
            {"models": {"a": {"model_name_or_path": "a", "method": "lora"}}},
            NO_MODEL,
            "`models`, `a`: `method` is set; methods are named in",
        ),
        (
            {"models": {"a": SMALL}, "settings": {"lora": {"lora_r": 3}}},
            NO_MODEL,
            "`lora_r` is set, which `models`, `a` sets as well",
        ),
        ({"bench": {"benchmark": ["gsm8k"]}}, {}, "did you mean `benchmarks`?"),
        ({"bench": {"benchmarks": ["gsm8"]}}, {}, "got the text `gsm8` (did you mean `gsm8k`?)"),
        ({"bench": {"num_rows": 3}}, {}, "`bench` names no `benchmarks`"),
        ({"bench": {"benchmarks": ["gsm8k"], "judge_model": "x"}}, {}, "`judge_model` is set, but"),
        ({"bench": {"benchmarks": ["mt_bench"]}}, {}, "`judge_model` is missing"),
        ({"bench": {"benchmarks": ["gsm8k"], "output_dir": "x"}}, {}, "lie in the cell's folder"),
        ({"bench": {"benchmarks": ["gsm8k"], "backend": "endpoint"}}, {}, "a server has one model"),
        ({"conditions": {"c": {"bench": 3}}}, {}, "`conditions`, `c`: `bench` must be a mapping"),
        (
            {
                "conditions": {"c": {"bench": {"benchmarks": [["gsm8k"]]}}},
                "summary": {"S": ["gsm8k"]},
                "metric": "kl",
            },
            {},
            "`conditions`, `c`: `bench`: `benchmarks` must be",
        ),
        (
            {"conditions": {"c": {"bench": {"top_p": 0.5, "benchmarks": ["gsm8k"]}}}},
            {},
            "`conditions`, `c`: `bench`: `top_p` is 0.5, but `temperature` is 0",
        ),
        ({"methods": ["lora"], **SKILLS}, COLA, "whose models write no answers"),
        ({"summary": {"S": ["gsm8k"]}}, {}, "`gsm8k` is measured in no cell"),
        ({"summary": {"S": ["gsm8"]}, **SKILLS}, {}, "(did you mean `gsm8k`?)"),
        ({"summary": {"S": ["response_loss"]}}, {}, "more of it is not better"),
        ({"summary": {"S": ["average"]}}, {}, "stands there without being named"),
        (
            {"summary": {"S": ["exact_match"]}, "conditions": {"a": {}, "b": {}}},
            {},
            "is measured under a, b; say under which, such as a/exact_match",
        ),
        ({"reference": {"source": "x", "values": {"lora": {}}}}, {}, "there is no `summary`"),
        (_reference(value={}), {}, "`reference` has `value` (did you mean `values`?)"),
        (_reference(values={"lroa": {}}), {}, "(did you mean `lora`?)"),
        (_reference(values={"lora": {"gsm8": 1}}), {}, "`gsm8` is no column of `summary` (did you"),
        (_reference(values={"lora": {"gsm8k": "1"}}), {}, "must be a number, got '1'"),
        (
            {**_reference(values={"smal": {"lora": {"gsm8k": 1}}}), **MODELS},
            NO_MODEL,
            "`smal` is none of `models` (did you mean `small`?)",
        ),
    ],
)  # fmt: skip
def test_models_benchmarks_and_summaries_that_cannot_work(compare, fields, sentence, comparison):
    with pytest.raises(ConfigError) as caught:
        comparison(compare, **fields)
    assert sentence in str(caught.value)


def test_all_problems_of_a_comparison_come_at_once(comparison):
    with pytest.raises(ConfigError) as caught:
        comparison(
            {
                "conditions": {"c": {"bench": {"benchmarks": ["gsm8k"], "judge_model": "x"}}},
                "summary": {"S": ["mbpp"], "T": ["maht"]},
            },
            seed=3,
        )
    assert str(caught.value).count("; `") >= 3
