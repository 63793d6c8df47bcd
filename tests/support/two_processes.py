"""One process, and two beside it that share the work: what the tests of DDP compare."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    ),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
FILES = {"one": "one/rank-0", "two": "two/rank-0", "second": "two/rank-1"}


def run_one_and_two(folder: Path, *kinds: str) -> dict[str, dict[str, Any]]:
    """Return by kind of `process` what it left: ``one`` by itself, ``two`` and ``second`` by rank.

    ``folder`` of a kind has what else it wrote.

    Raises:
        AssertionError: If a process failed, with what was printed.
    """
    command = [sys.executable, "-m", "support.process", str(folder), *kinds]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {kind: _left(folder / kind) for kind in kinds}


def _left(folder: Path) -> dict[str, Any]:
    found = {name: torch.load(folder / f"{file}.pt") for name, file in FILES.items()}
    return {**found, "folder": folder}
