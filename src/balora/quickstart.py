"""``balora quickstart``: the main job on embedded defaults, from a recipe to what it changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from balora.assets import asset_path
from balora.config import DataConfig
from balora.config.values import read_mapping
from balora.errors import BaloraError
from balora.evaluation import MeasureOptions, format_table
from balora.evaluation.metrics import metric_of
from balora.evaluation.run import evaluate_runs
from balora.models.source import source_of
from balora.recipes import Recipe
from balora.recipes.load import check_recipe, parse_overrides
from balora.recipes.methods import REPLAY_FIELDS
from balora.staging import work_folder, writing
from balora.state import read_json
from balora.trainers import BALoraSFTTrainer
from balora.trainers.card import lines_that_load
from balora.trainers.preflight import check_run
from balora.trainers.run import run_recipe

_PLAIN_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, inputs, expected = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
with torch.no_grad():
    logits = model(input_ids=torch.load(inputs, weights_only=True)).logits
expected = torch.load(expected, weights_only=True)
assert "balora" not in sys.modules
print(f"{float((logits - expected).abs().max() / expected.abs().max()):.1e}")
"""
"""Run in a process of its own, which never imports balora."""


def quickstart(given: Mapping[str, str]) -> str:
    """Fine-tune the embedded model on the embedded data and return what changed, as text.

    Args:
        given: Recipe fields that replace those of the embedded recipe.

    Raises:
        ConfigError: As for ``balora train``.
        BaloraError: If the saved adapter does not reproduce the trained model in plain PEFT.
    """
    base = asset_path("tiny_lm")
    embedded = {
        "model_name_or_path": str(base),
        "dataset_name": str(asset_path("quickstart/train.jsonl")),
    }
    # without the packaged file's name in messages: what can be wrong is what was given
    content = read_mapping(asset_path("quickstart/recipe.yaml")) | embedded
    recipes = _recipes(content, parse_overrides(content, given))
    recipe = list(recipes.values())[-1]
    # the first is checked by being run
    for one in [*recipes.values()][0 if recipe.run.dry_run else 1 :]:
        check_run(one)
    if recipe.run.dry_run:
        return recipe.to_yaml().rstrip()
    trainers = {name: run_recipe(one) for name, one in recipes.items()}
    metrics = evaluate_runs(
        [_folder(trainer) for trainer in trainers.values()],
        source_of(recipe),
        DataConfig(dataset_name=str(asset_path("quickstart/test.jsonl"))),
        retention_file=asset_path("quickstart/retention.txt"),
        options=MeasureOptions(batch_size=64, max_new_tokens=48),
    )
    columns = {name: metrics[_folder(trainer).name] for name, trainer in trainers.items()}
    num_examples = metrics["base"].counts["num_examples"]
    lines = [
        *([_pretraining_line(base)] if recipe.model.model_name_or_path == str(base) else []),
        f"Fine-tuned with {recipe.adapter.method}; {num_examples} held-out problems:",
        "",
        format_table(
            {"before": metrics["base"].metrics}
            | {name: column.metrics for name, column in columns.items()}
        ),
        "",
    ]
    for name, one in trainers.items():
        one.write_card(_before_and_after(metrics["base"].metrics, columns[name].metrics))
    trainer = trainers.pop(list(trainers)[-1])
    lines += [
        f"The run with the paper's setting is in {_folder(one)}." for one in trainers.values()
    ]
    run = _folder(trainer)
    if not recipe.has_adapter:
        return "\n".join([*lines, f"The model is in {run}:", "", lines_that_load(trainer, run)])
    return "\n".join([*lines, _plain_peft_line(trainer)])


def _recipes(content: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Recipe]:
    """Return what is trained by the name of its column: the recommended beside the paper's."""
    without_replay = {name: v for name, v in content.items() if name not in REPLAY_FIELDS}
    recipe = check_recipe(without_replay, given)
    if recipe.adapter.preset != "recommended" or recipe.replay.replay is None:
        return {"after": recipe}
    folder = f"{Path(recipe.training['output_dir'])}-paper"
    paper = {name: value for name, value in given.items() if name not in REPLAY_FIELDS}
    paper |= {"preset": "paper", "output_dir": folder}
    return {
        "paper": check_recipe(without_replay, paper),
        "recommended": check_recipe(content, given),
    }


def _before_and_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a card: task and forgetting, of the pre-trained and the trained."""
    pairs = (("before", before), ("after", after))
    return {
        f"{when}: {metric_of(name).title}": metrics[name]
        for name, value in before.items()
        for when, metrics in pairs
        if value is not None and metrics.get(name) is not None
    }


def _folder(trainer: BALoraSFTTrainer) -> Path:
    return Path(trainer.args.output_dir)


def _pretraining_line(base: Path) -> str:
    log = read_json(base / "pretrain_log.json", "Install balora again.")
    return (
        f"The embedded model ({log['num_parameters']:,} parameters) has a held-out loss of "
        f"{log['held_out_loss']:.3f} nats per token; untrained it was "
        f"{log['held_out_loss_untrained']:.3f}."
    )


def _plain_peft_line(trainer: BALoraSFTTrainer) -> str:
    run = _folder(trainer)
    return (
        f"The adapter is in {run}, a plain LoRA. Loaded in plain PEFT, in a process without "
        f"balora, its logits differ from the trained model's by {plain_peft_error(trainer)}:\n\n"
        f"{lines_that_load(trainer, run)}"
    )


def plain_peft_error(trainer: BALoraSFTTrainer) -> str:
    """Return the largest difference between the saved adapter in plain PEFT and the trained model.

    Relative to the largest logit, on a few tokens; the adapter is loaded by another process.

    Raises:
        BaloraError: If that process fails; its last line says how.
    """
    model, run = trainer.model.eval(), _folder(trainer)
    input_ids = torch.arange(2, 34, device=model.device)[None]
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits
    with writing(run, "`output_dir`"), work_folder(run) as work:
        files = [work / "new" / "inputs.pt", work / "new" / "logits.pt"]
        for file, tensor in zip(files, (input_ids, logits), strict=True):
            torch.save(tensor.cpu(), file)
        words = [model.config.name_or_path, str(run), *map(str, files)]
        command = [sys.executable, "-c", _PLAIN_PEFT, *words]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BaloraError(f"plain PEFT cannot load {run}: {result.stderr.strip().splitlines()[-1]}")
    return result.stdout.strip()
