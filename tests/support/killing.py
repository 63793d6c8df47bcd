"""Calls that are killed by SIGKILL inside one of their writes, or after some seconds.

A call runs in a forked child, so that what the test has imported is there already: a kill costs as
long as the call itself. Before each write below a folder the child counts; at the given number it
kills itself. In the mode ``half`` it first cuts what the write before it wrote to half its bytes,
which is what a kill inside that write leaves. Of the kills that leave the same files one is enough:
a call that is only watched says which.

Counted are what Python opens for writing, renames, links, makes and removes, and each file of
``torch.save`` and of safetensors, which are written without Python.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Kill(NamedTuple):
    """Where a call is killed."""

    step: int
    """The write before which it is, counted from 1."""
    half: bool
    """Whether the write before that one is cut to half."""


def every_kill(call: Callable[[], Any], under: Path) -> Iterator[tuple[Kill, bool]]:
    """Kill a call before each of its writes, then inside each, and yield after every kill.

    Before the first kill the call comes to its end once. The caller puts the folder back to what it
    was each time before it goes on.

    Args:
        call: Returns an exit status, or None for 0; it writes the same each time.
        under: Only writes below this folder count.

    Yields:
        Where it was killed, and True; first, where it came to its end, step 0 and False.

    Raises:
        AssertionError: If it failed, with what it printed, or wrote nothing.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        log = Path(elsewhere) / "states"
        log.touch()
        assert not _in_child(lambda: _Watcher(log, under.resolve()).arm(), call, None)
        states = log.read_text().splitlines()
    assert states, f"the call wrote nothing below {under}"
    yield Kill(0, half=False), False
    order = [Kill(step, half) for step in range(1, len(states) // 2 + 1) for half in (False, True)]
    first = dict(zip(reversed(states), reversed(order), strict=True))
    for kill in sorted(first.values(), key=lambda kill: (kill.half, kill.step)):
        assert killed_at(kill, call, under), f"the call wrote less than before: {kill}"
        yield kill, True


def killed_at(kill: Kill, call: Callable[[], Any], under: Path) -> bool:
    """Run a call that is killed at one of its writes; False if it came to its end before.

    Raises:
        AssertionError: If it failed, with what it printed.
    """
    return _in_child(lambda: _Killer(kill, under.resolve()).arm(), call, None)


def killed_after(seconds: float, call: Callable[[], Any]) -> bool:
    """Run a call that is killed after some seconds; False if it came to its end before.

    Raises:
        AssertionError: If it failed, with what it printed.
    """
    return _in_child(lambda: None, call, seconds)


class _Killer:
    """Counts the writes of its process and kills it at one of them."""

    def __init__(self, kill: Kill, under: Path) -> None:
        self.kill, self.under = kill, under
        self.count = 0
        self.before: dict[Path, os.stat_result] = {}
        self.is_busy = False

    def arm(self) -> None:
        """Begin to count; there is no way back."""
        self.before = self.files()
        sys.addaudithook(self.hear)
        save, serialize = torch.save, safetensors.torch.serialize_file

        def counted_save(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(file, str | os.PathLike):
                self.count_write(file)
            save(value, file, *args, **kwargs)

        def counted_serialize(tensors: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            self.count_write(file)
            serialize(tensors, file, *args, **kwargs)

        torch.save, safetensors.torch.serialize_file = counted_save, counted_serialize

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Take an event of the interpreter's."""
        if event == "open":
            path, mode, flags = args
            writes = any(c in mode for c in "wax+") if mode else bool((flags or 0) & _WRITING)
            if writes:
                self.count_write(path)
        elif event in _EVENTS:
            # of a rename both ends may lie below the folder
            self.count_write(*args[:2] if event == "os.rename" else args[:1])

    def count_write(self, *paths: Any) -> None:
        """Count one write, unless none of the paths is below the folder."""
        if self.is_busy or not any(self.is_below(path) for path in paths):
            return
        self.is_busy = True
        self.count += 1
        self.at_write()
        self.is_busy = False

    def at_write(self) -> None:
        """Kill the process if it is the write."""
        if self.count == self.kill.step:
            if self.kill.half:
                for path in self.changed():
                    os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # the signal comes
        if self.kill.half and self.count == self.kill.step - 1:
            self.before = self.files()

    def is_below(self, path: Any) -> bool:
        """Say whether a write goes below the folder; links on the way are followed."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        parent, _ = os.path.split(os.fsdecode(path))
        return Path(os.path.realpath(parent or ".")).is_relative_to(self.under)

    def files(self) -> dict[Path, os.stat_result]:
        """Return what the files below the folder are like."""
        paths = (path for path in self.under.rglob("*") if path.is_file() and not path.is_symlink())
        return {path: path.stat() for path in paths}

    def changed(self) -> list[Path]:
        """Return every file that has changed since the write before; a renamed one has not."""
        known = {(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in self.before.values()}
        return [
            path
            for path, stat in self.files().items()
            if (stat.st_ino, stat.st_mtime_ns, stat.st_size) not in known
        ]


class _Watcher(_Killer):
    """Writes down the two states that a kill before each write would leave: whole, and cut."""

    def __init__(self, log: Path, under: Path) -> None:
        super().__init__(Kill(0, half=False), under)
        self.log = log

    def at_write(self) -> None:
        """Write down the states."""
        states = [self.state(cut) for cut in ((), self.changed())]
        self.before = self.files()
        with self.log.open("a") as file:
            file.writelines(f"{state}\n" for state in states)

    def state(self, cut: Collection[Path]) -> str:
        """Return a digest of every path and file; the names of work folders are by chance."""
        digest = hashlib.sha256()
        found = {_named(path.relative_to(self.under)): path for path in self.under.rglob("*")}
        for name, path in sorted(found.items()):
            content = path.read_bytes() if path.is_file() else b""
            digest.update(name.encode() + b"\0")
            digest.update(content[: len(content) // 2] if path in cut else content)
        return digest.hexdigest()


def _named(path: Path) -> str:
    return re.sub(r"\.balora-\w{8}", ".balora-", str(path))


def _in_child(arm: Callable[[], None], call: Callable[[], Any], seconds: float | None) -> bool:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads; those of the libraries here wait for work and hold no lock
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        _run_and_exit(arm, call, writing)
    os.close(writing)
    return _wait(child, reading, seconds)


def _run_and_exit(arm: Callable[[], None], call: Callable[[], Any], log: int) -> None:
    status = 70
    try:
        os.setpgid(0, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
        arm()
        status = int(call() or 0)
    except BaseException:  # noqa: BLE001 (the child must not go on as a second run of the tests)
        traceback.print_exc()
    finally:
        os._exit(status)


def _wait(child: int, log: int, seconds: float | None) -> bool:
    """Wait for the end of the child and of what it has started; say whether it was killed."""
    end = None if seconds is None else time.monotonic() + seconds
    chunks = []
    with os.fdopen(log, "rb") as output:
        # a process of the child's own may hold the pipe open, so the child is waited for first
        os.set_blocking(output.fileno(), False)
        while True:
            chunks.append(output.read() or b"")
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if end is not None and time.monotonic() >= end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        chunks.append(output.read() or b"")
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    printed = b"".join(chunks).decode(errors="replace")
    assert status == 0, f"the call ended with {os.waitstatus_to_exitcode(status)}:\n{printed}"
    return False
