"""Who runs the programs: root and an ordinary user, where the tests run as root."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sandbox import AsNobody, Run, require_sandbox, run_here

IS_ROOT = os.geteuid() == 0
BOTH = ["root", "nobody"] if IS_ROOT else ["user"]
NOBODY_LATER = ["root", pytest.param("nobody", marks=pytest.mark.slow)] if IS_ROOT else ["user"]


def _runner(user: str) -> Iterator[Run]:
    require_sandbox()
    if user != "nobody":
        yield run_here
        return
    with tempfile.TemporaryDirectory(prefix="nobody-") as folder:
        nobody = AsNobody(Path(folder))
        yield nobody
        nobody.close()


@pytest.fixture(scope="session", params=BOTH)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a program as one of the two kinds of user."""
    yield from _runner(request.param)


@pytest.fixture(scope="session", params=NOBODY_LATER)
def run_longer(request: pytest.FixtureRequest) -> Iterator[Run]:
    """As `run`, where the second user is left to the slow tests."""
    yield from _runner(request.param)


def _own_sandboxes() -> set[int]:
    """Return processes that bear the mark of a sandbox of ours: its command holds the scripts."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if b"balora.sandbox.programs" in (folder / "cmdline").read_bytes():
                    found.add(int(folder.name))
    return found


@pytest.fixture
def no_processes_left() -> Iterator[None]:
    """Nothing that runs in a sandbox is left after the test; other workers' are not counted."""
    before = _own_sandboxes()
    yield
    left = _own_sandboxes() - before
    deadline = time.monotonic() + 10
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= _own_sandboxes()
    assert not left
