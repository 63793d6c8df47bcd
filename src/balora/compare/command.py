"""``balora compare``: cells, sweeps, tables and report, from one recipe."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from balora.compare.comparison import Comparison
from balora.compare.folder import LEASE, Folder, RefusedError
from balora.compare.lease import Lease, is_held
from balora.compare.plan import Plan
from balora.compare.reading import read_comparison
from balora.compare.stages import begin, built_plan, conclude, number_of, report, run_cells
from balora.compare.worker import send, work
from balora.config.values import parse_texts, read_switch
from balora.environment import telling_once
from balora.errors import ConfigError, DataError
from balora.recipes.load import check_recipe
from balora.rows import BASE, COMPARISON_FILE

_log = logging.getLogger(__name__)

_SWITCHES = ("dry_run", "overwrite", "report_only")
_PATIENCE_SECONDS = 20.0
"""For the cells of a comparison that was killed a moment ago."""
_POLL_SECONDS = 0.1
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
        given: The options by name: ``dry_run``, ``overwrite`` and ``report_only``; ``worker``,
            ``study`` and ``slurm``, see `work` and `send`; fields of `CompareConfig`;
            ``lab.FIELD``; any other is a field of the recipe.
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
    if options.keys() & {"worker", "study", "slurm"}:
        _work(config_path, options, [name for name in _SWITCHES if switches[name]], show)
        return
    if switches["report_only"]:
        _refuse_others(name for name in ("dry_run", "overwrite") if switches[name])
        report(_finished(config_path, options), show)
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
        if switches["overwrite"]:
            _wait_for_cells(folder)
        with _kept(folder, is_replaced=switches["overwrite"]):
            plan = built_plan(comparison)
            begin(plan, folder)
            outage = conclude(run_cells(plan, folder), folder)
        report(folder.path, show)
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
    if not folder.has_replaced:
        return
    lease = Lease.take(folder.lease)
    if lease is not None:
        try:
            _wait_for_cells(folder)
            folder.put_back()
        finally:
            lease.release()


@contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    """Hold the folder, which is made; one that stays empty is removed."""
    if folder.path.is_file():
        raise ConfigError(f"`output_dir` {str(folder.path)!r} is a file; name a folder.")
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    try:
        lease = Lease.take(folder.lease)
    except OSError as error:
        raise ConfigError(
            f"`output_dir` {str(folder.path)!r} cannot be written: {error.strerror}; name another "
            "folder."
        ) from error
    if lease is None:
        raise ConfigError(
            f"`output_dir` {str(folder.path)!r} is in use by another `balora compare`; wait "
            "for it, join it with `--worker`, or name another folder."
        )
    try:
        yield
    finally:
        lease.release()
        _remove_empty(folder, made)


def _wait_for_cells(folder: Folder) -> None:
    """Wait for cells of a comparison that was killed; they end with it, but not all at once.

    Raises:
        ConfigError: If cells are run all the same, as by workers.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while held := folder.held_cells():
        if time.monotonic() > end:
            raise ConfigError(
                f"`output_dir` {str(folder.path)!r} is in use: a cell of an earlier `balora "
                f"compare`, or of a worker, is still run in {str(held[0])!r}; wait for it, or end "
                "it."
            )
        time.sleep(_POLL_SECONDS)


def _remove_empty(folder: Folder, made: Sequence[Path]) -> None:
    """Remove the lock where there is nothing else, then the folders that were made for nothing."""
    if {entry.name for entry in folder.path.iterdir()} == {LEASE}:
        shutil.rmtree(folder.lease)
    for path in made:
        if any(path.iterdir()):
            return
        path.rmdir()


def _check_runs(comparison: Comparison, plan: Plan) -> None:
    """Check the run of every method under every condition as far as no weights are needed.

    What they share, data and warnings, is read and told once. Model and data of a lab are there
    only when they have been built.

    Raises:
        ConfigError: Naming the cell.
        DataError: As well.
    """
    if comparison.lab is not None:
        return
    from tqdm.auto import tqdm

    from balora.data.once import reading_once
    from balora.trainers.preflight import check_run

    first = {(cell.condition, cell.method): cell for cell in reversed(plan.final())}
    cells = [cell for cell in first.values() if cell.method != BASE]
    with reading_once(), telling_once():
        for cell in tqdm(cells, desc="Checking"):
            try:
                check_run(check_recipe(cell.recipe))
            except (ConfigError, DataError) as error:
                kind = DataError if isinstance(error, DataError) else ConfigError
                raise kind(f"{cell.key}: {error}") from error


def _listing(plan: Plan) -> str:
    """Return the cells, one a line, with the fields of the method's own."""
    cells = [*plan.choosing(), *plan.final()]
    return "\n".join([*(cell.key for cell in cells), number_of(cells)])


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
    if folder.has_plan and not is_held(folder.lease):
        folder.collect_planned()  # workers leave each its own
    return folder.path


def _work(
    config_path: Path | str | None,
    options: dict[str, str],
    switches: Sequence[str],
    show: Callable[[str], None],
) -> None:
    """Be a worker, or submit workers."""
    given = [name for name in ("worker", "slurm") if name in options]
    for name in [*given[1:], *switches]:
        raise ConfigError(f"`--{given[0]}` and `--{name}` cannot both act; leave one of them out.")
    if "study" in options and given != ["worker"]:
        raise ConfigError(
            "`--study` says what study a worker's folder must hold, so it acts beside `--worker` "
            "alone; leave it out."
        )
    if given == ["slurm"]:
        slurm = parse_texts({"slurm": options.pop("slurm")}, {"slurm": dict[str, Any]})["slurm"]
        if not isinstance(slurm, dict):
            raise ConfigError(
                f"`--slurm` must be a mapping such as '{{timeout_min: 600}}', got {slurm!r}."
            )
        out = read_comparison(config_path, options).folder
        options.pop("output_dir", None)
        send(out, config_path, options, slurm, show=show)
        return
    worker = options.pop("worker")
    if worker in ("true", "false"):
        raise ConfigError("`--worker` needs the folder that the workers share: `--worker OUT`.")
    work(Path(worker), config_path, options, study=options.pop("study", None), show=show)


def _refuse_others(names: Iterable[str]) -> None:
    for name in names:
        raise ConfigError(
            f"`--report_only` runs nothing, so `--{name}` cannot act; leave one of them out. "
            "It takes `--output_dir`, `--baseline` and `--metric`."
        )
