"""Run cells, some at a time, each in a process of its own; whatever dies, the others go on.

Each cell is taken by its lease before it is run, so that any number of runners, on any number of
machines, can work in one folder.
"""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from tqdm.auto import tqdm

from balora.compare.cells import Cell
from balora.compare.config import CompareConfig
from balora.compare.folder import Folder, RefusedError, row_of
from balora.compare.lease import Lease
from balora.compare.process import LOG_FILE, Process
from balora.errors import ConfigError

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_LOOK_SECONDS = 1.0
"""Until cells that others hold are looked at again."""


class Runner:
    """Runs the cells of a comparison that are not finished."""

    def __init__(self, folder: Folder, config: CompareConfig, *, is_worker: bool = False) -> None:
        """Take where the cells are and how they run.

        Args:
            folder: Of the comparison.
            config: How many run at a time, on what, and whether models stay.
            is_worker: Whether others work in the folder too: a cell that has failed is then left
                as it is, and rows are not collected.

        Raises:
            ConfigError: If this machine has not what the cells need.
        """
        self.folder = folder
        self.config = config
        self.is_worker = is_worker
        self.num_failed = 0
        self._devices = visible_devices()
        self._running: dict[int, Process] = {}
        self._has_finished = False
        self._next_look = 0.0
        self._has_told = False
        self._failed_before: dict[str, int] = {}
        _check_machine(config, len(self._devices))

    def run(
        self,
        cells: Sequence[Cell],
        reported: Sequence[Cell],
        *,
        title: str,
        waits: bool = True,
        impossible: Mapping[str, str] | None = None,
    ) -> None:
        """Run what is not finished of `cells`; `results.jsonl` has the rows of `reported`.

        A cell that fails leaves a row with its error and is run again by the next call. An
        interrupt ends the processes that run; what they were at is run anew by the next call.

        Args:
            cells: In the order in which they start.
            reported: All cells of the comparison so far.
            title: What the progress bar is called.
            waits: Whether to wait for cells that others run.
            impossible: By key, why a cell cannot run; its row says so.

        Raises:
            RefusedError: If a cell is refused, which is a wrong recipe or wrong data, before any
                has finished.
        """
        self._failed_before = {} if self.is_worker else self.folder.failed(cells)
        waiting = [cell for cell in cells if not self.is_settled(cell)]
        self._has_finished |= any(self.folder.is_finished(cell) for cell in cells)
        self._collect(reported)
        progress = tqdm(total=len(cells), initial=len(cells) - len(waiting), desc=title)
        with progress, self:
            self._fill(waiting, impossible or {})
            while self._running or (waits and waiting):
                for slot, process in [*self._running.items()]:
                    if process.has_ended:
                        del self._running[slot]
                        waiting += [] if self._finish(process) else [process.cell]
                        self._collect(reported)
                self._fill(waiting, impossible or {})
                self._tell(waiting)
                progress.update(len(cells) - len(waiting) - len(self._running) - progress.n)
                time.sleep(_POLL_SECONDS)
        self._collect(reported)

    def _tell(self, waiting: Sequence[Cell]) -> None:
        """Say once what is waited for."""
        if waiting and not self._running and not self._has_told:
            self._has_told = True
            _log.info("waiting for cells that others run, of which the first is %s", waiting[0].key)

    def _collect(self, reported: Sequence[Cell]) -> None:
        if not self.is_worker:
            self.folder.collect(reported)

    def is_settled(self, cell: Cell) -> bool:
        """Say whether a cell has its row, which may be an error of this very call."""
        return self.folder.is_settled(cell, self._failed_before)

    def _fill(self, waiting: list[Cell], impossible: Mapping[str, str]) -> None:
        """Start cells that are free in the slots that are; what others have run waits no more."""
        free = [slot for slot in range(self.config.jobs) if slot not in self._running]
        if not free or time.monotonic() < self._next_look:
            return
        for cell in [*waiting]:
            if not free:
                return
            lease = None if self.is_settled(cell) else Lease.take(self.folder.lease_of(cell))
            if self.is_settled(cell):  # also since then
                waiting.remove(cell)
            elif lease is not None and cell.key in impossible:
                self.folder.prepare(cell)
                self.folder.write_row(cell, row_of(cell, error=impossible[cell.key]))
                waiting.remove(cell)
            elif lease is not None:
                waiting.remove(cell)
                slot = free.pop(0)
                self._running[slot] = self._start(cell, lease, slot)
                continue
            if lease is not None:
                lease.release()
        self._next_look = time.monotonic() + _LOOK_SECONDS if waiting else 0.0

    def _start(self, cell: Cell, lease: Lease, slot: int) -> Process:
        return Process(cell, lease, self.folder.prepare(cell), self.environment(slot))

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of a process: its share of the threads, its devices."""
        jobs, num_devices = self.config.jobs, self.config.devices
        own = {
            "OMP_NUM_THREADS": str(max(1, num_cores() // (jobs * num_devices))),
            "TQDM_DISABLE": "1",  # a log of bars says nothing
            "PYTHONUNBUFFERED": "1",  # what was printed before a kill is in the log
        }
        environment = {**own, **os.environ}
        if len(self._devices) > num_devices:  # with all of them, one trainer would take all
            first = slot % (len(self._devices) // num_devices) * num_devices
            devices = self._devices[first : first + num_devices]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return environment

    def _finish(self, process: Process) -> bool:
        """Close a process that has ended; False where another has taken its cell meanwhile."""
        if not process.lease.is_held():
            process.close()
            return False
        error = process.error()
        if error is not None and process.was_refused and not self._has_finished:
            process.close()
            raise RefusedError(f"{process.cell.key}: {error}")
        if error is None:
            self._has_finished = True
            self.folder.drop_replaced()
            if not self.config.keep_models:
                shutil.rmtree(process.folder / "run", ignore_errors=True)
        else:
            self.num_failed += 1
            self.folder.write_row(process.cell, row_of(process.cell, error=error))
            text = f"balora: {process.cell.key} failed: {error.rstrip('.')}; its log is "
            tqdm.write(f"{text}{process.folder / LOG_FILE}", file=sys.stderr)
        process.close()
        return True

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.close()
        self._running.clear()


def _check_machine(config: CompareConfig, num_devices: int) -> None:
    """Refuse cells that this machine cannot run.

    Raises:
        ConfigError: Naming what is missing.
    """
    if config.launcher is not None:
        program = shlex.split(config.launcher)[0]
        if shutil.which(program) is None:
            raise ConfigError(
                f"`launcher` is {config.launcher!r}, but this machine has no command {program!r}; "
                "install it, or name another."
            )
    if num_devices and config.devices > num_devices:
        raise ConfigError(
            f"`devices` is {config.devices}, but this machine has {num_devices}; lower it, or run "
            "the cells where there are more."
        )


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
