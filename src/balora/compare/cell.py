"""One cell in a process of its own: train, evaluate, leave the row.

    python -m balora.compare.cell FOLDER

FOLDER holds ``cell.json`` and ``recipe.yaml``. The row appears last, as ``result.json``. An error
is one line, the last of the output that starts with ``balora:``. As long as the process works it
holds a lock beside the folder, so that no two ever work in one.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from balora.environment import hide_bars_in_logs, print_messages
from balora.errors import BaloraError, ConfigError

ATTACHED = "--attached"
"""The option with which the process ends when the one that started it does."""
LOCK_SUFFIX = ".lock"
_PR_SET_PDEATHSIG = 1
"""Of Linux: which signal the process gets when its parent dies."""


def main(arguments: list[str] | None = None) -> int:
    """Run the cell of a folder and return the exit status."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m balora.compare.cell", description=__doc__)
    parser.add_argument("folder", type=Path, help="with cell.json and recipe.yaml")
    parser.add_argument(ATTACHED, action="store_true", help="end when the input does")
    options = parser.parse_args(arguments)
    if options.attached:
        _end_with_parent()
    lock = lock_of(options.folder)
    try:
        lock.acquire()
        try:
            _run(options.folder, start)
        finally:
            lock.release()
    except Timeout:
        sys.stderr.write(f"balora: another process works in {str(options.folder)!r}.\n")
        return ConfigError.exit_status
    except BaloraError as error:
        sys.stderr.write(f"balora: {error}\n")
        return error.exit_status
    return 0


def lock_of(folder: Path) -> FileLock:
    """Return the lock of a cell's folder, a file beside it: the folder itself is made anew."""
    return FileLock(folder.with_name(f"{folder.name}{LOCK_SUFFIX}"), timeout=0)


def _run(folder: Path, start: float) -> None:
    # what follows imports torch; the time counts
    from balora.compare.cells import Cell
    from balora.compare.folder import row_of
    from balora.compare.measured import run_and_measure
    from balora.files import write_json
    from balora.rows import ROW_FILE

    cell = Cell.read(folder)
    figures = run_and_measure(cell, folder)
    seconds = round(time.monotonic() - start, 2)
    write_json(folder / ROW_FILE, row_of(cell, **figures, seconds=seconds))


def _end_with_parent() -> None:
    """End this process with the one that started it, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # elsewhere, and where it died before the line above
    threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    """End this process at the end of its input: whoever started it is gone, killed or not."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _traceback_and_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    traceback.print_exception(kind, error, trace)
    first = (str(error).strip() or "no message").splitlines()[0]
    sys.stderr.write(f"balora: {kind.__name__}: {first}\n")


if __name__ == "__main__":
    hide_bars_in_logs()
    print_messages()
    sys.excepthook = _traceback_and_line
    sys.exit(main())
