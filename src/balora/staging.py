"""What is written beside its place first, and put there by a rename when it is whole.

A *work folder* lies beside the place, under a name that nothing else has, and is locked by its
process as long as that lives. What a killed process leaves is known by its free lock: the next
call puts back what had been moved aside, finishes what was being moved in, and removes the rest.
Inside are ``new/`` (written to), ``old/`` (what stood there, until the new one does), ``ready/``
(whole files on their way) and ``gone/`` (to be deleted).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from balora.errors import BaloraError, WriteError

_PREFIX = ".balora-"
_NAME = re.compile(re.escape(_PREFIX) + r"\w{8}")
_LOCK = "in-use.lock"
_NEW, _OLD, _READY, _GONE = "new", "old", "ready", "gone"
_LAST = ("model.safetensors", "adapter_model.safetensors", "config.json", "adapter_config.json")
"""Moved last, in this order: an adapter is complete when its ``adapter_config.json`` is there."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ("No space left", "os error 28", "os error 122", "Disk quota exceeded")
_TORCH_WORDS = (
    "PytorchStreamWriter failed",
    "file write failed",
    "iostream error",
    "unexpected pos",
)
_log = logging.getLogger(__name__)


@contextmanager
def writing(place: Path | str, setting: str) -> Iterator[None]:
    """Turn a full disk, or one that cannot be written, into one sentence that names the place.

    Args:
        place: The file or folder, as the user named it.
        setting: What it was given as, such as ```--to```; ticks included.

    Raises:
        WriteError: The run has failed. What is not about writing passes as it is.
    """
    try:
        yield
    except BaloraError:
        raise
    except Exception as error:
        reason = _reason(error, Path(place))
        if reason is None:
            raise
        raise WriteError(
            f"{setting} {str(place)!r} cannot be written: {reason}. Free some space, or name a "
            "place on another disk."
        ) from error


def is_full(error: Exception) -> bool:
    """Say whether the system has no space left, or allows no more of it."""
    return isinstance(error, OSError) and error.errno in _FULL


def _reason(error: Exception, place: Path) -> str | None:
    """Say why a place cannot be written; None where an error is about something else."""
    text = str(error)
    if is_full(error):
        return "no space left on the disk"
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename
        inside = isinstance(name, str | bytes) and _is_below(Path(os.fsdecode(name)), place)
        return str(error.strerror) if inside and error.errno != errno.ENOENT else None
    # safetensors and tokenizers put the number into the text, tokenizers in a plain Exception
    is_known = isinstance(error, SafetensorError | OSError | RuntimeError)
    if (is_known or type(error) is Exception) and any(words in text for words in _FULL_WORDS):
        return "no space left on the disk"
    if isinstance(error, RuntimeError) and any(words in text for words in _TORCH_WORDS):
        return "no space left on the disk, or it fails"
    return None


def _is_below(path: Path, place: Path) -> bool:
    place = Path(os.path.realpath(place))
    # a work folder lies beside its place
    return Path(os.path.realpath(path)).is_relative_to(place) or any(
        map(is_stage, (path, *path.parents))
    )


def is_stage(path: Path) -> bool:
    """Say whether a name is that of a work folder."""
    return _NAME.fullmatch(path.name) is not None


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in ``parent`` that is this process's own; it is removed at the end.

    What killed processes left in ``parent`` is put in order first, see :func:`recover`.
    """
    recover(parent)
    work, lock = _new_work(parent)
    try:
        (work / _NEW).mkdir()
        yield work
    finally:
        _finish(work)
        lock.release()


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; it becomes ``path`` when the block ends without an error.

    A link is written through, as opening it would.
    """
    path = Path(os.path.realpath(path))
    with work_folder(path.parent) as work:
        yield work / _NEW / path.name
        os.replace(work / _NEW / path.name, path)


@contextmanager
def staged_folder(path: Path, *, replaces: bool = True) -> Iterator[Path]:
    """Yield an empty folder; it becomes ``path`` when the block ends without an error.

    Args:
        path: Its place; the folder above is there.
        replaces: Whether a folder that stands there at the end is replaced as a whole; whether it
            may be is for the caller to say. Else it stays, and the new one is thrown away.
    """
    with work_folder(path.parent) as work:
        new = work / _NEW / path.name
        new.mkdir()
        yield new
        if replaces:
            _replace(work, path)
        else:
            with contextlib.suppress(FileExistsError):
                _put(new, path)


@contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; what is in it goes into ``folder`` when the block ends.

    What makes a folder valid goes last. Once they are on their way a kill does not part them: the
    next call moves the rest.

    Args:
        folder: Where they go, over what has their names; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with work_folder(folder) as work:
        yield work / _NEW
        os.replace(work / _NEW, work / _READY)
        _move_in(work, folder)


def recover(parent: Path) -> None:
    """Put in order what killed processes left in ``parent``; that of living ones is left alone.

    A folder that had been moved aside and whose place is empty goes back, files that were on their
    way are moved in, and the rest is removed. What cannot be written is left as it is.
    """
    for work in _left(parent):
        with contextlib.suppress(OSError):
            lock = _locked(work)
            if lock is not None:
                try:
                    _finish(work)
                finally:
                    lock.release()


def _left(parent: Path) -> list[Path]:
    """Return the work folders in a folder, by their names and by what they hold."""
    found = []
    with contextlib.suppress(OSError):
        for work in parent.iterdir():
            if is_stage(work) and work.is_dir() and not work.is_symlink():
                names = {path.name for path in work.iterdir()}
                if not names or (_LOCK in names and names <= {_LOCK, _NEW, _OLD, _READY, _GONE}):
                    found.append(work)
    return found


def _new_work(parent: Path) -> tuple[Path, FileLock]:
    while True:
        work = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            lock = _locked(work)
        except OSError:
            work.rmdir()
            raise
        if lock is not None:  # else another process took it for one that was left
            return work, lock


def _locked(work: Path) -> FileLock | None:
    """Lock a work folder; None where another process has it, or has removed it."""
    lock = FileLock(work / _LOCK, timeout=0)
    try:
        lock.acquire()
    except (Timeout, FileNotFoundError, FileExistsError):  # the last two: while it is removed
        return None
    if (work / _LOCK).exists():
        return lock
    lock.release()  # of a file that was removed meanwhile
    return None


def _finish(work: Path) -> None:
    """End what was begun, or undo it, and remove the work folder, which is locked."""
    if (work / _READY).is_dir():
        _move_in(work, work.parent)
    for old in [*(work / _OLD).iterdir()] if (work / _OLD).is_dir() else ():
        place = work.parent / old.name
        if not os.path.lexists(place):
            os.rename(old, place)
        elif (work / _NEW / old.name).exists():
            _log.warning("%s was moved to %s by a process that was killed", place, old)
            return  # the new one never came, and something else stands there
    for name in (_NEW, _OLD, _READY, _GONE):
        shutil.rmtree(work / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # last the lock, by which it is known
        (work / _LOCK).unlink()
        work.rmdir()


def _move_in(work: Path, folder: Path) -> None:
    """Move what is ready into a folder, over what has its names."""
    names = [path.name for path in (work / _READY).iterdir()]
    for name in sorted(names, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name)):
        place = folder / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(work / _GONE, ignore_errors=True)
            (work / _GONE).mkdir()
            os.rename(place, work / _GONE / name)
        os.replace(work / _READY / name, place)


def _put(new: Path, path: Path) -> None:
    """Put a folder where none is, or an empty one.

    Raises:
        FileExistsError: If one that is not empty is there.
    """
    try:
        os.rename(new, path)
    except OSError as error:  # systems differ in how they say it
        if path.is_dir() and any(path.iterdir()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        raise


def _replace(work: Path, path: Path) -> None:
    """Put the new folder in its place; what stood there is in the work folder afterwards."""
    new = work / _NEW / path.name
    if not os.path.lexists(path):
        os.rename(new, path)
    elif not _exchanged(new, path):
        (work / _OLD).mkdir()
        os.rename(path, work / _OLD / path.name)
        os.rename(new, path)
        os.rename(work / _OLD, work / _GONE)  # from here on it does not go back


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system or the disk has no such step."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    sys.audit("os.rename", one, other, -1, -1)  # as Python's own renames do
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    status: int = rename(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return status == 0
