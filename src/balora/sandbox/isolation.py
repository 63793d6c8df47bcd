"""How a process is started that holds untrusted code: by bubblewrap, or plainly on demand."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from balora.sandbox.limits import MIB, Limits
from balora.sandbox.scripts import order, script
from balora.sandbox.seccomp import filter_bytes

_FIRST_UID, _NUM_UIDS = 1 << 30, 1 << 29  # away from the users of any machine
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # sets have one order in every run
}


class SandboxError(Exception):
    """Programs cannot be isolated here, or a sandbox did not start; the message says why."""


@dataclass(frozen=True)
class Started:
    """A process that is not yet known to be ready."""

    process: subprocess.Popen[bytes]
    inner: int | None
    """Reads as JSON the pid, seen from here, of the first process inside."""


class Isolation(Protocol):
    """Starts processes."""

    name: str
    """As rows say it: ``bubblewrap`` or ``none``."""
    needs_folder: bool
    """Whether a process is given a folder of this machine."""

    def start(
        self, role: str, descriptors: Sequence[int], limits: Limits, folder: Path | None
    ) -> Started:
        """Start an interpreter with a role of `balora.sandbox.programs`.

        Its standard input, output and errors are pipes; errors go where the output goes.

        Args:
            role: ``child`` or ``judge``.
            descriptors: Handed over under their own numbers.
            limits: What it may use.
            folder: Empty, its own, if `needs_folder`; a sandbox has folders that die with it.
        """


class Bubblewrap:
    """Namespaces, a seccomp filter and limits; see docs/benchmarks.md for what each holds."""

    name = "bubblewrap"
    needs_folder = False

    def __init__(self, program: str) -> None:
        self.program = program

    def describe(self) -> str:
        """Return version and place."""
        done = subprocess.run(
            [self.program, "--version"], capture_output=True, text=True, check=False
        )
        return f"{done.stdout.split()[-1] if done.stdout.split() else '?'} at {self.program}"

    def start(
        self, role: str, descriptors: Sequence[int], limits: Limits, folder: Path | None
    ) -> Started:
        """Start an interpreter; see `Isolation.start`."""
        uid = _FIRST_UID + secrets.randbelow(_NUM_UIDS) if os.geteuid() == 0 else None
        seccomp, inner = _filled_pipe(filter_bytes()), os.pipe()
        try:
            process = _open(
                [
                    self.program,
                    *_arguments(limits, self.program),
                    *("--seccomp", str(seccomp), "--info-fd", str(inner[1]), "--"),
                    *_interpreter(_inside(_executable())),
                    order(role, descriptors, limits.rlimits(), uid),
                ],
                (*descriptors, seccomp, inner[1]),
                {},
                None,
            )
        except BaseException:
            os.close(inner[0])
            raise
        finally:
            os.close(seccomp)
            os.close(inner[1])
        return Started(process, inner[0])


class Unisolated:
    """Limits, a session of its own, a temporary folder, an empty environment: no isolation."""

    name = "none"
    needs_folder = True

    def start(
        self, role: str, descriptors: Sequence[int], limits: Limits, folder: Path | None
    ) -> Started:
        """Start an interpreter; see `Isolation.start`.

        The limit on processes is left out: outside a namespace it counts all of the user's.
        """
        rlimits = limits.rlimits()
        del rlimits["NPROC"]
        command = [*_interpreter(str(_executable())), order(role, descriptors, rlimits, None)]
        environment = _ENVIRONMENT | {"HOME": str(folder), "TMPDIR": str(folder)}
        return Started(_open(command, descriptors, environment, folder), None)


def _open(
    command: list[str], descriptors: Sequence[int], environment: dict[str, str], cwd: Path | None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            env=environment,
            cwd=cwd,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise SandboxError(f"`{command[0]}` cannot be started: {error.strerror}") from error


def _filled_pipe(content: bytes) -> int:
    """Return what reads these few bytes, fewer than a pipe holds."""
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return reader


def _interpreter(executable: str) -> list[str]:
    return [executable, "-s", "-S", "-B", "-c", script()]


def _executable() -> Path:
    """Return the interpreter itself: not that of a virtual environment, which has packages."""
    return Path(os.path.realpath(sys.executable))


_OWN_NAME = "/python"


def _is_of_system(path: Path) -> bool:
    return path.is_relative_to("/usr")


def _inside(executable: Path) -> str:
    """Return the path of the interpreter inside: its place outside may name the user."""
    return str(executable) if _is_of_system(executable) else f"{_OWN_NAME}/bin/python3"


@cache
def bwrap_offers(program: str) -> str:
    """Return what this bubblewrap says of its options, empty if it cannot be run."""
    try:
        done = subprocess.run(
            [program, "--help"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _arguments(limits: Limits, program: str) -> list[str]:
    """Return the options of bubblewrap: what a process sees, has and is."""
    options = ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for what in ("pid", "net", "ipc", "uts", "cgroup-try"):
        options += [f"--unshare-{what}"]
    if os.geteuid() == 0:
        # user id 0 is free of limits on processes, also in a namespace: so no user namespace, and
        # the interpreter changes to a user of its own before it reads anything. Process 1 stays
        # bubblewrap's: that change takes the order to die with the parent from who makes it.
        options += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        options += ["--unshare-user", "--uid", "65534", "--gid", "65534", "--as-pid-1"]
        options += ["--disable-userns"] if "--disable-userns" in bwrap_offers(program) else []
    options += _file_system(limits)
    for name, value in (_ENVIRONMENT | {"HOME": "/work", "TMPDIR": "/tmp"}).items():
        options += ["--setenv", name, value]
    if not _is_of_system(_executable()):
        options += ["--setenv", "LD_LIBRARY_PATH", f"{_OWN_NAME}/lib"]
    return [*options, "--hostname", "sandbox", "--chdir", "/work"]


def _file_system(limits: Limits) -> list[str]:
    """Return what is seen of files: the system's, the interpreter's, and two empty folders."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib32", "lib64", "bin", "sbin"):
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    executable = _executable()
    if not _is_of_system(executable):
        for made in (_OWN_NAME, f"{_OWN_NAME}/bin"):
            options += ["--perms", "0755", "--dir", made]
        options += ["--ro-bind", str(executable), f"{_OWN_NAME}/bin/python3"]
        for name in ("lib", "lib64"):
            source = str(Path(sys.base_prefix, name))
            options += ["--ro-bind-try", source, f"{_OWN_NAME}/{name}"]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for folder, size in (("/tmp", limits.disk), ("/work", limits.disk), ("/dev/shm", MIB)):
        options += ["--perms", "1777", "--size", str(size), "--tmpfs", folder]
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/"]


def find_bubblewrap() -> Bubblewrap:
    """Return bubblewrap, if it is one that can do what is needed; whether it may is not tried.

    Raises:
        SandboxError: If it is missing or too old, or this machine is of a kind without a filter.
    """
    machine = os.uname()
    if machine.sysname != "Linux" or machine.machine != "x86_64" or sys.maxsize < 1 << 32:
        raise SandboxError(
            f"programs are isolated on Linux on x86_64 only, and this is {machine.sysname} on "
            f"{machine.machine}"
        )
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bubblewrap is not installed: there is no program `bwrap`")
    missing = [
        name
        for name in ("--size", "--perms", "--as-pid-1", "--clearenv")
        if name not in bwrap_offers(program)
    ]
    if missing:
        raise SandboxError(
            f"`{program}` does not offer {' and '.join(missing)}: version 0.7 or newer is needed"
        )
    return Bubblewrap(program)
