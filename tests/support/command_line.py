"""`balora train` from the command line, for a few quick steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from balora.cli import main, overrides

LEFT_OUT = "-"
"""The value of an option that takes a field out."""


def train_with(fields: Mapping[str, str], options: Sequence[str]) -> int:
    """Run `balora train` with `options` over `fields`, and a log of every step.

    Returns:
        The exit status.
    """
    quick = {"disable_tqdm": "true", "logging_steps": "1"}
    given = (quick | dict(fields) | overrides(options)).items()
    return main(["train", *(f"--{name}={value}" for name, value in given if value != LEFT_OUT)])
