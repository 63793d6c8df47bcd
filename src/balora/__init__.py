"""BA-LoRA: fine-tune language models and keep what they knew.

The public names load what they need when they are first used, so that the command line's help does
not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balora.config import BALoraConfig
    from balora.trainers import BALoraSFTTrainer, BALoraTrainer

_HOMES = {
    "BALoraConfig": "balora.config",
    "BALoraSFTTrainer": "balora.trainers",
    "BALoraTrainer": "balora.trainers",
}

__version__ = "0.1.0"
__all__ = ["BALoraConfig", "BALoraSFTTrainer", "BALoraTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'balora' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
