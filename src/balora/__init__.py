"""BA-LoRA: fine-tune language models and keep what they knew.

The public names load what they need when they are first used, so that the command line's help does
not wait for torch. docs/api.md has an example of each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balora.anchored import get_balora_model, reference_mode
    from balora.config import BALoraConfig
    from balora.config.replay import ReplayConfig
    from balora.errors import ConfigError
    from balora.fused import FusedObjective
    from balora.models.classifier import load_classifier
    from balora.models.head import head_of
    from balora.objective import next_token_targets
    from balora.trainers import (
        BALoraSFTConfig,
        BALoraSFTTrainer,
        BALoraTrainer,
        BALoraTrainingArguments,
    )

_HOMES = {
    "BALoraConfig": "config",
    "BALoraSFTConfig": "trainers",
    "BALoraSFTTrainer": "trainers",
    "BALoraTrainer": "trainers",
    "BALoraTrainingArguments": "trainers",
    "ConfigError": "errors",
    "FusedObjective": "fused",
    "ReplayConfig": "config",
    "get_balora_model": "anchored",
    "head_of": "models.head",
    "load_classifier": "models.classifier",
    "next_token_targets": "objective",
    "reference_mode": "anchored",
}

__version__ = "0.1.0"
__all__ = [
    "BALoraConfig",
    "BALoraSFTConfig",
    "BALoraSFTTrainer",
    "BALoraTrainer",
    "BALoraTrainingArguments",
    "ConfigError",
    "FusedObjective",
    "ReplayConfig",
    "__version__",
    "get_balora_model",
    "head_of",
    "load_classifier",
    "next_token_targets",
    "reference_mode",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'balora' has no attribute {name!r}")
    return getattr(import_module(f"balora.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
