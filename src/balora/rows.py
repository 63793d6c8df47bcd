"""The measured row of a cell, written by `balora compare` and read by tables, plots and report.

.. code-block:: text

    comparison.yaml     the comparison, as a recipe
    results.jsonl       one row for each finished or failed cell of the comparison
    choices.json        what the sweeps chose, and from what
    cells/SLUG/         result.json, the row; details.json, what the report shows beside it;
                        bench/, the answers to benchmarks
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from balora.errors import ConfigError
from balora.files import write_text
from balora.state import damaged, read_json, read_json_lines

COMPARISON_FILE = "comparison.yaml"
RESULTS_FILE = "results.jsonl"
CHOICES_FILE = "choices.json"
ROW_FILE = "result.json"
DETAILS_FILE = "details.json"
COMPARE = "compare"
"""The mapping of ``comparison.yaml`` with the settings of the comparison."""
BASE = "base"
"""The method that is the pre-trained model, not trained; it has no seed."""

_FIELDS = {
    **{"cell": str, "stage": str, "condition": str, "method": str, "seed": object},
    **{"fields": dict, "metrics": dict, "error": object},
}
"""What every row has, of which type."""
_MEASURED: Mapping[str, Any] = {
    "metrics": {},
    "majority": {},
    "bench": {},
    "num_trainable_parameters": None,
    "train_seconds": None,
    "evaluation_seconds": None,
    "seconds": None,
    "peak_memory_mib": None,
    "dtype": None,
    "versions": {},
    "commit": None,
    "error": None,
}
"""What a row has beside who it is of, and what stands there as long as nothing is known."""
_AGAIN = "The same command without `--report_only` writes it again from the cells."


def place_of(model: str, condition: str) -> str:
    """Return the ``condition`` of a row: ``MODEL/condition``, of which one may be empty."""
    return "/".join(part for part in (model, condition) if part)


def model_of(place: str, models: Collection[str] | None) -> str:
    """Return the name of the model of a row's ``condition``, empty where there are no models."""
    return place.partition("/")[0] if models else ""


def places(models: Collection[str] | None, conditions: Collection[str] | None) -> tuple[str, ...]:
    """Return every model under every condition, in order; one place without a name for neither."""
    return tuple(place_of(m, c) for m in models or ("",) for c in conditions or ("",))


def cell_key(condition: str, method: str, seed: int | None) -> str:
    """Return the key of a cell that is reported: ``noise/lora+kl/seed-0``."""
    parts = [condition] if condition else []
    return "/".join([*parts, method, *([] if seed is None else [f"seed-{seed}"])])


def new_row(who: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row; what was not measured is empty or null.

    Args:
        who: ``cell``, ``stage``, ``condition``, ``method``, ``seed`` and ``fields``.
        measured: The others.
    """
    unknown = measured.keys() - _MEASURED.keys()
    assert not unknown, unknown
    return {**who, **_MEASURED, **measured}


def read_row(file: Path) -> dict[str, Any]:
    """Return the row of a ``result.json``.

    Raises:
        ConfigError: If there is none, or it is damaged.
    """
    row: dict[str, Any] = read_json(file, _AGAIN, fields=_FIELDS)
    return row


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the ``results.jsonl`` of a comparison anew, by rename."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_text(folder / RESULTS_FILE, "".join(f"{line}\n" for line in lines))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the ``results.jsonl`` of a comparison.

    Raises:
        ConfigError: If there is none, or it is damaged.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ConfigError(f"`{folder}` has no rows yet: there is no {RESULTS_FILE}.")
    rows = read_json_lines(path, _AGAIN)
    for number, row in enumerate(rows, start=1):
        for name, kind in _FIELDS.items():
            if name not in row or not isinstance(row[name], kind):
                raise damaged(path, f"is damaged: line {number} has no `{name}`", _AGAIN)
    return rows


def read_details(folder: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return ``details.json`` of the finished cells among `rows` that have one, by their key."""
    found = {}
    finished = [row["cell"] for row in rows if row["error"] is None]
    for file in sorted(folder.glob(f"cells/*/{ROW_FILE}")):
        details = file.with_name(DETAILS_FILE)
        with suppress(ConfigError):  # damaged: nothing is drawn of it
            key = read_json(file, "", fields={"cell": str})["cell"]
            if key in finished and details.is_file():
                found[key] = read_json(details, "")
    return {key: found[key] for key in finished if key in found}
