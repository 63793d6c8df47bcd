"""Run a program against tests: two sandboxes, a clock, and a verdict from the tests' side.

The program's process gets the program; the tests' process gets the tests and the expected values,
and asks the program's for values over two pipes. Only the tests' process can write a verdict.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from balora.sandbox.isolation import Isolation, SandboxError, Started
from balora.sandbox.limits import MIB, OUTPUT_KEPT, Limits
from balora.sandbox.programs.start import READY

_START_SECONDS = 120.0  # generous: the processor may be busy, and no program is running yet
_TESTS_MEMORY = 1024 * MIB
_LONGEST_VERDICT = 64 * 1024


@dataclass(frozen=True)
class Task:
    """The tests of one program."""

    names: tuple[str, ...]
    """What they use of the program: functions, classes."""
    setup: str
    """Runs before them: imports, helpers, the function that tests."""
    tests: tuple[str, ...]
    """Each is code that has to run through, such as ``assert f(1) == 2``."""


@dataclass(frozen=True)
class Result:
    """What came of a program."""

    outcome: str
    """``passed``; ``failed``, a test says no; ``raised``, the program did; ``timed out``; ``died``,
    its process ended; ``unreadable``, it sent what is no plain data; ``printed too much``; or
    ``error``, the tests themselves cannot run."""
    detail: str
    """Half a sentence on it, empty for ``passed``."""
    output: str
    """The first characters that it printed, without control characters."""
    seconds: float
    """By the clock, from when both sandboxes stood."""

    @property
    def passed(self) -> bool:
        """True when every test ran through."""
        return self.outcome == "passed"


def run_program(
    program: str, tests: Task, isolation: Isolation, limits: Limits | None = None
) -> Result:
    """Run a program against tests; nothing of it is left when this returns.

    The thread that calls is the one whose end takes the sandboxes with it.

    Raises:
        SandboxError: If a sandbox did not start; that says nothing about the program.
    """
    limits = limits or Limits()
    with ExitStack() as stack:
        requests, replies = os.pipe(), os.pipe()
        ends = stack.enter_context(_closing(*requests, *replies))
        child = stack.enter_context(_process(isolation, "child", (requests[0], replies[1]), limits))
        judge = stack.enter_context(
            _process(isolation, "judge", (requests[1], replies[0]), _limits_of_tests(limits))
        )
        ends.close()
        for process in (child, judge):
            process.wait_until_ready()
        began = time.monotonic()
        child.hand_in(program.encode("utf-8", "backslashreplace"))
        judge.hand_in(json.dumps(vars(tests)).encode("ascii"))
        verdict, printed, ended = _follow(child, judge, began + limits.clock, limits.output)
        seconds = time.monotonic() - began
        outcome, detail = _outcome(ended, verdict, child, seconds, limits)
    return Result(outcome, detail, _readable(printed), seconds)


def _limits_of_tests(limits: Limits) -> Limits:
    """Return limits for the tests: as much time, and memory for what a program may send."""
    return Limits(seconds=limits.seconds, memory=max(_TESTS_MEMORY, limits.memory))


class _Process:
    """One side while it runs."""

    def __init__(self, started: Started) -> None:
        self.popen = started.process
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.stdin, self.stdout = self.popen.stdin, self.popen.stdout
        self.begin = b""
        self.inner = None if started.inner is None else _inner_process(started.inner)

    def wait_until_ready(self) -> None:
        """Wait until all limits hold.

        Raises:
            SandboxError: If the process ends before, with what it said.
        """
        deadline = time.monotonic() + _START_SECONDS
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            while READY not in said:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise SandboxError(f"a sandbox did not start in {_START_SECONDS:.0f} seconds")
                part = os.read(self.stdout.fileno(), 4096)
                if not part:
                    raise SandboxError(_said(said))
                said += part
        self.begin = said.partition(READY)[2]

    def hand_in(self, content: bytes) -> None:
        """Write what the process is to read, whole; it cannot be mistaken for a part."""
        with suppress(BrokenPipeError), self.stdin:
            data = memoryview(b"%d\n" % len(content) + content)
            while data:
                data = data[os.write(self.stdin.fileno(), data) :]

    def stop(self) -> None:
        """End it and all that it started, and wait for that."""
        if self.inner is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.inner, signal.SIGKILL)
            os.close(self.inner)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(10)  # it reaps what it started
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.kill()
        self.popen.wait()
        self.stdin.close()
        self.stdout.close()


def _inner_process(reader: int) -> int | None:
    """Return a handle to the first process of a namespace, None if there is none.

    When it is killed its whole namespace is, and who started it lives to reap it.
    """
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    try:
        return os.pidfd_open(int(json.loads(text)["child-pid"]))
    except (ValueError, KeyError, ProcessLookupError):
        return None


def _said(text: bytes) -> str:
    lines = _readable(text).strip().splitlines()
    return lines[-1] if lines else "a sandbox ended before it was ready, without a word"


@contextmanager
def _process(
    isolation: Isolation, role: str, descriptors: tuple[int, int], limits: Limits
) -> Iterator[_Process]:
    with ExitStack() as stack:
        folder = None
        if isolation.needs_folder:
            made = tempfile.TemporaryDirectory(prefix="balora-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
        process = _Process(isolation.start(role, descriptors, limits, folder))
        stack.callback(process.stop)
        yield process


@contextmanager
def _closing(*descriptors: int) -> Iterator[ExitStack]:
    """Close descriptors at the end, or before by the stack that this gives."""
    with ExitStack() as stack:
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        yield stack


def _follow(
    child: _Process, judge: _Process, deadline: float, most_output: int
) -> tuple[bytes, bytes, str]:
    """Read until there is a verdict, or the program has gone too far.

    Returns:
        The verdict, the beginning of what the program printed, and what ended it: ``verdict``,
        ``clock`` or ``output``.
    """
    verdict, printed, num_printed = judge.begin, child.begin, len(child.begin)
    with selectors.DefaultSelector() as selector:
        for process in (child, judge):
            selector.register(process.stdout, selectors.EVENT_READ, process)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return b"", printed, "clock"
            for key, _ in ready:
                part = os.read(key.fd, 65536)
                if not part:
                    selector.unregister(key.fileobj)
                    if key.data is judge:
                        return verdict, printed + _waiting(child.stdout), "verdict"
                elif key.data is judge:
                    verdict += part[: _LONGEST_VERDICT - len(verdict)]
                else:
                    num_printed += len(part)
                    printed += part[: max(0, 4 * OUTPUT_KEPT - len(printed))]
            if num_printed > most_output:
                return b"", printed, "output"
            if time.monotonic() > deadline:
                return b"", printed, "clock"


def _waiting(stream: IO[bytes]) -> bytes:
    """Return what is there to be read, without waiting for more."""
    os.set_blocking(stream.fileno(), False)
    return stream.read(4 * OUTPUT_KEPT) or b""


def _outcome(
    ended: str, verdict: bytes, child: _Process, seconds: float, limits: Limits
) -> tuple[str, str]:
    if ended == "clock":
        return "timed out", f"not done after {limits.clock:g} seconds by the clock"
    if ended == "output":
        return "printed too much", f"more than {limits.output} bytes"
    try:
        said = json.loads(verdict)
        outcome, detail = said["outcome"], said["detail"]
    except (ValueError, KeyError, TypeError):
        # the tests' own process came to its limits, by what the program made it hold or do
        if seconds >= limits.seconds:
            return "timed out", "the tests were not done within their time"
        return "unreadable", "the tests' process ended on what the program sent"
    if outcome == "died" and _used_up_its_time(child, seconds, limits):
        return "timed out", f"not done after {limits.seconds:g} seconds of computing"
    return outcome, _readable(detail.encode("utf-8", "replace"))


def _used_up_its_time(child: _Process, seconds: float, limits: Limits) -> bool:
    """Return whether the program's process was ended by its limit on computing."""
    if seconds < limits.seconds:
        return False
    with suppress(subprocess.TimeoutExpired):
        status = child.popen.wait(10)
        ended_by = status - 128 if status > 128 else -status  # bubblewrap's way, the system's way
        return ended_by in (signal.SIGXCPU, signal.SIGKILL)
    return False


def _readable(text: bytes) -> str:
    """Return text that does nothing to a terminal, shortened."""
    decoded = text.decode("utf-8", "replace")[:OUTPUT_KEPT]
    return "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in decoded)
