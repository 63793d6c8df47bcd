"""The place of a run: where its folder may be, and what is left of it where the run fails."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from balora.config.fields import field_hints, rules_of
from balora.config.rules import PathTo
from balora.errors import WriteError
from balora.folders import OF_A_MODEL, Read, check_apart, check_not_overwritten, made_folder
from balora.recipes import Recipe
from balora.staging import recover, writing

_SETTING = "`output_dir`"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_WRITTEN = re.compile(
    rf"{OF_A_MODEL.pattern}|{_CHECKPOINT.pattern}|recipe\.yaml|environment\.json|results\.json"
    r"|trainer_state\.json|training_args\.bin|anchor\.safetensors|runs"
)
"""What a run writes into its folder."""


@contextmanager
def output_folder(recipe: Recipe) -> Iterator[None]:
    """Make the folder of a run that can be written, and leave none behind where the run fails.

    What a killed save left in it is put in order first.

    Raises:
        ConfigError: If it is no folder, cannot be made or written, or is, holds or lies in a folder
            that the run reads; nothing is touched then.
        WriteError: If the disk becomes full. What the run had half written is removed.
    """
    typed = Path(recipe.training["output_dir"])
    place = typed.expanduser()
    _check_reads(recipe, typed)
    with made_folder(place, _SETTING, shown=typed):
        for folder in (place, *place.glob("checkpoint-*")):
            recover(folder)
        was_empty = not any(place.iterdir())
        try:
            with writing(typed, _SETTING):
                yield
        except WriteError:
            _remove_unfinished(place)
            if was_empty and os.listdir(place) == ["README.md"]:
                (place / "README.md").unlink()  # a card of nothing
            raise


def check_place(recipe: Recipe) -> None:
    """Refuse what `output_folder` would refuse, and leave nothing.

    Raises:
        ConfigError: As `output_folder`.
    """
    typed = Path(recipe.training["output_dir"])
    _check_reads(recipe, typed)
    with suppress(_Undone), made_folder(typed.expanduser(), _SETTING, shown=typed):
        raise _Undone


class _Undone(Exception):
    """Leaves nothing of a folder that could be made."""


def _check_reads(recipe: Recipe, output: Path) -> None:
    """Refuse to write where the run reads.

    A folder is read as a whole: a file more in it is one more to read. Files of data and templates
    may lie anywhere but under a name that the run writes.
    """
    template = recipe.training.get("chat_template_path")
    reads = [*_reads_of(recipe.model), *_reads_of(recipe.data)]
    reads += [
        Read(f"`dataset_name` of `out_of_domain`, `{entry.name}`,", entry.dataset_name)
        for entry in getattr(recipe.data, "out_of_domain_sets", ())
    ]
    reads += [Read("`chat_template_path`", template)] if template else []
    folders = [read for read in reads if os.path.isdir(os.path.expanduser(read.path))]
    check_apart(output.expanduser(), _SETTING, folders)
    files = [read for read in reads if read not in folders]
    check_not_overwritten(output.expanduser(), _SETTING, files, _WRITTEN)


def _reads_of(config: Any) -> list[Read]:
    """Return what the fields of a part of a recipe name to be read."""
    hints = field_hints(type(config))
    return [
        Read(f"`{field.name}`", str(value))
        for field in dataclasses.fields(config)
        if any(isinstance(rule, PathTo) for rule in rules_of(hints[field.name]))
        and (value := getattr(config, field.name)) is not None
    ]


def _remove_unfinished(place: Path) -> None:
    """Remove checkpoints that are not whole: they take the space that is missing."""
    for folder in [*place.iterdir()] if place.is_dir() else ():
        if _CHECKPOINT.fullmatch(folder.name) and not (folder / "trainer_state.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
