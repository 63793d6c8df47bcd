"""The sandbox for tests: who runs programs in it, and what is skipped where there is none.

As root every test runs twice: in this process, and by a process of the user `nobody` with an
interpreter that this user can read. It has a copy of the package, which needs nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balora import sandbox
from balora.sandbox.isolation import find_bubblewrap
from balora.sandbox.run import Result, Task, run_program

NOBODY = 65534
Run = Callable[..., Result]
"""Takes a program, its tests and limits."""

_SERVER = """\
import json, sys
from balora.sandbox.isolation import find_bubblewrap
from balora.sandbox.limits import Limits
from balora.sandbox.run import Task, run_program
isolation = find_bubblewrap()
for line in sys.stdin:
    program, tests, limits = json.loads(line)
    result = run_program(program, Task(*tests), isolation, Limits(**limits))
    print(json.dumps(vars(result)), flush=True)
"""


def why_not() -> str | None:
    """Return why programs cannot be isolated here, None if they can be."""
    try:
        sandbox.isolation()
    except sandbox.SandboxError as error:
        return str(error)
    return None


def require_sandbox() -> None:
    """Skip where programs cannot be isolated, or fail where the sandbox is required (CI)."""
    reason = why_not()
    if reason is None:
        return
    if os.environ.get("BALORA_REQUIRE_SANDBOX"):
        pytest.fail(f"programs cannot be isolated here: {reason}")
    pytest.skip(f"programs cannot be isolated here: {reason}")


def run_here(program: str, tests: Task, **limits: Any) -> Result:
    """Run a program by this process."""
    return run_program(program, tests, find_bubblewrap(), sandbox.Limits(**limits))


class AsNobody:
    """Runs programs by a process of the user `nobody`."""

    def __init__(self, folder: Path) -> None:
        self.command = nobody_command(folder)
        self.process = subprocess.Popen(
            [*self.command, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
            cwd="/",
        )

    def __call__(self, program: str, tests: Task, **limits: Any) -> Result:
        """Run a program."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = [program, [tests.names, tests.setup, tests.tests], limits]
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Result(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def nobody_command(folder: Path) -> list[str]:
    """Return how an interpreter is started as `nobody`; the folder gets a copy of the package.

    Every user must be able to reach the folder, which pytest's own folders are not made for.
    It skips where there is no interpreter that every user can read.
    """
    own = Path(os.path.realpath(sys.executable))
    readable = [path for path in (own, Path("/usr/bin/python3")) if _readable_by_all(path)]
    setpriv = shutil.which("setpriv")
    if not readable or setpriv is None:
        pytest.skip("no interpreter that the user nobody can run, or no setpriv")
    package = folder / "balora"
    if not package.exists():
        source = Path(sandbox.__file__).parent
        shutil.copytree(source, package / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
        (package / "__init__.py").touch()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", str(readable[0])]


def _readable_by_all(path: Path) -> bool:
    return path.exists() and all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)
