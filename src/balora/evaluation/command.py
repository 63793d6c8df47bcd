"""``balora eval``: runs of one kind, measured as their kind is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.config.options import EvalOptions
from balora.errors import ConfigError
from balora.models.source import ModelSource, read_recipe
from balora.recipes.kinds import kind_of, load


def evaluate(
    runs: Sequence[Path], base: ModelSource, given: Mapping[str, str], options: EvalOptions
) -> tuple[str, dict[str, Any]]:
    """Evaluate finished runs.

    Args:
        runs: Their folders, at least one.
        base: The pre-trained model, and how all of them are loaded: `base_of_runs`.
        given: Data fields as they were typed, which replace those of the recipes.
        options: Of the command.

    Returns:
        The tables, and everything by the name of the run.

    Raises:
        ConfigError: If runs of both kinds are named, or a setting cannot work.
        DataError: If the rows cannot be read.
    """
    kinds = [kind_of(read_recipe(run)) for run in runs]
    for run, kind in zip(runs, kinds, strict=True):
        if kind is not kinds[0]:
            raise ConfigError(
                f"`{runs[0]}` is a run of {kinds[0].words} and `{run}` one of {kind.words}; "
                "evaluate them apart."
            )
    table: tuple[str, dict[str, Any]] = load(kinds[0].evaluate)(runs, base, given, options)
    return table
