"""The folder of a comparison: what was asked for, the cells' own files, and one row for each.

.. code-block:: text

    .lease/             held by who begins the comparison, or runs it as a whole, or reports on it
    plan.json           the cells, the version of balora that they are to be run with, and a name
                        of the study that no other folder has
    cells/SLUG.lease/   held by who runs the cell, see :mod:`balora.compare.lease`
    cells/SLUG/         recipe.yaml, cell.json, log.txt, details.json, run/, and result.json: the
                        row, written last; a cell is finished when it is there and has no error
    .replaced/          with `--overwrite`: what was there, until a cell of the new comparison is
                        finished; a run that ends before that puts it back, or the next command does

and the files that :mod:`balora.rows` names. Everything but logs and models appears by rename, so a
file that is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from balora import __version__
from balora.compare.cells import Cell, differences, flat
from balora.compare.comparison import Comparison
from balora.compare.lease import is_held
from balora.config.values import dump_mapping, read_mapping
from balora.errors import ConfigError
from balora.files import write_json, write_text
from balora.folders import Read, check_apart, check_not_overwritten
from balora.rows import (
    CHOICES_FILE,
    COMPARE,
    COMPARISON_FILE,
    RESULTS_FILE,
    ROW_FILE,
    new_row,
    read_row,
    write_rows,
)
from balora.staging import is_stage
from balora.state import read_json

LEASE = ".lease"
"""Of the folder as a whole."""
PLAN_FILE = "plan.json"
_OURS = (
    COMPARISON_FILE,
    PLAN_FILE,
    RESULTS_FILE,
    CHOICES_FILE,
    "cells",
    "held_out",
    "table.md",
    "table.csv",
    "table.tex",
    "summary.csv",
    "report.html",
    "plots",
)
_REPLACED = ".replaced"
_MOVING, _GONE = f"{_REPLACED}-moving", f"{_REPLACED}-gone"
"""What is on its way aside or back, and what is to be deleted."""
_READ = ("model_name_or_path", "dataset_name", "eval_dataset_name", "chat_template_path")
"""Fields of a comparison that name what it reads."""
_LAB_MODEL = "lab.model"
_NOT_COMPARED = ("output_dir", "disable_tqdm")


class RefusedError(ConfigError):
    """What the first cell was refused for, which is true of the comparison."""


class Folder:
    """The folder of one comparison."""

    def __init__(self, path: Path) -> None:
        """Take a folder that may not be there yet."""
        self.path = path

    def of(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.path / "cells" / cell.slug

    @property
    def is_a_comparison(self) -> bool:
        """Say whether a comparison was begun in it."""
        return (self.path / COMPARISON_FILE).is_file()

    @property
    def lease(self) -> Path:
        """The lock of who begins, runs or reports on the whole."""
        return self.path / LEASE

    def lease_of(self, cell: Cell) -> Path:
        """Return the lock of a cell, beside its folder: that one is made anew."""
        return self.path / "cells" / f"{cell.slug}{LEASE}"

    def held_cells(self) -> list[Path]:
        """Return the folders of the cells that are being run, by anyone."""
        leases = sorted((self.path / "cells").glob(f"*{LEASE}"))
        return [lease.with_suffix("") for lease in leases if is_held(lease)]

    def check_reads(self, comparison: Comparison) -> None:
        """Refuse a folder that is, holds or lies in one that is read, or clears a file of data.

        Raises:
            ConfigError: Naming both.
        """
        fields = comparison.to_dict()
        places = [fields, *map(comparison.condition, comparison.conditions)]
        named = {(name, str(own[name])) for own in places for name in _READ if own.get(name)}
        reads = [Read(f"`{name}`", path) for name, path in sorted(named)]
        folders = [read for read in reads if Path(read.path).expanduser().is_dir()]
        files = [read for read in reads if read not in folders]
        check_apart(self.path, "`output_dir`", folders)
        written = re.compile("|".join(map(re.escape, _OURS)))
        check_not_overwritten(self.path, "`output_dir`", files, written)

    def check_ours(self) -> None:
        """Refuse to clear a folder where things called as ours are not a comparison's.

        Raises:
            ConfigError: With their names.
        """
        names = [name for name in _OURS if (self.path / name).exists()]
        if names and COMPARISON_FILE not in names:
            raise ConfigError(
                f"`output_dir` {str(self.path)!r} holds no comparison, but {', '.join(names)}, "
                "which `--overwrite` would remove. Name another folder, or remove them yourself."
            )

    def clear(self) -> None:
        """Remove what a comparison writes, and nothing else; last, what says that it is one."""
        for name in (*_OURS[1:], _OURS[0]):
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @property
    def has_replaced(self) -> bool:
        """Say whether what was there before stands aside, or has been left on its way."""
        return any((self.path / name).exists() for name in (_REPLACED, _MOVING, _GONE))

    def set_aside(self) -> None:
        """Set what a comparison has written aside, until `put_back` or `drop_replaced`."""
        (self.path / _MOVING).mkdir()
        for name in (*_OURS[1:], _OURS[0]):
            if os.path.lexists(self.path / name):
                os.rename(self.path / name, self.path / _MOVING / name)
        os.rename(self.path / _MOVING, self.path / _REPLACED)

    def put_back(self) -> None:
        """Put back what was set aside in the place of what has been written since.

        Every step can be the last, and the next call goes on.
        """
        if (self.path / _REPLACED).is_dir():
            self.clear()
            os.rename(self.path / _REPLACED, self.path / _MOVING)
        if (self.path / _MOVING).is_dir():
            for path in (self.path / _MOVING).iterdir():
                os.rename(path, self.path / path.name)
            (self.path / _MOVING).rmdir()
        self.drop_replaced()

    def drop_replaced(self) -> None:
        """Delete what was set aside: the new comparison stands."""
        if (self.path / _REPLACED).is_dir():
            os.rename(self.path / _REPLACED, self.path / _GONE)
        shutil.rmtree(self.path / _GONE, ignore_errors=True)

    def check(self, comparison: Comparison) -> None:
        """Refuse a folder that holds something else, or another comparison.

        Methods, seeds, conditions, the baseline and how many run at a time may differ.

        Raises:
            ConfigError: With each field that differs, and both values.
        """
        if self.path.is_file():
            raise ConfigError(f"`output_dir` {str(self.path)!r} is a file; name a folder.")
        there = self.path / COMPARISON_FILE
        if not there.is_file():
            if self.path.is_dir() and any(map(_is_foreign, self.path.iterdir())):
                raise ConfigError(
                    f"`output_dir` {str(self.path)!r} is not empty and holds no comparison. Name "
                    "another folder, or pass `--overwrite`."
                )
            return
        self._refuse(differences(_shared(read_mapping(there)), _shared(comparison.to_dict())))

    def check_cells(self, cells: Sequence[Cell]) -> None:
        """Refuse cells that are finished and were made with other settings.

        Raises:
            ConfigError: With each field that differs, and both values.
        """
        found = []
        for cell in cells:
            made = self._finished(cell)
            if made is not None:
                there, here = made.identity(), cell.identity()
                if not here.get(_LAB_MODEL, True):
                    del there[_LAB_MODEL], here[_LAB_MODEL]  # it is still to be built
                found += [f"{cell.key}: {line}" for line in differences(there, here)]
        self._refuse(found)

    def _refuse(self, found: Sequence[str]) -> None:
        if not found:
            return
        more = f"; and {len(found) - 8} more differences" if len(found) > 8 else ""
        raise ConfigError(
            f"`output_dir` {str(self.path)!r} holds another comparison: {'; '.join(found[:8])}"
            f"{more}. Name another folder, or pass `--overwrite` to start again."
        )

    def write_comparison(self, comparison: Comparison) -> None:
        """Write ``comparison.yaml``."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / COMPARISON_FILE, comparison.to_yaml())

    def write_plan(self, cells: Sequence[Cell]) -> None:
        """Write ``plan.json``: by it workers tell that they would run the same cells.

        The study keeps its name when it is planned again.
        """
        try:
            study = self.study
        except ConfigError:  # damaged, and written again
            study = None
        plan = {"study": study or uuid.uuid4().hex[:12], "balora": __version__}
        write_json(self.path / PLAN_FILE, {**plan, "cells": _digests(cells)})

    @property
    def has_plan(self) -> bool:
        """Say whether a comparison was begun and planned in it."""
        return (self.path / PLAN_FILE).is_file()

    @property
    def study(self) -> str | None:
        """The name of the study that was begun in it, which no other folder has; None without one.

        Raises:
            ConfigError: If the file is damaged.
        """
        return self._plan().get("study") if self.has_plan else None

    def check_study(self, study: str) -> None:
        """Refuse a folder that is another than the one of its name on the machine of the starter.

        Raises:
            ConfigError: With both studies, and this machine.
        """
        with suppress(OSError):
            os.listdir(self.path)  # as `_row_in` does
        there = self.study
        if there != study:
            found = "no study" if there is None else f"the study {there}"
            raise ConfigError(
                f"`--study` is {study}, but `--worker` {str(self.path)!r} holds {found} on "
                f"{platform.node()}, so it is not the folder that the study was begun in, and "
                "machines do not share it: name a folder on a file system that all of them see."
            )

    def _plan(self) -> dict[str, Any]:
        fix = "`balora compare --config` writes it again."
        fields = {"balora": str, "cells": dict}
        plan: dict[str, Any] = read_json(self.path / PLAN_FILE, fix, fields=fields)
        return plan

    def check_plan(self, cells: Sequence[Cell]) -> None:
        """Refuse to work in a folder with another version of balora, or on other cells.

        Raises:
            ConfigError: With both versions, or the first cell that differs.
        """
        plan, where = self._plan(), f"`--worker` {str(self.path)!r}"
        if plan["balora"] != __version__:
            raise ConfigError(
                f"{where} was begun by balora {plan['balora']} and this is {__version__}, so their "
                "results could not be compared; install the same version."
            )
        there, here = plan["cells"], _digests(cells)
        for cell in cells:
            if there.get(cell.slug) != here[cell.slug]:
                raise ConfigError(
                    f"{where} holds another plan: the cell {cell.key} is not there as it is here; "
                    "other options, or data files that differ on this machine. Give the same "
                    "command everywhere, or begin another folder."
                )
        if len(there) > len(here):
            raise ConfigError(
                f"{where} holds another plan, of {len(there)} cells and not {len(here)}; give the "
                "same command everywhere, or begin another folder."
            )

    def row(self, cell: Cell) -> dict[str, Any] | None:
        """Return the row of a cell; None where there is none, or a crash has damaged it."""
        return _row_in(self.of(cell))

    def _made(self, cell: Cell) -> tuple[Cell | None, dict[str, Any] | None]:
        """Return a cell that has its row as it was run, and the row; None for what is lost."""
        row = self.row(cell)
        try:
            return (None if row is None else Cell.read(self.of(cell))), row
        except ConfigError:
            return None, row

    def _finished(self, cell: Cell) -> Cell | None:
        """Return a finished cell as it was run; None where it is not finished, or that is lost."""
        made, row = self._made(cell)
        return made if row is not None and row["error"] is None else None

    def _row_as_now(self, cell: Cell) -> dict[str, Any] | None:
        """Return the row of a cell, of the very values that it would run with now."""
        made, row = self._made(cell)
        return row if made is not None and _is_as(made, cell) else None

    def is_finished(self, cell: Cell) -> bool:
        """Say whether a cell has its metrics, of the very values that it would run with now."""
        row = self._row_as_now(cell)
        return row is not None and row["error"] is None

    def is_settled(self, cell: Cell, failed_before: Mapping[str, int]) -> bool:
        """Say whether a cell is finished, or has failed since `failed` said what had before."""
        row = self._row_as_now(cell)
        if row is None or row["error"] is None:
            return row is not None
        return self._written(cell) != failed_before.get(cell.key)

    def _written(self, cell: Cell) -> int:
        return (self.of(cell) / ROW_FILE).stat().st_mtime_ns

    def failed(self, cells: Sequence[Cell]) -> dict[str, int]:
        """Return the cells, by key, whose row is an error, and when it was written (ns)."""
        return {
            cell.key: self._written(cell)
            for cell in cells
            if (row := self._row_as_now(cell)) is not None and row["error"] is not None
        }

    def prepare(self, cell: Cell) -> Path:
        """Write what a cell's process reads, remove what an earlier one left, return the folder."""
        folder = self.of(cell)
        if folder.is_dir():
            # first of all the row: without it the cell counts as one that has to run
            (folder / ROW_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        cell.write(folder)
        write_text(folder / "recipe.yaml", dump_mapping(cell.recipe))
        return folder

    def write_row(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """Write the row of a cell, which finishes it."""
        write_json(self.of(cell) / ROW_FILE, row)

    def collect(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Write ``results.jsonl`` anew from the rows of the cells and return them."""
        rows = [row for cell in cells if (row := self.row(cell)) is not None]
        write_rows(self.path, rows)
        return rows

    def collect_planned(self) -> None:
        """Write ``results.jsonl`` from the rows of the cells that were planned, as they are now."""
        found = [_row_in(self.path / "cells" / slug) for slug in self._plan()["cells"]]
        write_rows(self.path, [row for row in found if row is not None])

    def num_others(self, cells: Sequence[Cell]) -> int:
        """Return how many cells of the folder, finished or failed, are none of `cells`."""
        ours = {self.of(cell) for cell in cells}
        files = (self.path / "cells").glob(f"*/{ROW_FILE}")
        return sum(file.parent not in ours for file in files)


def row_of(cell: Cell, **measured: Any) -> dict[str, Any]:
    """Return the row of a cell; what `measured` does not say is empty or null."""
    names = ("stage", "condition", "method", "seed", "fields")
    who = {"cell": cell.key, **{name: getattr(cell, name) for name in names}}
    return new_row(who, measured)


def _row_in(folder: Path) -> dict[str, Any] | None:
    """Return the row in a cell's folder; None where there is none, or a crash has damaged it."""
    try:
        os.listdir(folder)  # NFS may remember for a while that a file is missing, until it is asked
        return read_row(folder / ROW_FILE)
    except (FileNotFoundError, NotADirectoryError, ConfigError):
        return None


def _is_as(made: Cell, cell: Cell) -> bool:
    # a sweep may choose other values when one of its runs is made up for
    return made.identity() == cell.identity() and made.fields == cell.fields


def _digests(cells: Sequence[Cell]) -> dict[str, str]:
    """Return what tells one cell's settings from another's, by the name of its folder, in order."""
    texts = {}
    for cell in cells:
        known = {name: value for name, value in cell.identity().items() if name != _LAB_MODEL}
        texts[cell.slug] = json.dumps(known, sort_keys=True)  # the lab's may still be to be built
    return {slug: hashlib.sha256(text.encode()).hexdigest()[:16] for slug, text in texts.items()}


def _is_foreign(path: Path) -> bool:
    """Say whether a file is none that a start of a comparison that was killed leaves."""
    return path.name != LEASE and not is_stage(path)


def _shared(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides every cell of a comparison, flat."""
    asked = comparison.get(COMPARE) or {}
    names = ("retention_file", "num_rows", "max_new_tokens", "eval_batch_size")
    own = {name: value for name, value in comparison.items() if name not in _NOT_COMPARED}
    return flat({**own, COMPARE: {name: asked[name] for name in names if name in asked}})
