"""The results of a classification run: best and last epoch, their file, and the table.

A results mapping holds JSON values only; a value that is undefined is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.errors import ConfigError
from balora.evaluation.metrics import measured_by, metric_of
from balora.evaluation.table import aligned, metric_lines
from balora.files import write_json
from balora.state import read_json

RESULTS_FILE = "results.json"

_OF_RESULTS = {
    **{"task": str, "method": str, "seed": int, "primary_metric": str, "selection": str},
    **{"per_evaluation": dict, "best": dict, "last": dict},
    **{"final_model": str, "final": dict, "out_of_domain": dict},
}
"""What every file of results has, of which type."""

OUTSIDE = " (OOD)"
"""How the names of sets out of domain end in tables."""
_TRY = " Try more epochs, another `learning_rate`, `method: lora` or `method: full`."

_SPEED = ("_runtime", "_per_second")


def per_evaluation(
    log_history: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics of each evaluation set after each evaluation, from the trainer's log.

    Args:
        log_history: As in ``trainer.state``.
        names: The evaluation sets; a single one has no name in the log.

    Returns:
        For each set the rows in order, each with ``epoch``, ``step`` and the metrics.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        prefix = "eval_" if len(names) == 1 else f"eval_{name}_"
        found[name] = [
            {"epoch": row.get("epoch"), "step": row.get("step")}
            | {
                key.removeprefix(prefix): value
                for key, value in sorted(row.items())  # as a log that was read again has them
                if key.startswith(prefix) and not key.endswith(_SPEED)
            }
            for row in log_history
            if f"{prefix}loss" in row
        ]
    return found


def best_row(rows: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    """Return the row with the largest value of ``metric``, the earliest of equals.

    A row in which it is undefined (NaN, None) is never the best; None where it always is.
    """
    best = None
    for row in rows:
        value = row.get(metric)
        if value is None or math.isnan(value):
            continue
        if best is None or value > best[metric]:
            best = row
    return best


def selection_rule(metric: str, *, by_epoch: bool = True) -> str:
    """Return in words how the best epoch, or evaluation, is chosen."""
    unit = "epoch" if by_epoch else "evaluation"
    return (
        f"best: the {unit} with the highest {metric} on each evaluation set, the earliest of "
        "equals; it is chosen on the data it is reported on"
    )


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json``, NaN and infinity as null; the file appears by rename."""
    write_json(folder / RESULTS_FILE, results)


