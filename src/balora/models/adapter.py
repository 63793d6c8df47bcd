"""What an adapter folder holds, read without loading it: its config and its tensors' shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftConfig, PeftType, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open

from balora.errors import ConfigError
from balora.files import read_text

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

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
    return Adapter(folder, _read_config(folder), _read_shapes(folder / WEIGHTS_FILE))


def _read_config(folder: Path) -> PeftConfig:
    path = folder / CONFIG_FILE
    try:
        content: Any = json.loads(read_text(path, "the file"))
    except ValueError as error:
        raise ConfigError(f"`{path}` is damaged: it is no JSON ({error}).") from error
    kind = content.get("peft_type") if isinstance(content, dict) else None
    if kind not in PeftType.__members__.values():
        raise ConfigError(
            f"`{path}` describes no adapter that PEFT knows: `peft_type` is {kind!r}. Name the "
            "folder that `balora train` wrote."
        )
    try:
        return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)].from_pretrained(str(folder))
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"`{path}` cannot be read as an adapter's: {reason}") from error


def _read_shapes(path: Path) -> Shapes:
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except SafetensorError as error:
        raise ConfigError(
            f"`{path}` is damaged: {error}. Copy it again, or take another checkpoint of the run."
        ) from error
