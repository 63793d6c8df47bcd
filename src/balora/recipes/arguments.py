"""From a recipe to the trainer's arguments, with the choices that are left to the machine made.

trl turns bf16 on wherever fp16 is off, so that a plain `SFTConfig()` fails on a CPU, and turns
gradient checkpointing on. Here bf16 follows the recipe, the machine and the type of the weights
(the paper trains in float32), and checkpointing is off unless the recipe asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from balora.config.fields import as_declared, missing_path
from balora.config.words import spelled
from balora.errors import ConfigError
from balora.recipes.load import known_fields

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from balora.recipes.recipe import Recipe

_REFUSALS = (ValueError, TypeError, AttributeError, KeyError, ImportError, OSError, RuntimeError)
"""What the classes of the arguments, and what they read, raise for a value they do not take."""

# transformers renamed these; the old name still works and warns on every start
_NEW_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Return the arguments of a recipe's trainer, complete for the machine it is called on.

    They are an `SFTConfig` for text generation, plain `TrainingArguments` for classification,
    where an evaluation follows each epoch unless the recipe says otherwise.

    Left to the machine where the recipe is silent: ``bf16`` (on where the accelerator supports it
    and `dtype` is not float32), ``use_cpu`` (on where there is no accelerator). Otherwise
    ``gradient_checkpointing`` is off and ``report_to`` is none.

    Raises:
        ConfigError: If their class refuses a combination of settings, which are named.
    """
    arguments_class = recipe.kind.arguments_class()
    names = {entry.name for entry in fields(arguments_class)}
    known = known_fields(recipe.kind)
    hints = {name: known[name].annotation for name in recipe.training}
    _check_files(recipe.training, hints)

    def build(given: Mapping[str, Any]) -> TrainingArguments:
        given = {name: as_declared(value, hints[name]) for name, value in given.items()}
        values = _renamed({**_defaults(recipe, given), **given}, dict(given), names)
        return cast("TrainingArguments", arguments_class(**values))

    try:
        args = build(recipe.training)
    except _REFUSALS as error:
        raise ConfigError(_named(error, recipe.training, build)) from error
    _check_stopping(recipe, args)
    return args


def _check_stopping(recipe: Recipe, args: TrainingArguments) -> None:
    """Refuse to stop early by a metric that is not measured, or without the model that was best."""
    patience = recipe.stopping.early_stopping_patience
    if patience is None:
        return
    missing = []
    if args.eval_strategy == "no":
        missing.append("`eval_strategy: steps` or `epoch`")
    if not args.load_best_model_at_end:
        missing.append("`load_best_model_at_end: true`, to end with the model that was best")
    if missing:
        raise ConfigError(
            f"`early_stopping_patience` is {patience}, so evaluations must say when to stop: set "
            f"{' and '.join(missing)}."
        )


def _check_files(training: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    problems = [
        f"`{name}` {found}"
        for name, value in training.items()
        if isinstance(value, str) and (found := missing_path(value, hints[name])) is not None
    ]
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _named(
    error: Exception, training: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Any]
) -> str:
    """Name the settings without which their class would not have refused the rest."""
    guilty = []
    for name in training:
        try:
            build({other: value for other, value in training.items() if other != name})
        except _REFUSALS:
            continue
        guilty.append(f"`{name}` is {spelled(training[name])}")
    what = " and ".join(guilty[:3]) if guilty else "the training settings are wrong"
    return f"{what}, which cannot work: {_sentence(error)}"


def _defaults(recipe: Recipe, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    import torch

    defaults = dict(recipe.kind.argument_defaults)
    if not torch.accelerator.is_available():
        defaults["use_cpu"] = True
    given = recipe.training if given is None else given
    wants_half = recipe.model.dtype != "float32" and not given.get("fp16")
    defaults["bf16"] = wants_half and _supports_bf16()
    return defaults


def _supports_bf16() -> bool:
    from transformers.utils import is_torch_bf16_gpu_available

    return bool(is_torch_bf16_gpu_available())


def _renamed(values: dict[str, Any], given: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Use the new name of a renamed setting where this version of transformers has it."""
    for old, new in _NEW_NAMES.items():
        if new not in names or old not in values:
            continue
        if old in given and new in given and given[old] != given[new]:
            raise ConfigError(
                f"`{old}` is {given[old]} and `{new}` is {given[new]}, but they are one setting; "
                f"keep `{new}`."
            )
        old_value = values.pop(old)
        values.setdefault(new, old_value)
    return values


def _sentence(error: Exception) -> str:
    """Return the message on one line, at most its first line where it is long."""
    text = str(error).strip() or type(error).__name__
    text = re.sub(r"\b[A-Z]\w+\.([A-Z_]+)\b", lambda enum: enum[1].lower(), text)
    line = " ".join(text.split())
    line = line if len(line) <= 400 else " ".join(text.splitlines()[0].split())
    return line if line.endswith(".") else line + "."
