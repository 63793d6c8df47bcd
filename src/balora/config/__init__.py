"""The settings of a run, one dataclass per part of a recipe. Standard library only.

Each field carries its type, its range and one sentence below it, and they stand nowhere else: the
checks, the help and the JSON schema read them from there. Each class checks itself and lists every
problem at once.
"""

from balora.config.adapter import AdapterConfig
from balora.config.classification import ClassificationConfig, OutOfDomainConfig
from balora.config.data import DataConfig
from balora.config.model import ModelConfig
from balora.config.objective import BALoraConfig
from balora.config.quantization import Quantization
from balora.config.replay import ReplayConfig
from balora.config.run import RunConfig, StoppingConfig

__all__ = [
    "AdapterConfig",
    "BALoraConfig",
    "ClassificationConfig",
    "DataConfig",
    "ModelConfig",
    "OutOfDomainConfig",
    "Quantization",
    "ReplayConfig",
    "RunConfig",
    "StoppingConfig",
]
