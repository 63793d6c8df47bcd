"""``balora compare --worker OUT``: one of any number of workers in a folder that they share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balora.compare.comparison import Comparison
from balora.compare.folder import Folder
from balora.compare.lease import Lease
from balora.compare.plan import Plan
from balora.compare.reading import read_comparison
from balora.compare.slurm import check_settings, submit
from balora.compare.stages import Ran, begin, built_plan, conclude, number_of, report, run_cells
from balora.errors import BaloraError, ConfigError
from balora.rows import COMPARISON_FILE

_log = logging.getLogger(__name__)

NEW_STUDY = "new"
"""What `--study` is to begin a comparison and run nothing."""
_OWN = ("jobs", "devices")
"""What a worker has for itself, also where the folder says what is compared."""
_POLL_SECONDS = 1.0


def work(
    out: Path,
    config_path: Path | str | None,
    options: Mapping[str, str],
    *,
    study: str | None = None,
    show: Callable[[str], None],
) -> None:
    """Take free cells and run them until there is none; whoever finishes the last one reports.

    Args:
        out: The folder of the comparison. With a recipe it is begun by the first worker.
        config_path: The recipe, which must be the same for all workers; None takes the folder's.
        options: Fields over the recipe; without one, those of `_OWN` alone.
        study: The name of the study that the folder must hold already; `NEW_STUDY` to begin the
            comparison if nobody has, show the name and run nothing; None takes any folder.
        show: Takes what is for the console.

    Raises:
        ConfigError: If the folder holds no comparison or another one, or was begun by another
            version of balora; if it is not that of the study.
        DataError: If rows are missing.
        BaloraError: If a cell has failed here.
    """
    folder = Folder(out)
    if study not in (None, NEW_STUDY):
        folder.check_study(study)
    comparison = begun(folder, config_path, options)
    if study == NEW_STUDY:
        show(str(folder.study))
        return
    ran = run_cells(built_plan(comparison), folder, is_worker=True)
    if ran.is_complete:
        _conclude(ran, folder, show)
    else:
        left = [cell for cell in ran.cells if folder.row(cell) is None]
        show(f"No cell is free; others still run {number_of(left)} of {len(ran.cells)}.")
    if ran.num_failed:
        raise BaloraError(
            f"{number_of(range(ran.num_failed))} failed here; {folder.path / 'cells'} has the logs"
        )


def begun(folder: Folder, config_path: Path | str | None, options: Mapping[str, str]) -> Comparison:
    """Begin a comparison that nobody has begun, or wait for the one who does, and return it.

    Args:
        folder: Of the comparison.
        config_path: As for `work`.
        options: As for `work`.
    """
    comparison = _comparison(folder, config_path, options)
    plan = Plan(comparison)
    plan.check()
    plan.check_files()
    folder.check_reads(comparison)
    if config_path is not None:
        folder.check(comparison)
    while not folder.has_plan:
        lease = Lease.take(folder.lease)
        if lease is None:
            time.sleep(_POLL_SECONDS)
            continue
        try:
            if not folder.has_plan:  # also since then
                begin(built_plan(comparison), folder)
                _log.info(
                    "begun as study %s; a worker with `--study %s` refuses another folder of this "
                    "name, as on a machine that does not share it",
                    *[folder.study] * 2,
                )
        finally:
            lease.release()
    folder.check_plan([*plan.choosing(), *plan.final()])
    return comparison


def _comparison(
    folder: Folder, config_path: Path | str | None, options: Mapping[str, str]
) -> Comparison:
    """Return what is compared: as the recipe says, or the folder."""
    where = f"`--worker` {str(folder.path)!r}"
    if "output_dir" in options:
        raise ConfigError(f"{where} names the folder already; leave `--output_dir` out.")
    given = {**options, "output_dir": str(folder.path)}
    if config_path is not None:
        return read_comparison(config_path, given)
    others = [name for name in options if name not in _OWN]
    if others:
        raise ConfigError(
            f"{where} runs what the folder says, so `--{others[0]}` cannot act without `--config`; "
            "leave it out."
        )
    if not folder.is_a_comparison:
        raise ConfigError(
            f"{where} holds no comparison: it has no {COMPARISON_FILE}. Name its folder, or begin "
            "one with `--config RECIPE`."
        )
    return read_comparison(folder.path / COMPARISON_FILE, given)


def send(
    out: Path,
    config_path: Path | str | None,
    options: Mapping[str, str],
    settings: Mapping[str, Any],
    *,
    show: Callable[[str], None],
) -> None:
    """Begin a comparison and submit workers to SLURM.

    Args:
        out: As for `work`.
        config_path: The recipe; None where every field is given.
        options: As for `work`.
        settings: As for `submit`.
        show: As for `work`.

    Raises:
        ConfigError: As `work`; if submitit is missing; if it refuses the settings.
        DataError: As `work`.
    """
    check_settings(settings)
    folder = Folder(out)
    plan = Plan(begun(folder, config_path, options))
    left = [c for c in [*plan.choosing(), *plan.final()] if folder.row(c) is None]
    show(submit(folder, settings, len(left)) if left else "Every cell has its row.")


def _conclude(ran: Ran, folder: Folder, show: Callable[[str], None]) -> None:
    lease = Lease.take(folder.lease)
    if lease is None:
        show("Every cell has its row; another process writes the report.")
        return
    try:
        outage = conclude(ran, folder)
        config = folder.path / COMPARISON_FILE
        report(folder.path, show, again=f"`balora compare --config {config}`")
        if outage is not None:
            raise outage
    finally:
        lease.release()
