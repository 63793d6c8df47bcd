"""What importing a part of balora loads besides it."""

from __future__ import annotations

import subprocess
import sys


def loaded_by(*modules):
    """Return the top-level packages that a fresh process has after importing ``modules``."""
    names = "{name.partition('.')[0] for name in sys.modules}"
    code = f"import sys, {', '.join(modules)}; print(*{names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_mathematics_needs_torch_alone():
    loaded = loaded_by("balora.regularizers", "balora.objective", "balora.fused")
    assert {"torch", "balora"} <= loaded
    assert not {"transformers", "peft", "trl", "datasets", "accelerate"} & loaded