def read_results(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_results` wrote.

    Raises:
        ConfigError: If the folder has no such file, or a damaged one.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise ConfigError(f"`{folder}` has no {RESULTS_FILE}; name a finished classification run.")
    fix = "Name another run, or remove it and train the run again."
    results: dict[str, Any] = read_json(path, fix, fields=_OF_RESULTS)
    return results


def format_results(results: Mapping[str, Any]) -> str:
    """Return the results of a run as text: best and last epoch, then the final model."""
    lines = [f"task {results['task']}, method {results['method']}, seed {results['seed']}"]
    epochs = {
        f"{name}, {which}": row
        for name in results["per_evaluation"]
        for which in ("best", "last")
        if (row := results[which][name]) is not None
    }
    if epochs:
        lines += ["", format_metrics(epochs), "", results["selection"] + "."]
    final = results["final"]
    sets = {**final, **{f"{k}{OUTSIDE}": v for k, v in results["out_of_domain"].items()}}
    if sets:
        lines += ["", f"{results['final_model'][0].upper()}{results['final_model'][1:]}:"]
        lines += ["", format_metrics(sets), *doubts(sets)]
    if results.get("glue_x") is not None:
        lines += ["", results["glue_x"]]
    return "\n".join(lines)


def doubts(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each data set whose metrics say that something has gone wrong.

    That is where one class or one number is given to every row, where guessing does as well, or
    where it does better; by more, or by no more, than chance explains (two standard deviations).
    """
    lines = []
    for name, column in columns.items():
        advice = "" if name.endswith(OUTSIDE) else _TRY
        doubt = (_regression_doubt if "pearson" in column else _doubt)(column, advice)
        lines += [] if doubt is None else [f"{name}: {doubt}"]
    return lines


def _doubt(column: Mapping[str, Any], advice: str) -> str | None:
    predicted = column.get("predicted") or {}
    given = [label for label, count in predicted.items() if count]
    if len(predicted) < 2:
        return None
    if len(given) == 1:
        return (
            f"every row is given the class `{given[0]}`, so nothing was learned to tell them "
            f"apart." + advice
        )
    accuracy, chance = column["accuracy"], _accuracy_of_guesses(column)
    margin = 2 * math.sqrt(chance * (1 - chance) / column["num_rows"])
    if accuracy < chance - margin:
        said = (
            f"an accuracy of {accuracy:.1%} is below chance ({chance:.1%}): are the labels swapped?"
        )
        return said + (advice or " `label_map` puts them right.")
    if "present" in column and accuracy <= chance + margin:
        return (
            f"an accuracy of {accuracy:.1%} is what guessing each class as often gets "
            f"({chance:.1%} +- {margin:.1%}), so nothing shows that they are told apart." + advice
        )
    return None


def _regression_doubt(column: Mapping[str, Any], advice: str) -> str | None:
    value, number = column["pearson"], column.get("num_rows", 0)
    if number < 2:
        return None
    if value is None or math.isnan(value):
        return (
            "every row is given the same number, or has the same one, so nothing was learned to "
            "tell them apart." + advice
        )
    if number > 2 and abs(value) <= (margin := 2 / math.sqrt(number)):
        return (
            f"a correlation of {value:.3f} is what guessing gets (0 +- {margin:.3f}), so nothing "
            f"shows that the rows are told apart." + advice
        )
    return None


def _accuracy_of_guesses(column: Mapping[str, Any]) -> float:
    """Return how often guesses are right that name each class as often as the model does.

    Where it is not known how many rows have a class, each is as likely as another.
    """
    predicted, present = column["predicted"], column.get("present")
    if present is None:
        return 1 / len(predicted)
    right = sum(count * present.get(name, 0) for name, count in predicted.items())
    return float(right / column["num_rows"] ** 2)


def format_metrics(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line per metric and one column per data set; a dash where one lacks it.

    Raises:
        ValueError: If there is no column.
    """
    return aligned([["", *columns], *metric_cells(columns)])


def metric_cells(columns: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the lines of `format_metrics` as cells: the title, then the value of each column.

    Raises:
        ValueError: If there is no column.
    """
    names, values = measured_by("classification"), list(columns.values())
    measured = [name for name in names if any(name in column for column in values)]
    constants = {
        key: {f"majority class:{n}": v for n, v in (column.get("majority_class") or {}).items()}
        for key, column in columns.items()
    }
    beside = [f"majority class:{name}" for name in names]
    beside = [name for name in beside if any(name in column for column in constants.values())]
    of_group = metric_of("accuracy" if "accuracy" in measured else "mse")
    return [
        *_line("epoch", "epoch", values, "{:g}".format),
        *metric_lines(columns, measured),
        *metric_lines(constants, beside),
        *_line(
            "worst group",
            "worst_group",
            values,
            lambda worst: f"{of_group.show(worst['value'])} ({worst['name']})",
        ),
        *_line("rows", "num_rows", values, "{:d}".format),
    ]


def _line(
    title: str, name: str, columns: Sequence[Mapping[str, Any]], show: Callable[[Any], str]
) -> list[list[str]]:
    """Return a line of one value of each column, a dash where one lacks it; none where all do."""
    if not any(name in column for column in columns):
        return []
    values = [column.get(name) for column in columns]
    return [[title, *("-" if value is None else show(value) for value in values)]]
