"""``balora compare``: cells, sweeps, tables and report, from one recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from balora.compare.benchmarks import judge_answers
from balora.compare.cells import Cell
from balora.compare.comparison import Comparison, read_comparison
from balora.compare.folder import LOCK_FILE, Folder, RefusedError, row_of
from balora.compare.plan import LabFiles, Parts, Plan, combinations
from balora.compare.sweep import Choice, choose, failure
from balora.config.values import read_switch
from balora.errors import BaloraError, ConfigError, DataError
from balora.files import write_json
from balora.recipes.load import check_recipe
from balora.rows import BASE, CHOICES_FILE, COMPARISON_FILE, RESULTS_FILE

_log = logging.getLogger(__name__)

_SWITCHES = ("dry_run", "overwrite", "report_only")
_PATIENCE_SECONDS = 20.0
"""For the cells of a comparison that was killed a moment ago."""
_FREE = ("baseline", "metric", "output_dir")
"""What `--report_only` takes beside."""


def compare(
    config_path: Path | str | None,
    given: Mapping[str, str],
    *,
    show: Callable[[str], None],
) -> None:
    """Run every cell that is missing, write tables and report, and show the table.

    Args:
        config_path: The recipe, a YAML file: the fields of `balora train`, and `compare` and `lab`.
        given: The options by name: ``dry_run``, ``overwrite`` and ``report_only``; fields of
            `CompareConfig`; ``lab.FIELD``; any other is a field of the recipe.
        show: Takes what is for the console.

    Raises:
        ConfigError: If anything about the recipe, its files or the folder is wrong; before a cell
            runs or one is removed.
        DataError: If rows are missing; before as well.
        BaloraError: When all is written, if a cell has failed.
        RefusedError: If the first cell that ends was refused and none is finished: the recipe
            cannot work. Nothing that this call has written stays, and what it would have
            overwritten does.
    """
    options = dict(given)
    switches = {name: read_switch(name, options.pop(name, "false")) for name in _SWITCHES}
    if switches["report_only"]:
        _refuse_others(name for name in ("dry_run", "overwrite") if switches[name])
        _report(_finished(config_path, options), show)
        return
    comparison = read_comparison(config_path, options)
    plan = Plan(comparison)
    plan.check()
    plan.check_files()
    for entry in comparison.config.idle_entries():
        _log.warning("%s, so it does nothing", entry)
    folder = Folder(comparison.folder)
    folder.check_reads(comparison)
    _recover(folder)
    if switches["overwrite"]:
        folder.check_ours()
    else:
        folder.check(comparison)
        folder.check_cells([*plan.choosing(), *plan.final()])
    if switches["dry_run"]:
        _check_runs(comparison, plan)
        show(_listing(plan))
        return
    with _locked(folder):
        with _kept(folder, is_replaced=switches["overwrite"]):
            folder.write_comparison(comparison)
            outage = _run(comparison, folder)
        _report(folder.path, show)
        if outage is not None:
            raise outage


@contextmanager
def _kept(folder: Folder, *, is_replaced: bool) -> Iterator[None]:
    """Keep what is in the folder until a cell has finished; one that is refused leaves nothing."""
    if is_replaced:
        folder.set_aside()
    is_new = not folder.is_a_comparison
    try:
        yield
    except BaseException as error:
        if folder.has_replaced:
            folder.put_back()
        elif is_new and isinstance(error, RefusedError):
            folder.clear()
        raise
    folder.drop_replaced()


def _recover(folder: Folder) -> None:
    """Put back what a comparison that was killed had set aside; not while another works there."""
    lock = FileLock(folder.path / LOCK_FILE, timeout=0)
    if folder.has_replaced:
        with suppress(Timeout), lock:
            _wait_for_cells(folder)
            folder.put_back()


@contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    """Hold the folder, which is made; no cell works in it. One that stays empty is removed."""
    if folder.path.is_file():
        raise ConfigError(f"`output_dir` {str(folder.path)!r} is a file; name a folder.")
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    lock = FileLock(folder.path / LOCK_FILE, timeout=0)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:  # a timeout is one as well
        if isinstance(error, Timeout):
            raise ConfigError(
                f"`output_dir` {str(folder.path)!r} is in use by another `balora compare`; wait "
                "for it or name another folder."
            ) from None
        raise ConfigError(
            f"`output_dir` {str(folder.path)!r} cannot be written: {error.strerror}; name another "
            "folder."
        ) from error
    try:
        _wait_for_cells(folder)
        yield
    finally:
        lock.release()
        _remove_empty(folder, made)


def _wait_for_cells(folder: Folder) -> None:
    """Wait for cells of a comparison that was killed; they end with it, but not all at once."""
    for file in folder.cell_locks():
        lock = FileLock(file, timeout=_PATIENCE_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"`output_dir` {str(folder.path)!r} is in use: a cell of an earlier `balora "
                f"compare` still works in {str(file.with_suffix(''))!r}; wait for it, or end it."
            ) from None
        lock.release()


def _remove_empty(folder: Folder, made: Sequence[Path]) -> None:
    """Remove the lock where there is nothing else, then the folders that were made for nothing."""
    if {entry.name for entry in folder.path.iterdir()} == {LOCK_FILE}:
        (folder.path / LOCK_FILE).unlink()
    for path in made:
        if any(path.iterdir()):
            return
        path.rmdir()


def _check_runs(comparison: Comparison, plan: Plan) -> None:
    """Check the run of every method under every condition as far as no weights are needed.

    Model and data of a lab are there only when they have been built.

    Raises:
        ConfigError: Naming the cell.
        DataError: As well.
    """
    if comparison.lab is not None:
        return
    from balora.trainers.preflight import check_run

    first = {(cell.condition, cell.method): cell for cell in reversed(plan.final())}
    for cell in first.values():
        if cell.method == BASE:
            continue
        try:
            check_run(check_recipe(cell.recipe))
        except (ConfigError, DataError) as error:
            kind = DataError if isinstance(error, DataError) else ConfigError
            raise kind(f"{cell.key}: {error}") from error


def _listing(plan: Plan) -> str:
    """Return the cells, one a line, with the fields of the method's own."""
    cells = [*plan.choosing(), *plan.final()]
    return "\n".join([*(cell.key for cell in cells), _number_of(cells)])


