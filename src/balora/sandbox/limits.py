"""What a generated program may use. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024
OUTPUT_KEPT = 4096
"""Characters of a program's own output that a row keeps."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use before it is ended.

    Time and memory are of one process; the program has `processes` of them, threads included.
    """

    seconds: float = 10.0
    """Of computing. By the clock it has three times as much: other work may share the processor."""
    memory: int = 1024 * MIB
    """Bytes of address space."""
    processes: int = 8
    """Processes and threads at once, its first one included; held where programs are isolated."""
    disk: int = 16 * MIB
    """Bytes of a file, and of each of its two folders, which lie in memory."""
    files: int = 64
    """Open files, pipes and sockets at once."""
    output: int = 16 * MIB
    """Bytes it may print; `OUTPUT_KEPT` characters are kept."""

    @property
    def clock(self) -> float:
        """Seconds by the clock."""
        return 3 * self.seconds

    def rlimits(self) -> dict[str, tuple[int, int]]:
        """Return soft and hard limits by the end of the name that `resource` has for them."""
        seconds = max(1, round(self.seconds))
        same = {
            "AS": self.memory,
            "FSIZE": self.disk,
            "NOFILE": self.files,
            "NPROC": self.processes,
            "CORE": 0,
            "MEMLOCK": 0,
            "MSGQUEUE": 0,
            "NICE": 0,
            "RTPRIO": 0,
        }
        # past the soft limit a program may still catch the signal; one second later it may not
        return {"CPU": (seconds, seconds + 1)} | {name: (n, n) for name, n in same.items()}
