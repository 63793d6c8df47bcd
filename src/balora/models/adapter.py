"""Adapters: what a folder of one holds, read without loading it, and the model inside one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftConfig, PeftModel, TaskType

from balora.errors import ConfigError
from balora.models.reading import reading_model
from balora.state import open_tensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_FIX = "Save or download it again."

Shapes = dict[str, tuple[int, ...]]


class Adapter(NamedTuple):
    """An adapter in a folder."""

    folder: Path
    config: PeftConfig
    shapes: Shapes
    """Of the saved tensors, by their names in the file."""

    @property
    def is_classifier(self) -> bool:
        """Whether it belongs to a sequence classification model, whose head it brings."""
        return bool(self.config.task_type == TaskType.SEQ_CLS)


def inner_model(model: Any) -> Any:
    """Return the transformers model inside PEFT's; its layers keep their adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_adapter_folder(folder: Path) -> bool:
    """Say whether a folder holds an adapter."""
    return (folder / CONFIG_FILE).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter in ``folder``.

    Raises:
        ConfigError: If a file is missing or damaged, or is of a kind that PEFT does not know.
    """
    if not is_adapter_folder(folder) or not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(
            f"`{folder}` holds no adapter ({CONFIG_FILE} and {WEIGHTS_FILE}). Name the folder that "
            "`balora train` wrote."
        )
    path = folder / WEIGHTS_FILE
    with reading_model(str(folder), "the adapter"), open_tensors(path, _FIX) as file:
        config = PeftConfig.from_pretrained(str(folder))
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    return Adapter(folder, config, shapes)
