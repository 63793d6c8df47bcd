"""What every interpreter in a sandbox does first: give up rights, then say that it is ready.

Nothing untrusted has been read before that. It is the kind of user who starts it that decides what
there is to give up: `uid` is set when that is root.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from typing import Any

READY = b"\0ready\n"
"""Written to the standard output when all limits hold; before it, only bubblewrap can write."""


def limit_and_report(uid: int | None, rlimits: Mapping[str, Any]) -> None:
    """Become a user without rights and set the limits.

    Args:
        uid: A user that nobody else is: limits on processes are counted by user. None keeps the
            present one.
        rlimits: Soft and hard limits, by name.
    """
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for name, (soft, hard) in rlimits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:  # pragma: no branch
            had = resource.getrlimit(kind)[1]
            most = hard if had == resource.RLIM_INFINITY else min(hard, had)
            resource.setrlimit(kind, (min(soft, most), most))
    os.write(1, READY)


def read_all(descriptor: int) -> bytes:
    """Read what is handed in, and put nothing in its place.

    Raises:
        EOFError: If it is cut off: the evaluator is gone, and nothing is to be run.
    """
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        content = file.read()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    size, _, rest = content.partition(b"\n")
    if not size or int(size) != len(rest):
        raise EOFError("the evaluator is gone")
    return rest
