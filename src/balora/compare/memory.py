"""The peak memory of a process. Standard library only, until a CUDA device is asked."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_memory_mib() -> float | None:
    """Return the most memory that this process has held so far, in MiB; None if that is unknown.

    On a CUDA device that is what torch has allocated there at most. Otherwise it is the resident
    memory of the process, without its children. Linux hands ``ru_maxrss`` of the parent on to a
    process that it starts, so the kernel's own high-water mark goes before it.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return round(int(torch.cuda.max_memory_allocated()) / 2**20, 1)
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return round(int(found[1]) / 1024, 1)
    return _resource_mib()


def _resource_mib() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
