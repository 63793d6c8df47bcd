"""What a model's name can be: a hub id, or a folder. Standard library only."""

from __future__ import annotations

from pathlib import Path

from balora.errors import ConfigError


def check_model_name(name: str, setting: str) -> None:
    """Refuse a name that can only be a folder and is none, before the hub is asked for it.

    Args:
        name: As the user wrote it.
        setting: What the name was given as.

    Raises:
        ConfigError: Naming the setting and the folder.
    """
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ConfigError(f"{setting} {name!r} cannot be loaded: there is no such folder.")
