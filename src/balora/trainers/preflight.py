"""What a run would be refused for, found without reading a weight and without writing anything.

`--dry_run` builds the run itself, data, tokenizer, adapter and trainer, around a model that has its
shape only: whatever refuses a real run before its first step refuses this one too.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import integration_utils

from balora.config.words import spelled
from balora.errors import ConfigError
from balora.models.blank import without_weights
from balora.recipes import Recipe, training_arguments
from balora.recipes.kinds import load
from balora.trainers.memory_plan import Tokens, memory_plan
from balora.trainers.output import checkpoint_to_resume, settings_of
from balora.trainers.place import check_place
from balora.trainers.sharding import check_layout
from balora.trainers.sharding_settings import REPLAYED, refuse_reading_once, sharding_of

_REFUSALS = (
    *(ValueError, TypeError, AttributeError, KeyError, AssertionError),
    *(ImportError, RuntimeError, NotImplementedError, ZeroDivisionError),
)
"""What optimizers and schedules raise for a setting that they do not take."""


def check_run(recipe: Recipe) -> list[str]:
    """Check everything about a run that can be checked without weights; nothing is left behind.

    Returns:
        How much memory one process will need in training, by what it is for, line by line.

    Raises:
        ConfigError: If a setting cannot work.
        DataError: If the data cannot be trained on, naming file and line.
    """
    check_spread(recipe, recipe.training)
    args = training_arguments(recipe)
    check_arguments_work(args, recipe.training)
    check_place(recipe)
    checkpoint_to_resume(recipe, args, settings_of(recipe, args))
    prepare = load(recipe.kind.prepare)
    with tempfile.TemporaryDirectory(prefix="balora-") as folder, without_weights():
        elsewhere = {**recipe.training, "output_dir": folder, "push_to_hub": False}
        recipe = dataclasses.replace(recipe, training=elsewhere)
        trainer = prepare(recipe, training_arguments(recipe)).trainer
        return _memory_lines(trainer, recipe)


def check_spread(recipe: Recipe, arguments: Any) -> None:
    """Refuse every way to spread a run over processes that cannot work.

    Args:
        recipe: Of the run.
        arguments: Its fields, or the trainer's arguments made of them.

    Raises:
        ConfigError: Naming the setting.
    """
    start = recipe.objective if recipe.has_adapter else None
    check_layout(arguments, start, recipe.quantization.scheme)
    if recipe.replay.is_on:
        refuse_reading_once(sharding_of(arguments), REPLAYED)


def _memory_lines(trainer: Any, recipe: Recipe) -> list[str]:
    length = getattr(recipe.data, "max_length", None) or trainer.args.max_length
    if length is None:  # rows are not cut
        length = max(map(len, trainer.train_dataset["input_ids"]))
    tokens = Tokens(trainer.args.per_device_train_batch_size, length)
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    plan = memory_plan(trainer, recipe.quantization, tokens, optimizer=name)
    return plan.lines(tokens)


def check_arguments_work(args: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Refuse trackers that are not installed, and an optimizer or schedule that cannot be made.

    Args:
        args: Of the run.
        given: What the recipe says of them.

    Raises:
        ConfigError: Naming the settings.
    """
    _check_trackers(args)
    of_optimizer = ["optim", "optim_args", "optim_target_modules"]
    optimizer = _made(lambda: _optimizer(args), of_optimizer, given)
    of_schedule = ["lr_scheduler_type", "lr_scheduler_kwargs"]
    _made(lambda: _schedule(args, optimizer), of_schedule, given)


def _check_trackers(args: TrainingArguments) -> None:
    there = integration_utils.get_available_reporting_integrations()
    for name in args.report_to or ():
        if name not in (*there, "flyte"):  # of which transformers does not say it
            raise ConfigError(
                f"`report_to` is {name}, which is not installed: install it, or leave it out."
            )


def _optimizer(args: TrainingArguments) -> torch.optim.Optimizer:
    model = nn.Sequential(nn.Linear(2, 2))
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if "optimizer_dict" in settings or "model" in settings or "params" in settings:
        return torch.optim.SGD(model.parameters(), lr=0.1)  # made for the layers of the real model
    made: torch.optim.Optimizer = kind(model.parameters(), **settings)
    return made


def _schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> Any:
    num_steps = args.max_steps if args.max_steps > 0 else 100
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs or {},
    )


def _made(make: Callable[[], Any], names: list[str], given: Mapping[str, Any]) -> Any:
    try:
        return make()
    except _REFUSALS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        settings = [f"`{name}` is {spelled(given[name])}" for name in names if name in given]
        what = " and ".join(settings) or f"`{names[0]}` is left out"
        raise ConfigError(f"{what}, which cannot work: {reason}.") from error
