"""Run programs of unknown intent, and judge them where they cannot see how.

Standard library only; imports nothing else of balora. docs/benchmarks.md says what it holds.
"""

from balora.sandbox.check import Layer, check, isolation
from balora.sandbox.isolation import Isolation, SandboxError, Unisolated
from balora.sandbox.limits import MIB, Limits
from balora.sandbox.run import Result, Task, run_program

__all__ = [
    "MIB",
    "Isolation",
    "Layer",
    "Limits",
    "Result",
    "SandboxError",
    "Task",
    "Unisolated",
    "check",
    "isolation",
    "run_program",
]
