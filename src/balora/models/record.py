"""What a run leaves of its base: the sizes that an adapter need not show, a vocabulary for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from balora.errors import ConfigError
from balora.files import write_json
from balora.models.source import ModelSource, name_the_base
from balora.state import read_json

BASE_FILE = "base_model.json"
_SIZES = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


def base_facts(config: PretrainedConfig) -> dict[str, Any]:
    """Return kind, depth, width and vocabulary of a model, as far as its config says them."""
    text = config.get_text_config()
    return {name: getattr(text, name) for name in _SIZES if getattr(text, name, None) is not None}


def write_base(folder: Path, config: PretrainedConfig) -> None:
    """Write ``base_model.json`` into the folder of a run or a checkpoint."""
    write_json(folder / BASE_FILE, base_facts(config))


def check_recorded_base(folder: Path, base: ModelSource, config: PretrainedConfig) -> None:
    """Refuse a base of other sizes than a run recorded; a folder without a record passes.

    Raises:
        ConfigError: Naming the setting of the base, and what differs.
    """
    if not (folder / BASE_FILE).is_file():
        return
    recorded = read_json(folder / BASE_FILE, "Remove it, or take another checkpoint of the run.")
    found = base_facts(config)
    for name in _SIZES:
        if name in recorded and name in found and recorded[name] != found[name]:
            raise ConfigError(
                f"`{folder}` was trained on a model with `{name}` {recorded[name]}, but "
                f"{base.words} has {found[name]}. {name_the_base(folder)}"
            )