def _number_of(cells: Sized) -> str:
    return "1 cell" if len(cells) == 1 else f"{len(cells)} cells"


def _run(comparison: Comparison, folder: Folder) -> BaloraError | None:
    """Build the labs, choose what there is to choose, run the cells, and collect their rows.

    Returns:
        Why a server has not judged all answers, None where it has.
    """
    from balora.compare.runner import Runner

    config = comparison.config
    plan = Plan(comparison, _build_labs(comparison))
    planned = plan.final()
    folder.check_cells(planned)  # the labs are built: are they those of the finished cells?
    runner = Runner(folder, jobs=config.jobs, keep_models=config.keep_models)
    choosing: list[Cell] = []
    choices: dict[str, Choice] = {}
    if plan.choosing():
        choosing = plan.choosing(_parts(comparison, plan, folder))
        # rows that are there stay in the results while values are chosen
        runner.run(choosing, [*choosing, *planned], title="Choosing")
        choices = _choices(comparison, choosing, folder)
    final = plan.final({name: choice.fields for name, choice in choices.items()})
    able = []
    for cell in final:
        choice = choices.get(cell.method)
        if choice is None or choice.fields is not None:
            able.append(cell)
        else:
            folder.prepare(cell)
            folder.write_row(cell, row_of(cell, error=failure(choice)))
    runner.run(able, [*choosing, *final], title="Comparing")
    others = folder.num_others([*choosing, *final])
    if others:
        _log.warning(
            "%s of other methods, seeds or conditions in %s: retained, and absent from tables and "
            "report",
            _number_of(range(others)),
            folder.path,
        )
    outage = None
    try:
        judge_answers(folder, final)
    except BaloraError as error:  # the cells have finished, and are reported without it
        outage = BaloraError(
            f"{str(error).rstrip('.')}; every answer is kept, and the same command has them judged"
        )
    folder.collect([*choosing, *final])
    return outage


def _build_labs(comparison: Comparison) -> dict[str, LabFiles]:
    """Build the lab of every condition; one that is in the cache is there at once."""
    if comparison.lab is None:
        return {}
    from balora.lab.build import build_lab
    from balora.lab.config import lab_config

    built = {}
    for name in comparison.conditions:
        lab = build_lab(lab_config(comparison.lab_of(name) or {}))
        built[name] = LabFiles(lab.model, lab.train_file, lab.test_file)
    return built


def _parts(comparison: Comparison, plan: Plan, folder: Folder) -> Parts:
    """Write the two parts of the training rows, which are those of the first condition."""
    from balora.compare.held_out import write_parts

    data = plan.data_of(comparison.conditions[0])
    return write_parts(data, folder.path / "held_out", comparison.config.held_out_fraction)


def _choices(comparison: Comparison, choosing: Sequence[Cell], folder: Folder) -> dict[str, Choice]:
    """Choose for every method that there was something to choose for, and write it down."""
    config, choices = comparison.config, {}
    for method in dict.fromkeys(cell.method for cell in choosing):
        rows = [folder.row(cell) for cell in choosing if cell.method == method]
        values = combinations(config.swept(method))
        found = [row for row in rows if row is not None]
        choices[method] = choose(values, found, config.metric, config.sweep_tolerance)
    recorded = {name: choice._asdict() for name, choice in choices.items()}
    write_json(folder.path / CHOICES_FILE, recorded)
    return choices


def _finished(config_path: Path | str | None, options: Mapping[str, str]) -> Path:
    """Return the folder of a comparison, with another baseline or metric where they are given."""
    _refuse_others(name for name in options if name not in _FREE)
    path = options.get("output_dir")
    if path is None:
        if config_path is None:
            raise ConfigError("`--report_only` needs the folder: pass `--output_dir`.")
        path = str(read_comparison(config_path, {}).folder)
    _recover(Folder(Path(path)))
    if not (Path(path) / COMPARISON_FILE).is_file():
        raise ConfigError(f"{path!r} holds no comparison: it has no {COMPARISON_FILE}.")
    # the folder may have been moved since
    comparison = read_comparison(Path(path) / COMPARISON_FILE, {**options, "output_dir": path})
    if "metric" in options and comparison.config.sweep:
        raise ConfigError(
            f"`--metric` is {options['metric']}, but the sweep of {path!r} has chosen by another; "
            "remove it, or compare in another folder."
        )
    folder = Folder(comparison.folder)
    if options.keys() & {"baseline", "metric"}:
        with _locked(folder):  # a run that goes on would report as is asked for here
            folder.write_comparison(comparison)
    return folder.path


def _refuse_others(names: Iterable[str]) -> None:
    for name in names:
        raise ConfigError(
            f"`--report_only` runs nothing, so `--{name}` cannot act; leave one of them out. "
            "It takes `--output_dir`, `--baseline` and `--metric`."
        )


def _report(folder: Path, show: Callable[[str], None]) -> None:
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
            f"{_number_of(errors)} failed, the first is {errors[0][0]}; {folder / 'cells'} "
            "has the logs, and the same command runs them again"
        )
