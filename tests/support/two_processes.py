"""One process, and two beside it that share the work: what the tests of DDP compare."""

from __future__ import annotations

import os
import socket
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


def run_one_and_two(script: Path, folder: Path) -> dict[str, Any]:
    """Return what ``script`` left: ``one`` by itself, ``two`` and ``second`` by the two ranks.

    ``folder`` has what else it wrote.
    """
    world = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    processes = [_start(script, folder / "one")]
    processes += [
        _start(script, folder / "two", RANK=rank, LOCAL_RANK=rank, **world) for rank in "01"
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    files = {"one": "one/rank-0", "two": "two/rank-0", "second": "two/rank-1"}
    found = {name: torch.load(folder / f"{file}.pt") for name, file in files.items()}
    return {**found, "folder": folder}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(script: Path, output: Path, **environment: str) -> subprocess.Popen[str]:
    output.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(script), str(output)],
        env=ENVIRONMENT | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
