"""Cells that train nothing: a program in the place of a cell's, told by the environment what to do.

``CELL_LORA`` says it for the method ``lora``: ``refuse``, ``kill``, ``interrupt``, ``hang``,
``raise``, ``silent``, or seconds to take; without it the cell leaves a row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from balora.compare import process, runner

CELL = """
import json, os, pathlib, signal, sys, threading, time
from balora.compare.cell import _end_with_input
threading.Thread(target=_end_with_input, daemon=True).start()
folder = pathlib.Path(sys.argv[1])
cell = json.loads((folder / "cell.json").read_text())
what = os.environ.get("CELL_" + cell["method"].upper(), "")
if what == "refuse":
    print("balora: `lora_r` is 99, which is too large.")
    sys.exit(2)
with open(folder.parent.parent.parent / "started.txt", "a") as file:
    file.write(f"{cell['method']}-{cell['seed']} {folder.name} {os.getpid()}\\n")
print("working", flush=True)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "interrupt":
    os.kill(os.getppid(), signal.SIGINT)
if what in ("hang", "interrupt"):
    time.sleep(60)
if what == "raise":
    sys.exit("balora: the data are wrong")
if what == "silent":
    sys.exit(0)
if what.replace(".", "").isdigit():
    time.sleep(float(what))
(folder / "run").mkdir()
from balora.compare.cells import Cell
from balora.compare.folder import row_of
from balora.files import write_json
rate = cell["fields"].get("learning_rate", 0.0)
metrics = {"kl": 1.0, "exact_match": rate}
write_json(folder / "result.json", row_of(Cell.read(folder), metrics=metrics))
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the program in the place of a cell's, on a machine without a device."""
    path = tmp_path / "fake_cell.py"
    path.write_text(CELL)
    monkeypatch.setattr(
        process, "command_of", lambda folder, *rest: [sys.executable, str(path), str(folder)]
    )
    monkeypatch.setattr(runner, "visible_devices", list)
    return path


def started(tmp_path: Path) -> list[str]:
    """Return which cells were started, in order: ``lora-0``."""
    path = tmp_path / "started.txt"
    text = path.read_text() if path.is_file() else ""
    return [line.split()[0] for line in text.splitlines()]


def has_ended(pid: str | int) -> bool:
    """Say whether a process is gone; a zombie that nobody waits for is."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
