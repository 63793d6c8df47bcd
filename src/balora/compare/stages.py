"""A comparison from its beginning to its rows: what is begun, chosen, run, and concluded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import NamedTuple

from balora.compare.benchmarks import judge_answers
from balora.compare.cells import Cell, slug_of
from balora.compare.comparison import Comparison
from balora.compare.folder import Folder
from balora.compare.plan import LabFiles, Parts, Plan, combinations
from balora.compare.sweep import Choice, choose, failure
from balora.errors import BaloraError
from balora.files import write_json
from balora.rows import CHOICES_FILE, RESULTS_FILE

_log = logging.getLogger(__name__)


class Ran(NamedTuple):
    """What has been run of a comparison."""

    cells: list[Cell]
    """All of them, those that choose among them."""
    choices: dict[str, Choice]
    """What the sweep chose, by method; of several models by ``MODEL/METHOD``."""
    is_complete: bool
    """Whether every cell has its row; else others are at work."""
    num_failed: int
    """How many cells have failed in this very call."""


def built_plan(comparison: Comparison) -> Plan:
    """Build the lab of every condition and plan with it; one that is in the cache is there."""
    return Plan(comparison, _build_labs(comparison))


def begin(plan: Plan, folder: Folder) -> None:
    """Write what is asked for and planned, and of a sweep the two parts of the training rows.

    Raises:
        ConfigError: If cells that are finished are not those of the labs, which are built now.
    """
    comparison, choosing, final = plan.comparison, plan.choosing(), plan.final()
    folder.write_comparison(comparison)
    folder.check_cells(final)
    if choosing:
        from balora.compare.held_out import write_parts

        for condition, place in _held_out(plan, folder).items():
            write_parts(plan.data_of(condition), place, comparison.config.held_out_fraction)
    folder.write_plan([*choosing, *final])


def run_cells(plan: Plan, folder: Folder, *, is_worker: bool = False) -> Ran:
    """Run the cells that choose, then with what they have chosen all others.

    Args:
        plan: With labs that are built, of a comparison that was begun.
        folder: Of the comparison.
        is_worker: Whether others may work in the folder, see `Runner`; a worker waits for the
            cells that choose and for no others.
    """
    from balora.compare.runner import Runner

    runner = Runner(folder, plan.comparison.config, is_worker=is_worker)
    choosing: list[Cell] = []
    choices: dict[str, Choice] = {}
    if plan.choosing():
        places = _held_out(plan, folder)
        choosing = plan.choosing({name: Parts.of(place) for name, place in places.items()})
        # rows that are there stay in the results while values are chosen
        runner.run(choosing, [*choosing, *plan.final()], title="Choosing")
        choices = _choices(plan.comparison, choosing, folder)
        if not is_worker:
            _write_choices(choices, folder)
    final = plan.final({name: choice.fields for name, choice in choices.items()})
    runner.run(
        final,
        [*choosing, *final],
        title="Comparing",
        waits=not is_worker,
        impossible=_impossible(plan.comparison, final, choices),
    )
    cells = [*choosing, *final]
    return Ran(cells, choices, all(map(runner.is_settled, cells)), runner.num_failed)


def conclude(ran: Ran, folder: Folder) -> BaloraError | None:
    """Have answers judged, collect the rows of all cells, and say how many others the folder has.

    Returns:
        Why a server has not judged all answers, None where it has.
    """
    if ran.choices:
        _write_choices(ran.choices, folder)
    others = folder.num_others(ran.cells)
    if others:
        _log.warning(
            "%s of other methods, seeds or conditions in %s: retained, and absent from tables and "
            "report",
            number_of(range(others)),
            folder.path,
        )
    outage = None
    try:
        judge_answers(folder, [cell for cell in ran.cells if cell.stage == "final"])
    except BaloraError as error:  # the cells have finished, and are reported without it
        outage = BaloraError(
            f"{str(error).rstrip('.')}; every answer is kept, and the same command has them judged"
        )
    folder.collect(ran.cells)
    return outage


def report(folder: Path, show: Callable[[str], None], again: str = "the same command") -> None:
    """Write tables and report, show the table, then say what has failed."""
    from balora.report.page import REPORT_FILE, MissingPackageError, write_report
    from balora.report.sections import failed
    from balora.report.study import read_study
    from balora.report.tables import format_console, write_tables
    from balora.usage import reading_lines

    study = read_study(folder)
    show(format_console(study))
    note = f"Report: {folder / REPORT_FILE}."
    try:
        write_tables(study)
        write_report(study)
    except MissingPackageError as error:
        note = f"No report: {error} Then give the same command with `--report_only`."
    except OSError as error:
        raise BaloraError(
            f"tables and report cannot be written: {error}; all rows are in "
            f"{folder / RESULTS_FILE}; once there is room, `--report_only` makes the rest of them"
        ) from error
    where = f"Rows: {folder / RESULTS_FILE}. Tables: {folder / 'table.md'}, .csv and .tex."
    errors = failed(study)
    listed = ["", "Failed:", *(f"  {key}: {error}" for key, error in errors)] if errors else []
    use = f"These lines read the rows:\n\n{reading_lines(folder / RESULTS_FILE)}"
    show("\n".join(["", where, note, *listed, use]))
    if errors:
        raise BaloraError(
            f"{number_of(errors)} failed, the first is {errors[0][0]}; {folder / 'cells'} "
            f"has the logs, and {again} runs them again"
        )


def number_of(cells: Sized) -> str:
    """Return such as "1 cell" or "3 cells"."""
    return "1 cell" if len(cells) == 1 else f"{len(cells)} cells"


def _held_out(plan: Plan, folder: Folder) -> dict[str, Path]:
    """Return where the two parts of the training rows are, by the condition that chooses."""
    place, names = folder.path / "held_out", plan.choosing_conditions
    return {name: place / slug_of(name) if len(names) > 1 else place for name in names}


def _build_labs(comparison: Comparison) -> dict[str, LabFiles]:
    if comparison.lab is None:
        return {}
    from balora.lab.build import build_lab
    from balora.lab.config import lab_config

    built = {}
    for name in comparison.conditions:
        lab = build_lab(lab_config(comparison.lab_of(name) or {}))
        built[name] = LabFiles(lab.model, lab.train_file, lab.test_file)
    return built


def _choices(comparison: Comparison, choosing: Sequence[Cell], folder: Folder) -> dict[str, Choice]:
    """Choose for every method, of each model, that there was something to choose for."""
    config, choices = comparison.config, {}
    for name, cells in _by_choice(comparison, choosing).items():
        found = [row for cell in cells if (row := folder.row(cell)) is not None]
        values = combinations(config.swept(cells[0].method))
        choices[name] = choose(values, found, config.metric, config.sweep_tolerance)
    return choices


def _by_choice(comparison: Comparison, cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(comparison.choice(cell.condition, cell.method), []).append(cell)
    return found


def _write_choices(choices: Mapping[str, Choice], folder: Folder) -> None:
    recorded = {name: choice._asdict() for name, choice in choices.items()}
    write_json(folder.path / CHOICES_FILE, recorded)


def _impossible(
    comparison: Comparison, final: Sequence[Cell], choices: Mapping[str, Choice]
) -> dict[str, str]:
    """Return by key why cells cannot run: nothing was chosen for their method."""
    return {
        cell.key: failure(choices[name])
        for name, cells in _by_choice(comparison, final).items()
        if name in choices and choices[name].fields is None
        for cell in cells
    }
