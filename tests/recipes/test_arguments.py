"""What `SFTConfig` gets from a recipe, and what is left to the machine."""

from __future__ import annotations

import pytest

from balora.errors import ConfigError
from balora.recipes import arguments as arguments_module
from balora.recipes import load_recipe, training_arguments

NEEDED = {"model_name_or_path": "gpt2", "dataset_name": "rows.jsonl", "output_dir": "out"}


@pytest.fixture
def arguments(monkeypatch):
    def build(*, supported: bool = False, **overrides: str):
        monkeypatch.setattr(arguments_module, "_supports_bf16", lambda: supported)
        return training_arguments(load_recipe(None, {**NEEDED, **overrides}))

    return build


def test_a_bare_recipe_runs_on_a_cpu(arguments):
    args = arguments()
    assert (args.bf16, args.fp16, args.gradient_checkpointing) == (False, False, False)
    assert args.report_to == []
    assert args.output_dir == "out"


def test_values_of_the_recipe_arrive(arguments):
    args = arguments(learning_rate="2e-4", warmup_steps="0.03", lr_scheduler_type="cosine")
    assert (args.learning_rate, args.warmup_steps) == (2e-4, 0.03)
    assert args.lr_scheduler_type == "cosine"


def test_a_whole_number_arrives_as_a_float_where_that_is_declared(arguments):
    args = arguments(router_aux_loss_coef="0", warmup_steps="2", num_train_epochs="3")
    for name in ("router_aux_loss_coef", "warmup_steps", "num_train_epochs"):
        assert type(getattr(args, name)) is float


def test_checkpointing_is_on_where_the_recipe_says_so(arguments):
    assert arguments(gradient_checkpointing="true").gradient_checkpointing is True
    args = arguments(
        gradient_checkpointing="true", gradient_checkpointing_kwargs="{use_reentrant: false}"
    )
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize(
    ("supported", "dtype", "settings", "expected"),
    [
        (True, "bfloat16", {}, True),
        (True, "auto", {}, True),
        (True, "float32", {}, False),  # the paper trains in float32
        (False, "bfloat16", {}, False),
        (True, "bfloat16", {"bf16": "false"}, False),
        (False, "float32", {"bf16": "true"}, True),
        (True, "bfloat16", {"fp16": "true"}, False),
        (True, "bfloat16", {"fp16": "false"}, True),
    ],
)
def test_bf16_follows_recipe_machine_and_weights(arguments, supported, dtype, settings, expected):
    # on a CPU bf16 needs `use_cpu`, which no accelerator implies
    assert arguments(supported=supported, dtype=dtype, **settings).bf16 is expected


@pytest.mark.parametrize("available", [True, False])
def test_the_cpu_is_chosen_only_without_an_accelerator(monkeypatch, available):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: available)
    defaults = arguments_module._defaults(load_recipe(None, NEEDED))
    assert defaults.get("use_cpu", False) is not available


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"load_best_model_at_end": "true"},
            r"cannot work: --load_best_model_at_end requires the save and eval strategy to match",
        ),
        ({"fp16": "true", "bf16": "true"}, "At most one of fp16 and bf16 can be True"),
        (
            {"fp16": "true", "bf16": "true"},
            "`fp16` is true and `bf16` is true, which cannot work: ",
        ),
        (
            {"early_stopping_patience": "2"},
            "`early_stopping_patience` is 2, so evaluations must say when to stop: set "
            "`eval_strategy: steps` or `epoch` and `load_best_model_at_end: true`",
        ),
        ({"tf32": "true"}, "`tf32` is true, which cannot work: "),
        ({"accelerator_config": "{nope: 1}"}, "`accelerator_config` is {'nope': 1}, which cannot"),
        ({"accelerator_config": "nowhere.json"}, "`accelerator_config` is 'nowhere.json', which d"),
        ({"fsdp_config": "."}, "`fsdp_config` is '.', which is a folder; name a file"),
        ({"dataloader_prefetch_factor": "2"}, "`dataloader_prefetch_factor` is 2, which cannot"),
        (
            {"gradient_checkpointing": "true", "activation_checkpointing": "false"},
            "they are one setting; keep `activation_checkpointing`",
        ),
    ],
)
def test_what_trl_refuses_is_one_sentence(arguments, settings, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        arguments(**settings)
    assert error.value.exit_status == 2
    assert "\n" not in str(error.value)
