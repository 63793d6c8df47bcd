"""From a recipe to the trainer's arguments, with the choices that are left to the machine made.

trl turns bf16 on wherever fp16 is off, so that a plain `SFTConfig()` fails on a CPU, and turns
gradient checkpointing on. Here bf16 follows the recipe, the machine and the type of the weights
(the paper trains in float32), and checkpointing is off unless the recipe asks for it.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from balora.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from balora.recipes.recipe import Recipe

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
        ConfigError: If their class refuses a combination of settings; its own words.
    """
    arguments_class = recipe.kind.arguments_class()
    values = {**_defaults(recipe), **recipe.training}
    names = {entry.name for entry in fields(arguments_class)}
    try:
        return cast(
            "TrainingArguments", arguments_class(**_renamed(values, recipe.training, names))
        )
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"the training settings cannot work: {_sentence(error)}") from error


def _defaults(recipe: Recipe) -> dict[str, Any]:
    import torch

    defaults: dict[str, Any] = {"report_to": "none", "gradient_checkpointing": False}
    if not torch.accelerator.is_available():
        defaults["use_cpu"] = True
    wants_half = recipe.model.dtype != "float32" and not recipe.training.get("fp16")
    defaults["bf16"] = wants_half and _supports_bf16()
    return defaults | dict(recipe.kind.argument_defaults)


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
