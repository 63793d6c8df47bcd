"""Loading a recipe: what is accepted, what it means, and one sentence for what is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from balora.config import (
    AdapterConfig,
    BALoraConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
)
from balora.config.replay import ReplayConfig
from balora.errors import ConfigError
from balora.recipes import GENERATION, known_fields, load_recipe
from balora.recipes.load import check_recipe

OFF = dict.fromkeys(("consistency_coef", "diversity_coef", "svd_coef"), 0.0)
NEEDED = {"model_name_or_path": "gpt2", "dataset_name": "rows.jsonl", "output_dir": "out"}
RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    if "\ncompare:" not in path.read_text(encoding="utf-8")  # tests/compare loads the others
]


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str, *, needed: bool = True) -> Path:
        path = tmp_path / "recipe.yaml"
        head = "".join(f"{name}: {value}\n" for name, value in NEEDED.items()) if needed else ""
        path.write_text(head + text)
        return path

    return write


def test_fields_land_in_their_part(recipe_file):
    recipe = load_recipe(
        recipe_file("method: pissa\nlora_r: 8\nsvd_coef: 2e-4\nlearning_rate: 1e-3\ndtype: auto\n"),
        {"overwrite": "true", "dataset_train_split": "train[:10]"},
    )
    assert recipe.model == ModelConfig(model_name_or_path="gpt2", dtype="auto")
    assert recipe.adapter == AdapterConfig(method="pissa", lora_r=8)
    assert recipe.data == DataConfig(dataset_name="rows.jsonl", dataset_train_split="train[:10]")
    assert recipe.run == RunConfig(overwrite=True)
    assert recipe.objective == BALoraConfig(consistency_coef=0, diversity_coef=0, svd_coef=2e-4)
    assert recipe.training == {"output_dir": "out", "learning_rate": 1e-3}


def test_overrides_replace_the_file_and_work_without_one(recipe_file):
    path = recipe_file("lora_r: 8\nseed: 1\n")
    assert load_recipe(path, {"lora_r": "4"}).adapter.lora_r == 4
    assert load_recipe(path).training["seed"] == 1
    assert load_recipe(None, NEEDED).adapter == AdapterConfig()


def test_null_on_the_command_line_takes_a_field_out_again(recipe_file):
    path = recipe_file("lora_r: 8\npreset: iclr2026\n")
    assert load_recipe(path, {"lora_r": "none"}).adapter.lora_r == 128
    assert load_recipe(path, {"method": "full", "lora_r": "null", "preset": "none"}).adapter == (
        AdapterConfig(method="full")
    )


@pytest.mark.parametrize(
    ("method", "rank", "objective"),
    [
        ("full", AdapterConfig().lora_r, BALoraConfig(**OFF)),
        ("lora", 8, BALoraConfig(adapter_init="lora", **OFF)),
        ("pissa", 8, BALoraConfig(pissa_svd="exact", **OFF)),
        ("balora", 8, BALoraConfig.preset("iclr2026", pissa_svd="exact", svd_coef=0.1)),
    ],
)
def test_method_on_the_command_line_sets_aside_what_is_another_methods(
    recipe_file, method, rank, objective
):
    path = recipe_file("lora_r: 8\npreset: iclr2026\npissa_svd: exact\nsvd_coef: 0.1\n")
    recipe = load_recipe(path, {"method": method})
    assert recipe.adapter.lora_r == rank
    assert recipe.objective == objective


def test_the_recommended_preset_is_replay_without_the_three_terms():
    recipe = load_recipe(None, {**NEEDED, "preset": "recommended"})
    assert recipe.objective == BALoraConfig(**OFF)
    assert recipe.replay == ReplayConfig(replay="generated", replay_coef=1.0, replay_every=2)
    assert check_recipe(yaml.safe_load(recipe.to_yaml())).replay == recipe.replay


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"replay": "texts.txt"}, {"replay": "texts.txt", "replay_every": 2}),
        ({"replay_every": "8"}, {"replay": "generated", "replay_every": 8}),
        ({"replay": "null"}, {}),
        ({"method": "lora"}, {}),
    ],
)
def test_what_is_given_goes_over_the_recommended_replay(recipe_file, given, expected):
    recipe = load_recipe(recipe_file("preset: recommended\n"), given)
    assert recipe.replay == ReplayConfig(**expected)


def test_a_term_switched_off_takes_its_settings_along(recipe_file):
    path = recipe_file("svd_max_tokens: 256\nsvd_k: 8\ntemperature: 2.0\n")
    objective = load_recipe(path, {"svd_coef": "0"}).objective
    assert (objective.svd_coef, objective.temperature) == (0, 2.0)
    with pytest.raises(ConfigError, match="`svd_k` is 8, but `svd_coef` is 0"):
        load_recipe(path, {"svd_coef": "0", "svd_k": "8"})


def test_what_is_given_beside_the_method_is_not_set_aside(recipe_file):
    path = recipe_file("lora_r: 8\nconsistency_coef: 0.1\n")
    recipe = load_recipe(path, {"method": "lora", "consistency_coef": "0.5"})
    assert recipe.objective.consistency_coef == 0.5
    with pytest.raises(ConfigError, match="`lora_r` is 4, but full"):
        load_recipe(path, {"method": "full", "lora_r": "4"})


def test_null_is_a_value_where_the_field_has_one():
    recipe = load_recipe(None, {**NEEDED, "max_length": "none", "preset": "iclr2026"})
    assert recipe.training["max_length"] is None
    recipe = load_recipe(None, {**NEEDED, "preset": "iclr2026", "entropy_top_k": "none"})
    assert recipe.objective.entropy_top_k is None


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("learning_rate", "2e-4", 2e-4),
        ("max_steps", "1_000", 1000),
        ("save_strategy", "no", "no"),
        ("report_to", "none", "none"),
        ("report_to", "tensorboard,wandb", ["tensorboard", "wandb"]),
        ("warmup_steps", "0.03", 0.03),
        ("num_train_epochs", "1", 1),
        ("run_name", "2024", "2024"),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}', {"num_cycles": 2}),
        ("resume_from_checkpoint", "true", "true"),
    ],
)
def test_command_line_values_of_training_fields(field, text, value):
    assert load_recipe(None, {**NEEDED, field: text}).training[field] == value


def test_prompt_template_none_is_a_name_and_null_is_not():
    assert load_recipe(None, {**NEEDED, "prompt_template": "none"}).data.prompt_template == "none"
    assert load_recipe(None, {**NEEDED, "prompt_template": "null"}).data.prompt_template is None


def test_file_reads_no_as_text_and_true_for_resuming(recipe_file):
    recipe = load_recipe(recipe_file("save_strategy: no\nresume_from_checkpoint: true\n"))
    assert recipe.training["save_strategy"] == "no"
    assert recipe.training["resume_from_checkpoint"] == "true"


@pytest.mark.parametrize("text", ["q_proj,v_proj", "[q_proj, v_proj]"])
def test_lists_on_the_command_line(text):
    recipe = load_recipe(None, {**NEEDED, "lora_target_modules": text})
    assert recipe.adapter.lora_target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "method: lroa",
            r"`method` must be one of .* got the text `lroa` \(did you mean `lora`\?\)",
        ),
        ("lora_r: 12.5", r"`lora_r` must be a whole number, got 12.5"),
        ("lora_r: '8'", r"`lora_r` must be a whole number, got the text `8`"),
        ("lora_r: true", r"`lora_r` must be a whole number, got true"),
        ("lora_r:", r"`lora_r` is empty; give it a value or leave it out"),
        ("learning_rate: true", r"`learning_rate` must be a number, got true"),
        ("learning_rate: fast", r"`learning_rate` must be a number, got the text `fast`"),
        ("learning_rate: .nan", r"`learning_rate` must be a number, got nan"),
        ("learning_rate: -1", r"`learning_rate` must be 0 or greater, got -1"),
        ("per_device_train_batch_size: 0", r"`per_device_train_batch_size` must be 1 or greater"),
        ("max_length: none", r"`max_length` must be a whole number or null, got the text `none`"),
        ("packing: yes", r"`packing` must be true or false, got the text `yes`"),
        ("packing: 1", r"`packing` must be true or false, got 1"),
        ("run_name: 12", r"`run_name` must be text or null, got 12"),
        ("output_dir: ' '", r"`output_dir` is empty; give it a value"),
        ("learning: 1", r"`learning` is no field of a recipe \(did you mean `learning_rate`\?\)"),
        ("lora_rr: 8", r"`lora_rr` is no field of a recipe \(did you mean `lora_r`\?\)"),
        ("consistency: 1", r"`consistency` is no field .*did you mean `consistency_coef`"),
        (
            "warmup_ratio: 0.03",
            r"`warmup_ratio` is no field of a recipe; it is called `warmup_steps` here: write "
            r"`warmup_steps: 0.03` in its place",
        ),
        ("lr_scheduler_type: cosin", r"`lr_scheduler_type` must be .*did you mean `cosine`"),
        ("eval_strategy: step", r"`eval_strategy` must be one of `no`, `steps`, `epoch`.*`steps`"),
        ("save_strategy: always", r"`save_strategy` must be one of `no`, `steps`, `epoch`, `best`"),
        ("optim: adamw", r"`optim` must be one of \d+ names \(`adamw_torch`.*got the text `adamw`"),
        ("truncation_mode: keep_all", r"`truncation_mode` must be one of `keep_end`, `keep_start`"),
        ("lr_scheduler_kwargs: [1]", r"`lr_scheduler_kwargs` must be a mapping or null"),
        ("loss_type: dft", r"`loss_type` is dft, which replaces the task loss; set it to nll"),
        ("label_smoothing_factor: 0.1", r"`label_smoothing_factor` is 0.1, which changes the task"),
        ("use_liger_kernel: true", r"`use_liger_kernel` is true, which replaces the model's loss"),
        (
            "compute_loss_func: f",
            r"`compute_loss_func` is no field .* it would replace the objective: leave",
        ),
        ("method: full\nconsistency_coef: 0.1", r"full fine-tuning would need a second copy"),
        ("lora_dropout: 0.1", r"`lora_dropout` is 0.1, but the start .*set it to 0"),
        (
            "use_peft: true",
            r"`use_peft` is no field of a recipe; `method` says .*: write `method: lora` in its",
        ),
        ("max_steps: 0", r"`max_steps` must be 1 or greater or -1, got 0"),
        ("early_stopping_patience: 0", r"`early_stopping_patience` must be 1 or greater, got 0"),
        ("early_stopping_threshold: 1.0", r"so `early_stopping_patience` must be set too"),
        ("report_to: no_such", r"`report_to` must be one of .*`tensorboard`"),
        (
            "lora_target_modules: '['",
            r"`lora_target_modules` is the text `\[`, which is no regular",
        ),
        ("adam_beta1: 1", r"`adam_beta1` must be 0 or greater and less than 1, got 1"),
        ("seed: 4294967296", r"`seed` must be from 0 to 4294967295, got 4294967296"),
        ("lora_r: 99999999999999999999", r"`lora_r` must be a whole number of at most 64 bits"),
        ("save_strategy: ''", r"`save_strategy` is empty; give it a value or leave it out"),
        ("preset: iclr2026\nmethod: lora", r"`preset` is iclr2026, but it only acts with method"),
        ("prompt_column: q", r"`prompt_column` is q, so `response_column` must be set too"),
    ],
)
def test_a_wrong_line_is_refused_in_one_sentence(recipe_file, line, sentence):
    path = recipe_file(line + "\n")
    if line.startswith("output_dir"):
        path = recipe_file(f"model_name_or_path: m\ndataset_name: d\n{line}\n", needed=False)
    with pytest.raises(ConfigError, match=sentence) as error:
        load_recipe(path)
    assert error.value.exit_status == 2
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        (
            "learning",
            "1e-4",
            r"`--learning` is no field of a recipe \(did you mean `learning_rate`",
        ),
        ("learning_rate", "true", r"`--learning_rate` must be a number, got true"),
        ("lora_r", "12.5", r"`--lora_r` must be a whole number, got 12.5"),
        ("packing", "1", r"`--packing` must be true or false, got 1"),
        ("method", "lroa", r"`--method` must be .*did you mean `lora`"),
        ("output_dir", "null", r"`output_dir` is missing: add it to the recipe or pass"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(field, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_recipe(None, {**NEEDED, field: text})


def test_all_problems_are_listed_at_once(recipe_file):
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe_file("lroa_r: 8\nlora_r: 1.5\npacking: 3\n"), {"optim": "x"})
    for name in ("`lroa_r`", "`lora_r`", "`packing`", "`--optim`"):
        assert name in str(error.value)
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe_file("lora_r: 0\nsvd_k: 2.5\nprompt_column: q\nmethod: full\n"))
    for name in (
        "`lora_r` must",
        "`svd_k` must be greater than 0",
        "`prompt_column`",
        "has no adapter",
    ):
        assert name in str(error.value)


def test_an_adapter_has_a_learning_rate_that_suits_it(recipe_file):
    assert load_recipe(recipe_file("")).training["learning_rate"] == 2e-4
    assert load_recipe(recipe_file("task: classification\n")).training["learning_rate"] == 5e-4
    assert load_recipe(recipe_file("learning_rate: 1e-3\n")).training["learning_rate"] == 1e-3
    assert "learning_rate: 0.0002" in load_recipe(recipe_file("method: lora\n")).to_yaml()
    assert "learning_rate" not in load_recipe(recipe_file("method: full\n")).training


def test_everything_that_is_missing_is_named(recipe_file):
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe_file("seed: 1\n", needed=False))
    for name in NEEDED:
        assert f"`{name}` is missing: add it to the recipe or pass `--{name}`" in str(error.value)


def test_no_field_has_two_owners():
    own = [
        field.name
        for part in (ModelConfig, AdapterConfig, DataConfig, RunConfig, BALoraConfig)
        for field in dataclasses.fields(part)
    ]
    from trl import SFTConfig

    assert len(set(own)) == len(own)
    assert not set(own) & {field.name for field in dataclasses.fields(SFTConfig)}
    assert set(own) - set(GENERATION.foreign) < set(known_fields())


PAPER = [path for path in RECIPES if path.stem in ("math", "code", "chat")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    # a table needs a model that it has, and a task
    is_table = path.stem == "glue"
    given = {"model_name_or_path": "FacebookAI/roberta-large", "task": "cola"}
    recipe = load_recipe(path, given if is_table else {"model_name_or_path": "gpt2"})
    assert recipe.source == path


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
@pytest.mark.parametrize("method", ["full", "lora", "pissa", "balora"])
def test_the_papers_recipes_load_with_every_method(path, method):
    recipe = load_recipe(path, {"model_name_or_path": "gpt2", "method": method})
    assert recipe.adapter.method == method


def test_the_papers_recipes_are_there():
    assert len(PAPER) == 3


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_recipes_have_the_papers_settings(path):
    recipe = load_recipe(path, {"model_name_or_path": "gpt2"})
    assert (recipe.adapter.method, recipe.adapter.lora_dropout) == ("balora", 0.0)
    assert (recipe.adapter.lora_r, recipe.adapter.lora_alpha) == (128, 128)
    assert recipe.adapter.lora_target_modules == "all-linear"
    assert recipe.objective == BALoraConfig.preset("paper")
    assert recipe.model.dtype == "float32"
    assert recipe.data.dataset_train_split == "train[:100000]"
    training = recipe.training
    assert training["learning_rate"] == 2e-5
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 128
    assert (training["lr_scheduler_type"], training["warmup_steps"]) == ("cosine", 0.03)
    assert (training["num_train_epochs"], training["weight_decay"]) == (1, 0.0)
    assert (training["seed"], training["max_length"]) == (42, 512)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_recipe_without_a_model_says_so_and_nothing_else(path):
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    assert str(error.value) == (
        f"{path}: `model_name_or_path` is missing: add it to the recipe or pass "
        "`--model_name_or_path`."
    )


text = st.text(min_size=1).filter(str.strip)
recipes = st.fixed_dictionaries(
    {"model_name_or_path": text, "dataset_name": text, "output_dir": text},
    optional={
        "dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
        "method": st.sampled_from(["full", "lora", "pissa", "balora"]),
        "svd_coef": st.floats(0, 1),
        "diversity_coef": st.floats(0, 1),
        "dataset_train_split": st.sampled_from(["train", "train[:10%]"]),
        "prompt_template": st.none() | st.sampled_from(["alpaca", "none", "{instruction}\n2e-4"]),
        "overlong_rows": st.sampled_from(["error", "drop"]),
        "dry_run": st.booleans(),
        "learning_rate": st.floats(0, 1) | st.integers(0, 1),
        "max_length": st.none() | st.integers(1, 4096),
        "run_name": st.none() | text | st.sampled_from(["no", "2e-4", "null", "010"]),
        "lr_scheduler_kwargs": st.dictionaries(text, st.floats(0, 1) | st.text(), max_size=2),
        "report_to": st.lists(st.sampled_from(["tensorboard", "wandb"]), min_size=1),
    },
)


@given(recipes)
def test_a_written_recipe_loads_to_the_same(tmp_path_factory, values):
    from balora.config.values import dump_mapping

    folder = tmp_path_factory.mktemp("recipe")
    (folder / "first.yaml").write_text(dump_mapping(values), encoding="utf-8", newline="")
    recipe = load_recipe(folder / "first.yaml")
    (folder / "second.yaml").write_text(recipe.to_yaml(), encoding="utf-8", newline="")
    again = load_recipe(folder / "second.yaml")
    assert again == dataclasses.replace(recipe, run=RunConfig())
    assert again.to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize("more", [{}, {"task": "cola"}])
def test_a_written_recipe_does_not_say_what_the_call_did_with_an_output(more):
    needed = {name: NEEDED[name] for name in NEEDED if not more or name != "dataset_name"} | more
    verbs = {"overwrite": "true", "dry_run": "true", "resume_from_checkpoint": "true"}
    assert not verbs.keys() & load_recipe(None, {**needed, **verbs}).to_dict().keys()


def test_written_recipe_is_resolved():
    flat = load_recipe(None, {**NEEDED, "preset": "iclr2026", "svd_coef": "0"}).to_dict()
    assert (flat["consistency_coef"], flat["temperature"], flat["lora_r"]) == (0.025, 2.0, 128)
    assert "svd_k" not in flat  # it cannot act with `svd_coef` 0, so a recipe may not set it
    flat = load_recipe(None, {**NEEDED, "method": "full"}).to_dict()
    assert not [name for name in flat if name.startswith(("lora_", "pissa_"))]
