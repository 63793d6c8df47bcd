"""One cell in a process of its own: train, evaluate, leave the row.

    python -m balora.compare.cell FOLDER

FOLDER holds ``cell.json`` and ``recipe.yaml``. The row appears last, as ``result.json``. An error
is one line, the last of the output that starts with ``balora:``.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType

from balora.errors import BaloraError

ATTACHED = "--attached"
"""The option with which the process ends when the one that started it does."""


def main(arguments: list[str] | None = None) -> int:
    """Run the cell of a folder and return the exit status."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m balora.compare.cell", description=__doc__)
    parser.add_argument("folder", type=Path, help="with cell.json and recipe.yaml")
    parser.add_argument(ATTACHED, action="store_true", help="end when the input does")
    options = parser.parse_args(arguments)
    if options.attached:
        threading.Thread(target=_end_with_input, daemon=True).start()
    # what follows imports torch; the time counts
    from balora.compare.cells import Cell
    from balora.compare.folder import ROW_FILE, row_of
    from balora.compare.measured import run_and_measure
    from balora.files import write_json

    try:
        cell = Cell.read(options.folder)
        figures = run_and_measure(cell, options.folder)
    except BaloraError as error:
        sys.stderr.write(f"balora: {error}\n")
        return error.exit_status
    seconds = round(time.monotonic() - start, 2)
    write_json(options.folder / ROW_FILE, row_of(cell, **figures, seconds=seconds))
    return 0


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
    sys.excepthook = _traceback_and_line
    sys.exit(main())
