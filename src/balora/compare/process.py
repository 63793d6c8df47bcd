"""The process of one cell: started, watched, ended, and what went wrong with it in a sentence."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from balora.compare.cell import ATTACHED, LEASE
from balora.compare.cells import Cell
from balora.compare.lease import Lease
from balora.errors import ConfigError
from balora.rows import ROW_FILE

LOG_FILE = "log.txt"
_WORDS = {9: " (out of memory?)"}


def command_of(folder: Path, lease: Lease, launcher: str | None = None) -> list[str]:
    """Return the command that runs the cell of a folder and ends when this process does.

    Args:
        folder: Of the cell.
        lease: Of the folder; the cell renews it as well.
        launcher: What starts the processes of a cell, as ``torchrun --nproc_per_node 2``.
    """
    started = [sys.executable] if launcher is None else shlex.split(launcher)
    return [*started, "-m", "balora.compare.cell", str(folder), ATTACHED, LEASE, str(lease.file)]


class Process:
    """The process of one cell, at work."""

    def __init__(
        self, cell: Cell, lease: Lease, folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Start it; its output goes to ``log.txt``. Its lease is released when it is closed."""
        self.cell = cell
        self.folder = folder
        self.lease = lease
        self._log: IO[bytes] = (folder / LOG_FILE).open("wb")
        # in a session of its own: Ctrl-C reaches this process alone, which then ends the others
        self._process = subprocess.Popen(
            command_of(folder, lease, cell.launcher),
            stdin=subprocess.PIPE,  # closed when this process dies, however it does
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        lease.names(os.getpid(), self._process.pid)

    @property
    def has_ended(self) -> bool:
        """Say whether it has ended, or must, because another has taken its cell."""
        return self.lease.is_lost or self._process.poll() is not None

    @property
    def was_refused(self) -> bool:
        """Say whether it ended with the exit status of a wrong recipe or wrong data."""
        return self._process.poll() == ConfigError.exit_status

    def close(self) -> None:
        """Kill it if it still runs, with what it has started, and wait for its end."""
        if self._process.poll() is None:
            self._kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._log.close()
        self.lease.release()

    def _kill(self) -> None:
        if not hasattr(os, "killpg"):  # Windows
            self._process.kill()
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # ended just now
            return

    def error(self) -> str | None:
        """Return one sentence on what went wrong, None when the row is there."""
        status = self._process.wait()
        if status == 0 and (self.folder / ROW_FILE).is_file():
            return None
        return failure(status, (self.folder / LOG_FILE).read_text("utf-8", errors="replace"))


def failure(status: int, log: str) -> str:
    """Return one sentence on a process that failed.

    Args:
        status: Its exit status, minus the number of the signal that ended it.
        log: What it has printed; the last line that starts with ``balora:`` counts.
    """
    if status < 0:
        try:
            name = f" {signal.Signals(-status).name}"
        except ValueError:
            name = ""
        return f"killed by signal {-status}{name}{_WORDS.get(-status, '')}"
    lines = [line.strip() for line in re.split(r"[\r\n]+", log) if line.strip()]
    own = [line.removeprefix("balora: ") for line in lines if line.startswith("balora: ")]
    return own[-1] if own else f"exit status {status}" + (f": {lines[-1]}" if lines else "")
