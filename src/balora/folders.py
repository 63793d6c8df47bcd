"""Where output may go: never over what is read, never over what is not known to be ours."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from balora.errors import ConfigError
from balora.staging import is_full, recover, staged_folder, writing

_MARKS = ("adapter_config.json", "config.json")
OF_A_MODEL = re.compile(
    r"(adapter_)?config\.json|generation_config\.json|(adapter_)?model.*\.(safetensors|json)"
    r"|(pytorch|adapter)_model.*\.(bin|json)|tokenizer.*|special_tokens_map\.json"
    r"|added_tokens\.json|vocab.*|merges\.txt|spiece\.model|sentencepiece.*"
    r"|chat_template\.jinja|README\.md|\.gitattributes"
)
"""What a folder with an export or a model has."""


class Read(NamedTuple):
    """A file or a folder that a command reads, and must leave as it is."""

    setting: str
    """What it was given as, with ticks: ```model_name_or_path```."""
    path: str
    """As the user typed it; a hub id is the path of nothing and does no harm."""
    may_hold_output: bool = False
    """Whether the output may lie in it, as that of a run may."""


def check_apart(output: Path, setting: str, reads: Sequence[Read]) -> None:
    """Refuse an output folder that is, holds or lies in what is read; links are followed.

    Raises:
        ConfigError: Naming both.
    """
    own = _real(output)
    for read in reads:
        path = _real(os.path.expanduser(read.path))
        if not os.path.exists(path):
            continue
        if own == path:
            relation = "is"
        elif path.is_relative_to(own):
            relation = "holds"
        elif own.is_relative_to(path) and not read.may_hold_output:
            relation = "lies in"
        else:
            continue
        raise ConfigError(
            f"{setting} {str(output)!r} {relation} {read.setting} {read.path!r}, which is read and "
            "must stay as it is. Name another folder."
        )


def check_not_overwritten(
    output: Path, setting: str, reads: Sequence[Read], written: re.Pattern[str]
) -> None:
    """Refuse an output folder in which a file that is read would be written over; links count.

    Args:
        output: The folder.
        setting: What it was given as.
        reads: Files, such as those of the data; they may lie in the folder under names of their
            own, and the folder beside or below them.
        written: The names of what is written into the folder.

    Raises:
        ConfigError: Naming the file.
    """
    own = _real(output)
    for read in reads:
        path = _real(os.path.expanduser(read.path))
        if own in path.parents and written.fullmatch(path.relative_to(own).parts[0]):
            raise ConfigError(
                f"{read.setting} {read.path!r} lies in {setting} {str(output)!r}, where it would "
                "be written over. Name another folder."
            )


def _real(path: Path | str) -> Path:
    """Return a path with every link followed."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a null character: nothing can be there
        return Path(path)


@contextmanager
def made_folder(path: Path, setting: str, *, shown: Path | None = None) -> Iterator[None]:
    """Make a folder, and those above it, that can be written; nothing is left where it fails.

    Where the block fails, the folders that were made for it are removed again if they are empty.

    Args:
        path: The folder; it may be there already.
        setting: What it was given as, with ticks.
        shown: The path as the user typed it, where that is another.

    Raises:
        ConfigError: If it is no folder or cannot be made or written.
        WriteError: If the disk is full.
    """
    made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        with _refusing(shown or path, setting):
            path.mkdir(parents=True, exist_ok=True)
            # a file without a name: an empty folder would be taken for one that a kill has left
            tempfile.TemporaryFile(dir=path).close()
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError, ValueError):
                folder.rmdir()
        raise


@contextmanager
def _refusing(path: Path, setting: str) -> Iterator[None]:
    """Turn what the system says of a place that cannot be written into one sentence."""
    with writing(path, setting):
        try:
            yield
        except (OSError, ValueError) as error:
            if is_full(error):
                raise
            if not os.path.isdir(_nearest(path)):
                raise ConfigError(f"{setting} {str(path)!r} {_in_the_way(path)}.") from error
            raise _unwritable(path, setting, error) from error


def _in_the_way(path: Path) -> str:
    """Return half a sentence on the file, or the link to nothing, where a folder should be."""
    found = _nearest(path)
    kind = "a link to nothing" if found.is_symlink() else "a file"
    if found == path:
        return f"is {kind}; name a folder"
    return f"cannot be written: {str(found)!r} is {kind}; name another folder"


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest above it, where something is."""
    return next((place for place in (path, *path.parents) if os.path.lexists(place)), Path())


def _unwritable(path: Path, setting: str, error: OSError | ValueError) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else "it has a null character"
    return ConfigError(f"{setting} {str(path)!r} cannot be written: {reason}. Name another folder.")


@contextmanager
def new_folder(
    destination: Path, setting: str, *, overwrite: bool, reads: Sequence[Read] = ()
) -> Iterator[Path]:
    """Yield an empty folder that becomes ``destination`` when the block ends without an error.

    At every moment either what was there or the new folder is whole in its place.

    Args:
        destination: A path where nothing is, an empty folder, or, with ``overwrite``, a folder
            that holds a model or an adapter and nothing else.
        setting: What it was given as, with ticks.
        overwrite: Whether a folder that is not empty is replaced.
        reads: What is read meanwhile; the destination may neither hold it nor be it.

    Raises:
        ConfigError: If it is anything else; nothing is touched then.
        WriteError: If the disk is full.
    """
    check_apart(destination, setting, reads)
    place = _real(destination)
    recover(place.parent)
    check = partial(_check_replaceable, destination, setting, overwrite=overwrite)
    check()
    with writing(destination, setting), ExitStack() as stack:
        stack.enter_context(made_folder(place.parent, setting, shown=destination))
        with _refusing(destination, setting):  # its name may be too long where its parent's is not
            stage = stack.enter_context(staged_folder(place))
        yield stage
        check()  # it may have come, or have got files, in the meantime


def _check_replaceable(destination: Path, setting: str, *, overwrite: bool) -> None:
    named = f"{setting} {str(destination)!r}"
    if os.path.islink(destination):
        raise ConfigError(f"{named} is a link; name the folder itself.")
    if not os.path.lexists(destination):
        if not os.path.isdir(_nearest(destination)):
            raise ConfigError(f"{named} {_in_the_way(destination)}.")
        return
    if not os.path.isdir(destination):
        raise ConfigError(f"{named} is a file; name a folder.")
    if Path.cwd().is_relative_to(os.path.realpath(destination)):
        raise ConfigError(f"{named} is the folder you are in, or holds it; name another folder.")
    try:
        names = sorted(os.listdir(destination))
    except OSError as error:
        raise _unwritable(destination, setting, error) from error
    foreign = _foreign(destination, names)
    if foreign is not None:
        raise ConfigError(
            f"{named} holds `{foreign}`, which no export has written and `--overwrite` does not "
            "remove. Name another folder."
        )
    if names and not overwrite:
        raise ConfigError(f"{named} exists. Name another folder, or pass `--overwrite`.")


def _foreign(folder: Path, names: Sequence[str]) -> str | None:
    """Return a name that a folder with a model or an adapter has not; None where there is none."""
    if not any(mark in names for mark in _MARKS):
        return next(iter(names), None)
    return next(
        (n for n in names if not OF_A_MODEL.fullmatch(n) or os.path.isdir(folder / n)), None
    )
