"""Names of a model, a hub id or a folder, and of the type of its weights. It needs no torch."""

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


def name_of_dtype(dtype: object) -> str:
    """Return the name of a ``torch.dtype`` as recipes write it: ``float32``."""
    return str(dtype).removeprefix("torch.")
