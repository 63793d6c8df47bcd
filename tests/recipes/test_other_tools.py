"""Recipes that were written for trl: each line that is not ours is named with the one that is."""

from __future__ import annotations

import dataclasses
import re

import pytest

from balora.errors import ConfigError
from balora.recipes import load_recipe, training_arguments
from balora.recipes.other_tools import here

# in the manner of trl's examples for SFT with LoRA
TRL = """\
# Model arguments
model_name_or_path: Qwen/Qwen2.5-1.5B
model_revision: main
torch_dtype: bfloat16
attn_implementation: sdpa

# PEFT
use_peft: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, k_proj, v_proj, o_proj]
lora_task_type: CAUSAL_LM

# Data arguments
dataset_name: trl-lib/Capybara
dataset_train_split: train
dataset_test_split: test
dataset_num_proc: 4
max_length: 2048
packing: false

# SFT trainer arguments
output_dir: outputs/qwen-sft
num_train_epochs: 1
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_use_reentrant: false
learning_rate: 2.0e-4
lr_scheduler_type: cosine
warmup_ratio: 0.03
logging_steps: 25
eval_strategy: steps
eval_steps: 100
report_to: [tensorboard]
seed: 42
"""
OTHERS = (
    "torch_dtype",
    "use_peft",
    "lora_task_type",
    "gradient_checkpointing_use_reentrant",
    "warmup_ratio",
)


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "trl.yaml"
        path.write_text(text)
        return path

    return write


def mended(text, message):
    """Return a recipe with every line replaced as the message says."""
    lines = dict(re.findall(r"`(\w+)` is no field of a recipe; [^;]*?: write `([^`]+)`", message))
    out = re.findall(r"`(\w+)` is no field of a recipe; [^;]*?: leave it out", message)
    kept = []
    for line in text.splitlines():
        name = line.partition(":")[0]
        if name not in out:
            kept.append(lines.get(name, line))
    return "\n".join(kept) + "\n"


def test_a_recipe_of_trl_is_refused_with_every_line_that_makes_it_one(written):
    with pytest.raises(ConfigError) as error:
        load_recipe(written(TRL))
    message = str(error.value)
    assert [name for name in OTHERS if f"`{name}` is no field of a recipe; " in message] == [
        *OTHERS
    ]
    assert message.count("is no field") == len(OTHERS)
    recipe = load_recipe(written(mended(TRL, message)))
    assert (recipe.adapter.method, recipe.adapter.lora_dropout) == ("lora", 0.05)
    assert recipe.model.dtype == "bfloat16"
    args = training_arguments(recipe)
    assert (args.warmup_steps, args.learning_rate, args.max_length) == (0.03, 2e-4, 2048)
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_what_the_lines_in_their_place_leave_wrong_is_said_at_once(written):
    with pytest.raises(ConfigError) as error:
        load_recipe(written(TRL.replace("use_peft: true", "method: balora")))
    message = str(error.value)
    assert "`warmup_steps: 0.03`" in message
    assert "`lora_dropout` is 0.05, but the start (`adapter_init` pissa) has no dropout" in message
    assert message.endswith("set it to 0.")
    with pytest.raises(ConfigError, match=r"`warmup_ratio` .*; `seed` must be from 0 to"):
        load_recipe(written(TRL.replace("seed: 42", "seed: -1")))


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("use_peft: false", "write `method: full` in its place"),
        ("use_peft: true\nmethod: pissa", "or all weights: leave it out"),
        ("warmup_ratio: 0.1", "write `warmup_steps: 0.1` in its place"),
        ("warmup_ratio: 0.1\nwarmup_steps: 10", "it is called `warmup_steps` here: leave it out"),
        ("overwrite_output_dir: true", "write `overwrite: true` in its place"),
        ("quantization_bit: 4", "in the name here: write `load_in_4bit: true` in its place"),
        ("bnb_4bit_use_double_quant: true", "write `use_bnb_nested_quant: true` in its place"),
        ("bnb_4bit_quant_storage: uint8", "are stored as bytes: leave it out"),
        ("use_dora: true", "the adapter is LoRA: leave it out"),
        ("dataset_streaming: true", "it is called `streaming` here: write `streaming: true`"),
        ("datasets: [{path: trl-lib/Capybara}]", "which `dataset_name` names: leave it out"),
    ],
)
def test_the_one_line_to_change(written, line, fix):
    head = "model_name_or_path: m\ndataset_name: d\noutput_dir: o\n"
    name = line.partition(":")[0]
    with pytest.raises(ConfigError, match=f"`{name}` is no field of a recipe; .*{fix}"):
        load_recipe(written(head + line + "\n"))
    given = dict(one.split(": ", 1) for one in line.splitlines())
    with pytest.raises(ConfigError, match=f"`--{name}` is no field of a recipe; .*{fix}") as error:
        load_recipe(written(head), given)
    assert "got the text" not in str(error.value)


def test_every_setting_of_trls_models_is_a_field_or_is_answered():
    from trl import ModelConfig, ScriptArguments

    from balora.recipes import known_fields

    names = {
        entry.name for kind in (ModelConfig, ScriptArguments) for entry in dataclasses.fields(kind)
    }
    names -= known_fields().keys()
    assert names >= {"use_peft", "bnb_4bit_quant_storage"}
    assert not [name for name in names if here(name, {name: True}) is None]
