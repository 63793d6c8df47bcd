"""Checkpoints: which of them are whole, and what each records of the run that it belongs to.

A checkpoint is written file by file; ``trainer_state.json`` is the last and appears by rename, just
after ``run.json``, which holds what a resumed run is compared with. One without the last file was
cut off while it was written and is passed over; one in which another file is missing, of another
length or unreadable is damaged, and that is said.
"""

from __future__ import annotations

import logging
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from balora.errors import ConfigError
from balora.state import damaged, open_tensors, read_json, read_torch

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""What a checkpoint records of its run: settings, digests, versions, files, metrics so far."""

STATE_FILE = "trainer_state.json"
"""The last file of a checkpoint."""

LOOP_FILE = "loop_state"
"""What the loop holds between two log rows, and the random state in which its epoch began."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_TENSORS, _PICKLES = ("*.safetensors",), ("optimizer.pt", "scheduler.pt", "scaler.pt", "*.pth")
_OF_ENGINE = ("optimizer.bin", "pytorch_model_fsdp.bin", "latest")
"""What a sharded run leaves for its engine, beside folders of its own."""

_NEEDED = (*_TENSORS, *_PICKLES, "*.safetensors.index.json", *_OF_ENGINE)
_RECORD = {
    "arguments": dict,
    "objective": dict,
    "digests": dict,
    "environment": dict,
    "files": dict,
    "progress": dict,
    "processes": int,
}
_STATE = {"global_step": int, "max_steps": int, "epoch": float, "log_history": list}


class Checkpoint(NamedTuple):
    """A checkpoint that is whole."""

    folder: Path
    record: dict[str, Any]
    """Of ``run.json``."""
    state: dict[str, Any]
    """Of ``trainer_state.json``."""


def rank_file(name: str, rank: int, processes: int) -> str:
    """Return the name of a file that each process writes, as transformers names them."""
    return f"{name}.pth" if processes == 1 else f"{name}_{rank}.pth"


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is called as a checkpoint is."""
    return _CHECKPOINT.fullmatch(folder.name) is not None and folder.is_dir()


def sizes_of(folder: Path) -> dict[str, int]:
    """Return the files of a checkpoint that going on needs, with their lengths in bytes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.parent != folder or _is_any_of(path, _NEEDED))
    }


def is_wished(wish: str | Path | bool | None) -> bool:
    """Say whether ``resume_from_checkpoint`` asks for anything."""
    return wish is not None and str(wish).lower() not in ("false", "")


def find_checkpoint(wish: str | Path | bool | None, output_dir: Path) -> Checkpoint | None:
    """Return the checkpoint that ``resume_from_checkpoint`` means, None to start anew.

    Args:
        wish: A folder, or true for the newest in ``output_dir``; as text from a recipe.
        output_dir: The folder of the run.

    Raises:
        ConfigError: If there is none, or it is damaged: with the file and the newest whole one.
    """
    if not is_wished(wish):
        return None
    folder = _newest(output_dir) if str(wish).lower() == "true" else Path(str(wish))
    if not (folder / STATE_FILE).is_file():
        raise ConfigError(
            f"`resume_from_checkpoint` {str(folder)!r} is no complete checkpoint: it has no "
            f"{STATE_FILE}. {_advice(folder)}"
        )
    try:
        return read_checkpoint(folder, "")
    except ConfigError:
        return read_checkpoint(folder, _advice(folder))  # raises again, with what to do


def read_checkpoint(folder: Path, fix: str) -> Checkpoint:
    """Return a checkpoint after every file that going on needs has been looked at.

    Args:
        folder: It has its last file.
        fix: What the user can do where it is not whole; a sentence.

    Raises:
        ConfigError: If it is not whole, naming the file.
    """
    if not (folder / RUN_FILE).is_file():
        problem = f"has no {RUN_FILE}: an earlier version or another program wrote it, and what "
        raise damaged(folder, problem + "it belongs to cannot be told", fix)
    record = read_json(folder / RUN_FILE, fix, fields=_RECORD)
    state = read_json(folder / STATE_FILE, fix, fields=_STATE)
    for name in _written_by_every_run(record):
        if name not in record["files"]:
            cause = "`save_only_model` left it out" if name != LOOP_FILE else "it was not saved"
            problem = f"has no {name} ({cause}), without which training cannot resume exactly"
            raise damaged(folder, problem, fix)
    for name, size in record["files"].items():
        _check_file(folder / name, size, fix)
    return Checkpoint(folder, record, state)


def checkpoints(folder: Path) -> list[Path]:
    """Return the folders of a run's checkpoints that have their last file, the newest first."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(path.name)) and (path / STATE_FILE).is_file()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def _newest(output_dir: Path) -> Path:
    found = checkpoints(output_dir)
    if not found:
        raise ConfigError(
            f"`resume_from_checkpoint` is true, but {str(output_dir)!r} holds no complete "
            "checkpoint. Leave it out to start from the beginning."
        )
    for path in sorted(filter(is_checkpoint, output_dir.iterdir())):
        if not (path / STATE_FILE).is_file():
            logger.warning("`%s` was cut off while it was written and is passed over", path)
    return found[0]


def _written_by_every_run(record: dict[str, Any]) -> list[str]:
    processes = record["processes"]
    of_each = [
        rank_file(name, rank, processes)
        for name in ("rng_state", LOOP_FILE)
        for rank in range(processes)
    ]
    if record.get("sharding"):
        return of_each
    return ["optimizer.pt", "scheduler.pt", *of_each]


def _is_any_of(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def _check_file(path: Path, size: int, fix: str) -> None:
    if not path.is_file():
        raise damaged(path, "is missing, and without it training cannot resume exactly", fix)
    if (found := path.stat().st_size) != size:
        raise damaged(path, f"is damaged: it has {found} bytes and was saved with {size}", fix)
    if _is_any_of(path, _TENSORS):
        with open_tensors(path, fix):
            pass
    elif _is_any_of(path, _PICKLES):
        read_torch(path, fix)
    elif path.suffix == ".json":
        read_json(path, fix)


def _advice(folder: Path) -> str:
    """Return what to do instead of going on from ``folder``."""
    for other in checkpoints(folder.parent):
        if other.name == folder.name:
            continue
        try:
            read_checkpoint(other, "")
        except ConfigError:
            continue
        return (
            f"The newest whole checkpoint is {str(other)!r}: name it, or start from the beginning."
        )
    return "There is no other whole one beside it: start from the beginning."
