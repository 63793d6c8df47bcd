"""Recipes of classification: their fields, what they refuse, and the table of the paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from transformers import TrainingArguments

from balora.config import AdapterConfig, BALoraConfig
from balora.config.classification import ClassificationConfig
from balora.config.values import dump_mapping
from balora.errors import ConfigError
from balora.recipes import CLASSIFICATION, GENERATION, known_fields, load_recipe, training_arguments

GLUE = Path(__file__).parents[2] / "recipes" / "glue.yaml"
NEEDED = {"task": "cola", "model_name_or_path": "roberta-base", "output_dir": "out"}
ROBERTA, DEBERTA = "FacebookAI/roberta-large", "microsoft/deberta-v3-base"
BERT, GPT2 = "google-bert/bert-large-uncased", "openai-community/gpt2-xl"

# Table 1 of the paper: epochs, batch size, learning rate, alpha
TABLE_1 = {
    (ROBERTA, "mnli"): (10, 32, 1e-4, 16),
    (ROBERTA, "sst2"): (10, 32, 2e-4, 16),
    (ROBERTA, "mrpc"): (20, 16, 6e-4, 8),
    (ROBERTA, "cola"): (20, 16, 4e-4, 8),
    (ROBERTA, "qnli"): (10, 6, 1e-4, 8),
    (ROBERTA, "qqp"): (20, 32, 3e-4, 8),
    (ROBERTA, "rte"): (20, 16, 3e-4, 16),
    (ROBERTA, "stsb"): (30, 16, 3e-4, 16),
    (DEBERTA, "mnli"): (5, 16, 5e-5, 8),
    (DEBERTA, "sst2"): (20, 16, 3e-5, 8),
    (DEBERTA, "mrpc"): (20, 32, 2e-4, 8),
    (DEBERTA, "cola"): (20, 16, 1e-4, 8),
    (DEBERTA, "qnli"): (10, 32, 1e-4, 16),
    (DEBERTA, "qqp"): (10, 16, 1e-4, 8),
    (DEBERTA, "rte"): (50, 16, 1e-4, 8),
    (DEBERTA, "stsb"): (20, 8, 3e-4, 8),
}
LAYERS = {ROBERTA: "query_value", DEBERTA: "all", BERT: "query_value", GPT2: "query_key_value"}
TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str, *, needed: bool = True) -> Path:
        path = tmp_path / "recipe.yaml"
        head = "".join(f"{name}: {value}\n" for name, value in NEEDED.items()) if needed else ""
        path.write_text(head + text)
        return path

    return write


def glue(model, task, **given):
    return load_recipe(GLUE, {"model_name_or_path": model, "task": task, **given})


# the fields


def test_the_adapter_is_small_unless_the_recipe_says_otherwise(recipe_file):
    adapter = load_recipe(recipe_file("")).adapter
    assert (adapter.lora_r, adapter.lora_alpha) == (8, 8)
    adapter = load_recipe(recipe_file("lora_r: 4\nlora_alpha: 16\n")).adapter
    assert (adapter.lora_r, adapter.lora_alpha) == (4, 16)
    assert load_recipe(recipe_file("method: full\n")).adapter.method == "full"


def test_a_task_makes_a_recipe_one_of_classification(recipe_file):
    recipe = load_recipe(recipe_file("label_noise: 0.2\nlearning_rate: 1e-3\nspace: features\n"))
    assert recipe.kind is CLASSIFICATION
    assert recipe.data == ClassificationConfig(task="cola", label_noise=0.2)
    assert recipe.objective == BALoraConfig.preset("paper", task="nlu", space="features")
    assert recipe.objective.diversity_coef == 4e-4  # of text generation it is 3e-4
    assert recipe.training == {"output_dir": "out", "learning_rate": 1e-3}


def test_a_task_on_the_command_line_is_enough():
    assert load_recipe(None, NEEDED).kind is CLASSIFICATION
    given = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    assert load_recipe(None, given).kind is GENERATION


def test_no_field_has_two_owners():
    parts = CLASSIFICATION.parts.values()
    own = [field.name for part in parts for field in dataclasses.fields(part)]
    training = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert len(set(own)) == len(own)
    assert not set(own) & training
    assert set(known_fields(CLASSIFICATION)) == set(own) - set(CLASSIFICATION.foreign) | training


def test_the_arguments_are_those_of_transformers_and_evaluate_each_epoch():
    args = training_arguments(load_recipe(None, NEEDED))
    assert type(args) is TrainingArguments
    assert (args.eval_strategy, args.bf16, args.report_to) == ("epoch", False, [])
    args = training_arguments(load_recipe(None, {**NEEDED, "eval_strategy": "no"}))
    assert args.eval_strategy == "no"


def test_lists_and_mappings_on_the_command_line():
    given = {
        "task": "classification",
        "dataset_name": "rows.csv",
        "class_names": "no,yes",
        "class_fractions": "{yes: 0.1}",
        "out_of_domain": "[{name: x, dataset_name: x.csv, label_map: {a: [yes], b: no, 3: null}}]",
    }
    data = load_recipe(None, {**NEEDED, **given}).data
    assert data.named_classes == ("no", "yes")
    assert data.named_fractions == {"yes": 0.1}
    assert data.out_of_domain_sets[0].mapped_labels == {"a": ("yes",), "b": ("no",), "3": None}


@pytest.mark.parametrize("method", ["full", "lora", "pissa", "balora"])
def test_a_written_recipe_loads_to_the_same(tmp_path, recipe_file, method):
    text = (
        "class_fractions: {acceptable: 0.5}\ntransform_seed: 3\ndtype: auto\n"
        "out_of_domain:\n- name: x\n  dataset_name: x.tsv\n"
        "  label_map: {0: unacceptable, 1: acceptable, 2: null}\n"
    )
    recipe = load_recipe(recipe_file(text), {"method": method})
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "again.yaml")
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert not set(recipe.to_dict()) & {"temperature", "entropy_top_k", "svd_max_tokens"}
    assert ("space" in recipe.to_dict()) == (method == "balora")


def test_a_written_recipe_of_text_generation_has_no_space():
    given = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    assert "space" not in load_recipe(None, given).to_dict()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("task: cloa", r"`task` must be one of .* \(did you mean `cola`\?\)"),
        ("label_colum: y", r"`label_colum` is no field .*did you mean `label_column`"),
        ("max_length: 0", r"`max_length` must be 1 or greater, got 0"),
        ("label_noise: 1.5", r"`label_noise` must be from 0 to 1, got 1.5"),
        ("label_noise: true", r"`label_noise` must be a number, got true"),
        ("temperature: 2.0", r"`temperature` is a field of text generation only, and"),
        ("entropy_top_k: 5", r"`entropy_top_k` is a field of text generation only, and"),
        ("svd_max_tokens: 64", r"`svd_max_tokens` is a field of text generation only, and"),
        (
            "svd_denominator: frobenius",
            r"`svd_denominator` is a field of text generation only, and",
        ),
        ("svd_variance_coef: 0.1", r"`svd_variance_coef` is a field of text generation only, and"),
        ("preset: iclr2026", r"`preset` is iclr2026, which is for text generation \(nlg\) only"),
        ("space: feature", r"`space` must be one of `logits`, `features`.*did you mean `features`"),
        ("method: pissa\nspace: features", r"`space` is features, but every coefficient is 0"),
        ("packing: true", r"`packing` is a field of text generation only, and this is classif"),
        ("prompt_column: q", r"`prompt_column` is a field of text generation only"),
        ("max_seq_length: 5", r"it is called `max_length` here"),
        ("class_names: [a, b]", r"`class_names` is set, but task cola has its own"),
        ("prediction_loss_only: true", r"`prediction_loss_only` is true, which leaves no metrics"),
        ("eval_do_concat_batches: false", r"`eval_do_concat_batches` is false, .* set it to true"),
        ("label_smoothing_factor: 0.1", r"`label_smoothing_factor` is 0.1, which changes the task"),
        ("method: full\nconsistency_coef: 0.1", r"full fine-tuning would need a second copy"),
        ("rows: {}", r"`rows` must give for each model its `tasks`"),
    ],
)
def test_a_wrong_line_is_refused_in_one_sentence(recipe_file, line, sentence):
    path = recipe_file(line + "\n")
    if line.startswith("task"):
        path = recipe_file(f"model_name_or_path: m\noutput_dir: o\n{line}\n", needed=False)
    with pytest.raises(ConfigError, match=sentence) as error:
        load_recipe(path)
    assert error.value.exit_status == 2
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"space": "features"},
            r"`--space` is a field of classification only, and this is text generation; leave",
        ),
        ({"label_column": "y"}, r"`--label_column` is a field of classification only.*set `task`"),
        ({"rows": "x"}, r"`--rows` belongs into a recipe's file"),
    ],
)
def test_text_generation_refuses_what_is_classifications(given, sentence):
    needed = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    with pytest.raises(ConfigError, match=sentence):
        load_recipe(None, {**needed, **given})


def test_all_problems_are_listed_at_once(recipe_file):
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe_file("lora_r: 1.5\ntemperature: 2.0\npacking: true\n"), {"optim": "x"})
    for name in ("`lora_r`", "`temperature`", "`packing`", "`--optim`"):
        assert name in str(error.value)
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe_file("lora_r: 0\nsvd_k: 2.5\nlabel_noise: 7.0\n"))
    for name in (
        "`lora_r` must",
        "`svd_k` must be greater",
        "`label_noise` must",
    ):
        assert name in str(error.value)


def test_own_data_must_be_named():
    with pytest.raises(ConfigError, match="`dataset_name` is missing, and task regression has no"):
        load_recipe(None, {**NEEDED, "task": "regression"})


# the table


@pytest.mark.parametrize(("model", "task"), TABLE_1)
def test_every_cell_of_table_1(model, task):
    recipe = glue(model, task)
    training = recipe.training
    found = (
        training["num_train_epochs"],
        training["per_device_train_batch_size"],
        training["learning_rate"],
        recipe.adapter.lora_alpha,
    )
    assert found == TABLE_1[model, task]
    assert (training["lr_scheduler_type"], training["weight_decay"]) == ("linear", 0.0)
    assert (recipe.model.model_name_or_path, recipe.data.task) == (model, task)


@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize("task", TASKS)
def test_every_model_has_every_task_and_what_all_share(model, task):
    recipe = glue(model, task)
    assert recipe.adapter == AdapterConfig(
        lora_r=8, lora_alpha=recipe.adapter.lora_alpha, lora_target_modules=LAYERS[model]
    )
    assert recipe.objective == BALoraConfig.preset("paper", task="nlu")
    assert recipe.model.dtype == "float32"
    assert "warmup_steps" not in recipe.training
    assert set(recipe.training) >= {"num_train_epochs", "learning_rate"}
    name = model.split("/")[1]
    assert recipe.training["output_dir"] == f"outputs/glue/{name}-{task}"


def test_the_models_whose_settings_are_ours_are_marked():
    text = GLUE.read_text()
    mark = text.index("OUR choice, not the paper's")
    assert text.index(DEBERTA + ":") < mark < text.index(BERT + ":") < text.index(GPT2 + ":")


@pytest.mark.parametrize("method", ["full", "lora", "pissa", "balora"])
def test_the_table_serves_every_method(method):
    recipe = glue(ROBERTA, "rte", method=method)
    assert recipe.adapter.method == method
    assert recipe.training["learning_rate"] == 3e-4
    if method == "full":
        assert recipe.adapter == AdapterConfig(method="full")
    else:
        assert (recipe.adapter.lora_r, recipe.adapter.lora_alpha) == (8, 16)


def test_the_command_line_goes_before_the_row():
    recipe = glue(
        ROBERTA, "rte", learning_rate="7e-4", lora_target_modules="all", output_dir="elsewhere"
    )
    assert recipe.training["learning_rate"] == 7e-4
    assert recipe.training["num_train_epochs"] == 20
    assert recipe.adapter.lora_target_modules == "all"
    assert recipe.training["output_dir"] == "elsewhere"


def test_a_row_goes_before_its_model_and_that_before_the_fields_beside_the_table(recipe_file):
    table = (
        "lora_r: 1\nlora_alpha: 2\nseed: 3\n"
        "rows:\n  roberta-base:\n    lora_r: 4\n    lora_alpha: 5\n"
        "    tasks: {cola: {lora_r: 6}}\n"
    )
    recipe = load_recipe(recipe_file(table))
    assert (recipe.adapter.lora_r, recipe.adapter.lora_alpha) == (6, 5)
    assert recipe.training["seed"] == 3


def test_the_written_recipe_is_flat(tmp_path):
    recipe = glue(DEBERTA, "mnli")
    flat = recipe.to_dict()
    assert "rows" not in flat
    assert (flat["num_train_epochs"], flat["lora_target_modules"]) == (5, "all")
    (tmp_path / "flat.yaml").write_text(dump_mapping(flat))
    assert load_recipe(tmp_path / "flat.yaml") == recipe


COLUMNS = {
    "num_train_epochs": "1",
    "per_device_train_batch_size": "2",
    "learning_rate": "1e-3",
    "lora_alpha": "4",
}


def test_another_model_needs_every_column():
    recipe = glue("./mine", "rte", **COLUMNS)
    assert (recipe.adapter.lora_alpha, recipe.adapter.lora_r) == (4, 8)
    assert recipe.adapter.lora_target_modules == "all-linear"
    assert recipe.training["output_dir"] == "outputs/glue/mine-rte"
    some = {name: value for name, value in COLUMNS.items() if name != "learning_rate"}
    with pytest.raises(ConfigError) as error:
        glue("./mine", "rte", **some)
    message = str(error.value)
    assert message.startswith(f"{GLUE}: there is no row for the model `./mine`")
    assert message.endswith("give its fields as options: `--learning_rate`.")
    assert all(name in message for name in (ROBERTA, DEBERTA, BERT, GPT2, *TASKS))
    assert "\n" not in message
    # full fine-tuning has no alpha
    del some["lora_alpha"]
    assert glue("./mine", "rte", method="full", learning_rate="1", **some).adapter.method == "full"


def test_another_task_of_a_known_model():
    given = {"dataset_name": "rows.csv"}
    with pytest.raises(ConfigError, match=r"no row for task `classification` of FacebookAI/rob"):
        glue(ROBERTA, "classification", **given)
    recipe = glue(ROBERTA, "classification", **given, **COLUMNS)
    assert recipe.adapter.lora_target_modules == "query_value"
    assert recipe.data.dataset_name == "rows.csv"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, r"`model_name_or_path` is missing: pass `--model_name_or_path`; `task` is missing"),
        ({"task": "cola"}, r"`model_name_or_path` is missing: pass .* There are rows for Face"),
        ({"model_name_or_path": ROBERTA}, r"`task` is missing: pass `--task`\. There are rows"),
        (
            {"model_name_or_path": ROBERTA, "task": "cloa"},
            r"no row for task `cloa` \(did you mean `cola`\?\) of FacebookAI/roberta-large",
        ),
        (
            {"model_name_or_path": "roberta-large", "task": "cola"},
            r"no row for the model `roberta-large` \(did you mean `FacebookAI/roberta-large`\?\)",
        ),
    ],
)
def test_a_row_that_is_not_there(given, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        load_recipe(GLUE, given)
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("rows: [1]", r"`rows` must give for each model its `tasks`, a mapping from a task to"),
        ("rows: {roberta-base: 1}", r"`rows`, `roberta-base` has no `tasks`"),
        ("rows: {roberta-base: {tasks: {}}}", r"`rows`, `roberta-base` has no `tasks`"),
        (
            "rows: {roberta-base: {tasks: {cola: [1, 2]}}}",
            r"`rows`, `roberta-base`: `cola` must be a mapping of fields, got \[1, 2\]",
        ),
        (
            "rows: {roberta-base: {tasks: {cola: {lora_rr: 1}}}}",
            r"`lora_rr` is no field of a recipe \(did you mean `lora_r`\?\)",
        ),
        (
            "rows: {roberta-base: {tasks: {cola: {lora_r: 1.5}}}}",
            r"`lora_r` must be a whole number, got 1.5",
        ),
    ],
)
def test_rows_that_are_none(recipe_file, rows, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_recipe(recipe_file(rows + "\n"))
