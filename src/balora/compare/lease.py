"""A lock that several machines can take on a shared folder, and that a dead holder gives back.

A lock is a folder of files ``1``, ``2``, ...: the holder is whoever created the last one, which
every file system lets one process do alone. Its time is renewed as long as the holder lives;
released, it has the time 0. A file is never removed, so nothing that is taken from a dead holder
can be taken from a living one by mistake: the next number is created, once.

A file says from its first moment who holds the lock: it is written under another name, and linked.
A holder on this machine is dead when its processes are. Of another machine the heartbeat tells:
its age is read on the clock of the file system, which all machines share, not on their own.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

BEAT_SECONDS = 15.0
"""From one heartbeat to the next."""
STALE_SECONDS = 180.0
"""Without a heartbeat for so long, the holder is dead. NFS may show a time a minute late."""


class Lease:
    """A lock that this process holds, with a thread that renews it."""

    def __init__(self, file: Path, on_loss: Callable[[], object] | None = None) -> None:
        """Keep a lock that has been taken alive; `take` and `share` make one.

        Args:
            file: The last of the lock's files.
            on_loss: Called when another has taken the lock.
        """
        self.file = file
        self.is_lost = False
        self._on_loss = on_loss
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, lock: Path) -> Lease | None:
        """Take a lock, whose folder is made; None where another holds it, or was faster.

        Raises:
            OSError: If the folder cannot be written.
        """
        lock.mkdir(parents=True, exist_ok=True)
        last = _last(lock)
        if last > 0 and not _is_free(lock / str(last)):
            return None
        file = lock / str(last + 1)
        whole = _written(lock, os.getpid())
        try:
            return cls(file) if _is_created(file, whole) else None
        finally:
            whole.unlink(missing_ok=True)

    @classmethod
    def share(cls, file: Path, on_loss: Callable[[], object]) -> Lease:
        """Renew the lock that the process which started this one holds, as long as this one lives.

        Args:
            file: The `file` of its lease.
            on_loss: As in `__init__`.
        """
        return cls(file, on_loss)

    def names(self, *pids: int) -> None:
        """Write down which processes of this machine hold it: it is free when none is alive."""
        _written(self.file.parent, *pids).replace(self.file)

    def release(self) -> None:
        """Let others take it."""
        self._released.set()
        self._thread.join()
        if not self.is_lost:
            with suppress(FileNotFoundError):  # the whole folder is gone
                os.utime(self.file, (0, 0))

    def is_held(self) -> bool:
        """Say whether no other has taken it for dead, as after a suspension of this process."""
        self.is_lost |= self.file.with_name(str(int(self.file.name) + 1)).exists()
        return not self.is_lost

    def _renew(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                if self.is_held():
                    os.utime(self.file)  # without a time: that of the file system
            except FileNotFoundError:
                self.is_lost = True
            except OSError:  # it may be there again at the next beat
                continue
            if self.is_lost:
                if self._on_loss is not None:
                    self._on_loss()
                return


def is_held(lock: Path) -> bool:
    """Say whether someone holds a lock that may not be there."""
    last = _last(lock) if lock.is_dir() else 0
    return last > 0 and not _is_free(lock / str(last))


def _written(lock: Path, *pids: int) -> Path:
    """Return a file of a lock's folder that has no number and says who holds the lock."""
    whole = lock / f"{uuid.uuid4().hex}.new"
    processes = [_identity(pid) for pid in pids]
    whole.write_text(json.dumps({"place": _place(), "processes": processes}))
    return whole


def _is_created(file: Path, whole: Path) -> bool:
    """Create a lock's file with all its content; False where another process was faster."""
    with suppress(OSError):
        os.link(whole, file)
    if os.stat(whole).st_nlink > 1:  # NFS may have lost the answer
        return True
    try:  # a file system without links: killed between these lines, it is held until it is stale
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    whole.replace(file)
    return True


def _last(lock: Path) -> int:
    return max((int(name) for name in os.listdir(lock) if name.isdigit()), default=0)


def _is_free(file: Path) -> bool:
    """Say whether the holder has released a lock's last file, or is dead."""
    with file.open(encoding="utf-8") as content:  # opened: NFS then asks for the time anew
        renewed = os.fstat(content.fileno()).st_mtime
        text = content.read()
    if renewed == 0:
        return True
    holder = _holder(text)
    if holder is not None and holder["place"] == _place():
        alive = [_is_alive(process) for process in holder["processes"]]
        if True in alive or None not in alive:
            return True not in alive
    return _now(file.parent) - renewed > STALE_SECONDS


def _holder(text: str) -> dict[str, Any] | None:
    """Return who holds a lock; None where that has not been written."""
    try:
        found = json.loads(text)
        return {"place": found["place"], "processes": list(found["processes"])}
    except (ValueError, TypeError, KeyError):
        return None


def _now(folder: Path) -> float:
    """Return the time of the file system that holds a folder."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime


@cache
def _place() -> str:
    """Return what two processes share that know one another by their numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return platform.node()


def _identity(pid: int) -> str:
    """Return a process's number and, where the system says so, since when it has been its."""
    found = _proc(pid)
    return str(pid) if found is None else f"{pid} {found[1]}"


def _is_alive(process: str) -> bool | None:
    """Say whether a process of `_identity` lives; None where it is not known."""
    pid, _, since = process.partition(" ")
    if since:
        found = _proc(int(pid))
        return found is not None and found[1] == since and found[0] not in "ZX"
    if os.name != "posix":
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return None
    return None  # a process has this number, maybe another


def _proc(pid: int) -> tuple[str, str] | None:
    """Return a process's state and the time it started, in ticks; None where none is there."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return words[0], words[19]
