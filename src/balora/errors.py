"""What can go wrong, with the exit status that the command line gives it.

Every message is one sentence (or a list of them) that names the setting as the user wrote it,
its value, why it cannot work and what to set instead.
"""

from __future__ import annotations


class BaloraError(Exception):
    """A failed run: exit status 1."""

    exit_status = 1


class NonFiniteError(BaloraError, FloatingPointError):
    """A loss that became NaN or infinite: exit status 1."""


class WriteError(BaloraError):
    """A place that cannot be written, as when the disk is full: exit status 1."""


class ConfigError(BaloraError, ValueError):
    """A recipe, an option or an argument that cannot work: exit status 2."""

    exit_status = 2


class DataError(BaloraError, ValueError):
    """A data set that cannot be trained on: exit status 2."""

    exit_status = 2


class RowError(DataError):
    """One row of a data set that cannot be trained on; ``row`` counts from 0 in that data set."""

    def __init__(self, row: int, problem: str, *, dataset: str = "") -> None:
        super().__init__(f"row {row} of the {dataset} data: {problem}" if dataset else problem)
        self.row = row
        self.problem = problem
        self.dataset = dataset
