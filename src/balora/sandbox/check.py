"""What isolates programs here: each layer is tried by a program that it has to stop."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from balora.sandbox.isolation import Isolation, SandboxError, find_bubblewrap
from balora.sandbox.limits import Limits
from balora.sandbox.run import Task, run_program


@dataclass(frozen=True)
class Layer:
    """One thing that isolation consists of."""

    name: str
    holds: bool
    says: str
    """What was tried and what came of it."""


@dataclass(frozen=True)
class _Probe:
    name: str
    promise: str
    """What holds if every test runs through."""
    program: str
    tests: tuple[str, ...]


_FILES = """
import os
def readable(path):
    try:
        open(path).close()
    except OSError:
        return False
    return True
def writable(folder):
    try:
        open(os.path.join(folder, "probe"), "w").close()
    except OSError:
        return False
    return True
"""

_NETWORK = """
import socket
def reaches(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
def interfaces():
    with open("/proc/net/dev") as file:
        return [line.split(":")[0].strip() for line in file if ":" in line]
"""

_PROCESSES = """
import os
def commands():
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            found.append(int(name))
    return len(found)
def kills(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
def environment():
    return sorted(os.environ)
"""

_RIGHTS = """
import os
def facts():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    names = ("CapEff", "CapPrm", "NoNewPrivs", "Seccomp")
    return {name: int(lines[name], 16) for name in names}
def uid():
    return os.getuid()
def root():
    try:
        os.setuid(0)
    except OSError:
        return False
    return True
"""

_LIMITS = """
import resource, threading, os
def limit(name):
    return resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1]
def threads(most):
    event, started = threading.Event(), []
    try:
        for _ in range(most):
            thread = threading.Thread(target=event.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        pass
    event.set()
    return len(started)
def fill(folder, size):
    try:
        for number in range(4):
            with open(os.path.join(folder, str(number)), "wb") as file:
                file.write(bytes(size))
    except OSError:
        return True
    return False
"""


def _probes(secret: Path, port: int, limits: Limits) -> list[_Probe]:
    size = limits.disk // 2
    return [
        _Probe(
            "files",
            "it sees the system's and the interpreter's files and can write to two folders that "
            "lie in memory",
            _FILES,
            (
                f"assert not readable({str(secret)!r})",
                f"assert not readable({str(Path(__file__).resolve())!r})",
                "assert not readable('/etc/passwd')",
                "assert not writable('/usr/bin') and not writable('/') and not writable('/dev')",
                "assert writable('/tmp') and writable('/work')",
            ),
        ),
        _Probe(
            "network",
            "it has none",
            _NETWORK,
            (f"assert not reaches({port})", "assert interfaces() == ['lo']"),
        ),
        _Probe(
            "processes",
            "it sees its own alone, and none of the environment's variables",
            _PROCESSES,
            (
                "assert commands() <= 2",
                f"assert not kills({os.getpid()})",
                "assert set(environment()) <= {'HOME', 'LANG', 'LC_CTYPE', 'LD_LIBRARY_PATH', "
                "'PATH', 'PWD', 'PYTHONHASHSEED', 'TMPDIR'}",
            ),
        ),
        _Probe(
            "rights",
            "an ordinary user without capabilities, under a filter of system calls",
            _RIGHTS,
            (
                "assert facts() == {'CapEff': 0, 'CapPrm': 0, 'NoNewPrivs': 1, 'Seccomp': 2}",
                "assert uid() > 0 and not root()",
            ),
        ),
        _Probe(
            "limits",
            f"{limits.seconds:g} seconds of computing, {limits.memory >> 20} MiB, "
            f"{limits.processes} processes and threads, {limits.disk >> 20} MiB on each folder",
            _LIMITS,
            (
                f"assert limit('CPU') <= {limits.rlimits()['CPU'][1]}",
                f"assert limit('AS') <= {limits.memory} and limit('CORE') == 0",
                f"assert threads({limits.processes + 8}) < {limits.processes}",
                f"assert fill('/tmp', {size}) and fill('/work', {size})",
            ),
        ),
    ]


_TWICE = "def twice(x): return 2 * x"


def _layers(isolation: Isolation) -> Iterator[Layer]:
    limits = Limits()
    right = run_program(_TWICE, Task(("twice",), "", ("assert twice(2) == 4",)), isolation, limits)
    wrong = run_program(_TWICE, Task(("twice",), "", ("assert twice(2) == 5",)), isolation, limits)
    yield Layer(
        "verdict",
        right.passed and wrong.outcome == "failed",
        "a right program passes and a wrong one fails, judged in a sandbox of its own"
        if right.passed and wrong.outcome == "failed"
        else f"a right program {right.outcome} and a wrong one {wrong.outcome} {right.detail}",
    )
    with _bait() as (secret, port):
        for probe in _probes(secret, port, limits):
            names = tuple(
                line[4:].partition("(")[0]
                for line in probe.program.splitlines()
                if line.startswith("def ")
            )
            result = run_program(probe.program, Task(names, "", probe.tests), isolation, limits)
            says = probe.promise if result.passed else _says(probe, result.detail, result.outcome)
            yield Layer(probe.name, result.passed, says)


def _says(probe: _Probe, detail: str, outcome: str) -> str:
    number = detail.removeprefix("test ").partition(":")[0]
    test = probe.tests[int(number) - 1] if number.isdigit() else detail
    return f"does not hold ({outcome}): {test.removeprefix('assert ')}"


@contextmanager
def _bait() -> Iterator[tuple[Path, int]]:
    """Give what a program must not reach: a file of the user's, a server of this machine's."""
    with (
        tempfile.NamedTemporaryFile(prefix="balora-secret-") as file,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        os.chmod(file.name, 0o644)  # readable by all, so that only the sandbox is in the way
        yield Path(file.name), server.getsockname()[1]


def check() -> list[Layer]:
    """Return what isolates programs here, one layer after the other; a few short programs run."""
    try:
        isolation = find_bubblewrap()
        first = Layer("bubblewrap", True, isolation.describe())
        return [first, *_layers(isolation)]
    except SandboxError as error:
        return [Layer("bubblewrap", False, str(error))]


@cache
def isolation() -> Isolation:
    """Return what isolates programs, tried once in this process.

    Raises:
        SandboxError: If one layer does not hold: then nothing is to be run.
    """
    broken = [layer for layer in check() if not layer.holds]
    if broken:
        raise SandboxError("; ".join(f"{layer.name}: {layer.says}" for layer in broken))
    return find_bubblewrap()
