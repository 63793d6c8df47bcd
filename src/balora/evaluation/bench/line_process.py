"""A program in a process of its own that answers one line of JSON with another."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LineProcess:
    """A program of `workers`, by its path.

    Args:
        python: The interpreter.
        program: Its file.
        is_quiet: Whether what it says on its error output is thrown away.
    """

    def __init__(self, python: str, program: Path, *, is_quiet: bool = False) -> None:
        self._popen = subprocess.Popen(
            [python, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if is_quiet else None,
            text=True,
            encoding="utf-8",
        )

    def ask(self, message: Mapping[str, Any], *, seconds: float | None = None) -> Any | None:
        """Return the answer to a message; None where the process has ended, or takes too long.

        After None the process cannot be asked again: an answer that comes late would be taken for
        that to the next message.

        Args:
            message: As JSON holds it.
            seconds: After which it has taken too long; None waits.
        """
        writer, reader = self._popen.stdin, self._popen.stdout
        assert writer is not None
        assert reader is not None
        try:
            writer.write(json.dumps(message) + "\n")
            writer.flush()
        except BrokenPipeError:
            return None
        in_time = seconds is None or select.select([reader], [], [], seconds)[0]
        line = reader.readline() if in_time else ""
        return json.loads(line) if line else None

    @property
    def returncode(self) -> int | None:
        """Its status; None while it runs."""
        return self._popen.returncode

    def wait(self) -> int:
        """Return the status of a process that has ended by itself."""
        return self._popen.wait()

    def stop(self) -> None:
        """End the process."""
        self._popen.kill()
        self._popen.communicate()
