"""One cell in a process of its own: train, evaluate, leave the row.

    python -m balora.compare.cell FOLDER

FOLDER holds ``cell.json`` and ``recipe.yaml``. The row appears last, as ``result.json``. An error
is one line, the last of the output that starts with ``balora:``. Whoever starts it holds the lease
of the folder, so that no two ever work in one. A launcher may start it several times: all train,
and the first measures and writes.
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

from balora.compare.lease import Lease
from balora.environment import hide_bars_in_logs, launched, print_messages
from balora.errors import BaloraError

ATTACHED = "--attached"
"""The option with which the process ends when the one that started it does."""
LEASE = "--lease"
"""The option that names the file of the lease which the process renews beside its parent."""
_PR_SET_PDEATHSIG = 1
"""Of Linux: which signal the process gets when its parent dies."""


def main(arguments: list[str] | None = None) -> int:
    """Run the cell of a folder and return the exit status."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m balora.compare.cell", description=__doc__)
    parser.add_argument("folder", type=Path, help="with cell.json and recipe.yaml")
    parser.add_argument(ATTACHED, action="store_true", help="end when the input does")
    parser.add_argument(LEASE, type=Path, help="the lease of the folder")
    options = parser.parse_args(arguments)
    if options.attached:
        _end_with_parent()
    if options.lease is not None and launched()[0] == 0:
        Lease.share(options.lease, on_loss=lambda: os._exit(1))
    try:
        _run(options.folder, start)
    except BaloraError as error:
        if launched()[0] == 0:
            sys.stderr.write(f"balora: {error}\n")
        return error.exit_status
    return 0


def _run(folder: Path, start: float) -> None:
    # what follows imports torch; the time counts
    from balora.compare.cells import Cell
    from balora.compare.folder import row_of
    from balora.compare.measured import run_and_measure
    from balora.files import write_json
    from balora.rows import ROW_FILE

    cell = Cell.read(folder)
    measured = run_and_measure(cell, folder)
    if measured is None:
        return
    seconds = round(time.monotonic() - start, 2)
    write_json(folder / ROW_FILE, row_of(cell, **measured, seconds=seconds))


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
