"""Where a command runs: what it ran on, for bug reports and checkpoints, and what a log takes."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("balora", "torch", "transformers", "peft", "trl", "accelerate", "datasets")
_OPTIONAL = (
    *("safetensors", "tokenizers", "bitsandbytes", "torchao", "deepspeed", "flash-attn"),
    "tensorboard",
)

_KNOWN = (
    # peft reads a name that transformers has deprecated
    "`is_gradient_checkpointing` is deprecated",
    # peft asks the hub for the base at each save, for a vocabulary that a run never changes
    "Could not find a config file in .* the vocabulary was not modified",
)
"""How warnings begin about which a user of the command line can do nothing."""

_BARS = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")


def hide_bars_in_logs() -> None:
    """Switch progress bars off where they would not move, in a file or a pipe.

    Belongs before the import of any library that draws one. A variable that is set stays as it is.
    """
    if not sys.stderr.isatty():
        for name in _BARS:
            os.environ.setdefault(name, "1")


def is_silent(when: bool) -> bool:
    """Say whether a progress bar stays away: in a log, or for a reason of its own.

    What is given to tqdm as ``disable`` goes before the variable that switches bars off.
    """
    return when or bool(os.environ.get("TQDM_DISABLE"))


def hide_known_warnings() -> None:
    """Leave out what libraries warn of in every run and nobody can do anything about."""
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)


def launched() -> tuple[int, int]:
    """Return the number of this process and of all, as the launcher has set them; 0 and 1 alone.

    It needs no torch; where a process group has been started, :mod:`balora.distributed` knows.
    """
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def print_messages() -> None:
    """Print the messages of loggers as they are, one a line, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(handlers=[handler])


@contextmanager
def telling_once() -> Iterator[None]:
    """Print each message of a logger once, however often it is given while the block runs."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [h for one in loggers if isinstance(one, logging.Logger) for h in one.handlers]
    filters = {handler: _Once() for handler in handlers}
    for handler, own in filters.items():
        handler.addFilter(own)
    try:
        yield
    finally:
        for handler, own in filters.items():
            handler.removeFilter(own)


class _Once(logging.Filter):
    """Lets a message through that it has not seen."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_new = text not in self._seen
        self._seen.add(text)
        return is_new


class _Plain(logging.Formatter):
    """Leaves out the number that accelerate puts before a message, where there is one process."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text.removeprefix("[RANK 0] ") if launched()[1] == 1 else text


def describe_environment() -> dict[str, str]:
    """Return versions, platform and devices, by name; a missing optional package is left out."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    facts |= {name: _version(name) or "not installed" for name in _PACKAGES}
    facts |= {name: version for name in _OPTIONAL if (version := _version(name))}
    if commit := git_commit():
        facts["balora commit"] = commit
    return facts | _devices()


@lru_cache(maxsize=1)  # what runs is what was imported
def git_commit() -> str | None:
    """Return the commit of the source tree that balora runs from, None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


@lru_cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    import torch  # slow: only when the facts are asked for

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processes": str(launched()[1]),
        "cpu threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "cuda": f"{torch.version.cuda} ({', '.join(devices)})" if devices else "no device",
        "bf16 on this device": str(bool(devices) and torch.cuda.is_bf16_supported()),
    }
