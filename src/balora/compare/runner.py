"""Run cells, some at a time, each in a process of its own; whatever dies, the others go on."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tqdm.auto import tqdm

from balora.compare.cell import ATTACHED
from balora.compare.cells import Cell
from balora.compare.folder import Folder, RefusedError, row_of
from balora.rows import ROW_FILE

LOG_FILE = "log.txt"
_POLL_SECONDS = 0.05
_WORDS = {9: " (out of memory?)"}


def command_of(folder: Path) -> list[str]:
    """Return the command that runs the cell of a folder and ends when this process does."""
    return [sys.executable, "-m", "balora.compare.cell", str(folder), ATTACHED]


class Process:
    """The process of one cell, at work."""

    def __init__(self, cell: Cell, folder: Path, environment: Mapping[str, str]) -> None:
        """Start it; its output goes to ``log.txt``."""
        self.cell = cell
        self.folder = folder
        self._log: IO[bytes] = (folder / LOG_FILE).open("wb")
        # in a session of its own: Ctrl-C reaches this process alone, which then ends the others
        self._process = subprocess.Popen(
            command_of(folder),
            stdin=subprocess.PIPE,  # closed when this process dies, however it does
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """Return the exit status, None while it runs; minus the number of a signal."""
        return self._process.poll()

    def close(self) -> None:
        """Kill it if it still runs, with what it has started, and wait for its end."""
        if self._process.poll() is None:
            self._kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._log.close()

    def _kill(self) -> None:
        if not hasattr(os, "killpg"):  # Windows
            self._process.kill()
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # ended just now
            return

    def error(self, status: int) -> str | None:
        """Return one sentence on what went wrong, None when the row is there."""
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


class Runner:
    """Runs the cells of a comparison that are not finished."""

    def __init__(self, folder: Folder, *, jobs: int, keep_models: bool) -> None:
        """Take where the cells are, how many run at a time, and whether models stay."""
        self.folder = folder
        self.jobs = jobs
        self.keep_models = keep_models
        self._devices = visible_devices()
        self._running: dict[int, Process] = {}
        self._has_finished = False

    def run(self, cells: Sequence[Cell], reported: Sequence[Cell], *, title: str) -> None:
        """Run what is not finished of `cells`; `results.jsonl` has the rows of `reported`.

        A cell that fails leaves a row with its error and is run again by the next call. An
        interrupt ends the processes that run; what they were at is run anew by the next call.

        Args:
            cells: In the order in which they start.
            reported: All cells of the comparison so far.
            title: What the progress bar is called.

        Raises:
            RefusedError: If a cell is refused, which is a wrong recipe or wrong data, before any
                has finished.
        """
        missing = [cell for cell in cells if not self.folder.is_finished(cell)]
        self._has_finished |= len(missing) < len(cells)
        self.folder.collect(reported)
        waiting = iter(missing)
        progress = tqdm(total=len(cells), initial=len(cells) - len(missing), desc=title)
        with progress, self:
            self._fill(waiting)
            while self._running:
                ended = {slot: p.poll() for slot, p in self._running.items()}
                for slot, status in ended.items():
                    if status is not None:
                        self._finish(self._running.pop(slot), status)
                        self.folder.collect(reported)
                        progress.update()
                self._fill(waiting)
                time.sleep(_POLL_SECONDS)

    def _fill(self, waiting: Any) -> None:
        """Start cells in the slots that are free."""
        free = (slot for slot in range(self.jobs) if slot not in self._running)
        for slot, cell in zip(free, waiting, strict=False):
            folder = self.folder.prepare(cell)
            self._running[slot] = Process(cell, folder, self.environment(slot))

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of a process: its share of the threads, its device."""
        own = {
            "OMP_NUM_THREADS": str(max(1, num_cores() // self.jobs)),
            "TQDM_DISABLE": "1",  # a log of bars says nothing
            "PYTHONUNBUFFERED": "1",  # what was printed before a kill is in the log
        }
        environment = {**own, **os.environ}
        if len(self._devices) > 1:  # with all of them, one trainer would take all
            device = self._devices[slot % len(self._devices)]
            environment["CUDA_VISIBLE_DEVICES"] = device
        return environment

    def _finish(self, process: Process, status: int) -> None:
        error = process.error(status)
        process.close()
        if error is not None and status == RefusedError.exit_status and not self._has_finished:
            raise RefusedError(f"{process.cell.key}: {error}")
        if error is None:
            self._has_finished = True
            self.folder.drop_replaced()
        if error is not None:
            self.folder.write_row(process.cell, row_of(process.cell, error=error))
            text = f"balora: {process.cell.key} failed: {error.rstrip('.')}; its log is "
            tqdm.write(f"{text}{process.folder / LOG_FILE}", file=sys.stderr)
        elif not self.keep_models:
            shutil.rmtree(process.folder / "run", ignore_errors=True)

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.close()
        self._running.clear()


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_devices() -> list[str]:
    """Return the CUDA devices that cells may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else map(str, itertools.count())
    return [name.strip() for name, _ in zip(names, range(torch.cuda.device_count()), strict=False)]
