"""A finished comparison, read from its folder: what tables, plots and report speak of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from balora.config.values import read_mapping
from balora.evaluation.metrics import METRICS, measured_by, metric_of, task_metric
from balora.report.statistics import Estimate, holm, mean_interval, paired_difference
from balora.rows import (
    BASE,
    COMPARE,
    COMPARISON_FILE,
    cell_key,
    places,
    read_details,
    read_rows,
)

Row = Mapping[str, Any]

COSTS = measured_by("run")
"""What a run costs: fields of a row beside its metrics."""
MAJORITY = "majority class"
"""The line of a table that says what the class most rows have would get, given to every row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """The rows of a comparison and how they are told apart."""

    folder: Path
    """Of the comparison."""
    settings: Mapping[str, Any]
    """The settings of the comparison that are not the default."""
    rows: tuple[Row, ...]
    """Of the cells that are reported, finished or failed."""
    tried: tuple[Row, ...]
    """Of the runs of a sweep."""
    constants: tuple[Row, ...]
    """What the majority class gets, as a row for each condition whose cells say it."""
    missing: tuple[str, ...]
    """Cells that were asked for and have neither finished nor failed."""
    methods: tuple[str, ...]
    """In the order of the recipe; first the majority class, where it is known."""
    conditions: tuple[str, ...]
    """In the order of the recipe; one without a name where there are none."""
    baseline: str | None
    """The method that differences are to."""
    metrics: tuple[str, ...]
    """Those that a cell has a value of: the main ones, then in the registry's order."""
    task: str | None
    """The metric that speaks of the task."""
    retention: str | None
    """The metric that speaks of what was kept of the pre-trained model."""

    def main(self, condition: str) -> tuple[str, ...]:
        """Return the metrics of a condition's main table; macro F1 shows what accuracy hides."""
        task = self.task_of(condition)
        beside = "macro_f1" if task == "accuracy" else None
        asked = [n for n in measured_by("benchmark") if metric_of(n).role == "task"]
        wanted = self.settings.get("metric")
        names = dict.fromkeys((wanted, task, beside, *asked, self.retention_of(condition)))
        there = self._measured(condition)
        return tuple(name for name in names if name is not None and name in there)

    def others(self, condition: str) -> tuple[str, ...]:
        """Return the metrics of a condition that its main table leaves out."""
        main, there = self.main(condition), self._measured(condition) or {*self.metrics}
        return tuple(name for name in self.metrics if name in there and name not in main)

    def task_of(self, condition: str) -> str | None:
        """Return the metric of a condition's task: that of the comparison, where it is measured."""
        there = self._measured(condition)
        if self.task in there or not there:
            return self.task
        return task_metric([dict.fromkeys(there, 0.0)])

    def retention_of(self, condition: str) -> str | None:
        """Return what speaks of forgetting in a condition, as `task_of` does of the task."""
        there = self._measured(condition)
        if self.retention in there or not there:
            return self.retention
        return _retention([name for name in self.metrics if name in there], self.task_of(condition))

    def _measured(self, condition: str) -> set[str]:
        """Return the metrics that a run of a condition has a value of."""
        known = self._by_condition.get(condition)
        if known is None:
            rows = [row for row in self.rows if row["condition"] == condition]
            known = {n for row in rows for n, v in row["metrics"].items() if v is not None}
            self._by_condition[condition] = known
        return known

    @cached_property
    def _by_condition(self) -> dict[str, set[str]]:
        return {}

    @property
    def trained(self) -> tuple[str, ...]:
        """Return the methods without the pre-trained model and the majority class."""
        return tuple(name for name in self.methods if name not in (BASE, MAJORITY))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds that were asked for, and those there are rows of."""
        return tuple(sorted({*(self.settings.get("seeds") or ()), *self._seeds_of(self.rows)}))

    @property
    def num_seeds(self) -> int:
        """Return how many seeds there are runs of."""
        return len(self._seeds_of(self.rows))

    @cached_property
    def _by_method(self) -> dict[tuple[str, str], list[Row]]:
        found: dict[tuple[str, str], list[Row]] = {}
        for row in (*self.constants, *self.rows):
            found.setdefault((row["condition"], row["method"]), []).append(row)
        return found

    @staticmethod
    def _seeds_of(rows: Iterable[Row]) -> set[int]:
        return {row["seed"] for row in rows if row["seed"] is not None}

    def of(self, condition: str, method: str) -> list[Row]:
        """Return the rows of a method under a condition."""
        return self._by_method.get((condition, method), [])

    def num_failed(self, condition: str, method: str) -> int:
        """Return how many cells of a method have failed."""
        return sum(row["error"] is not None for row in self.of(condition, method))

    def num_missing(self, condition: str, method: str) -> int:
        """Return how many cells of a method were asked for and have not run."""
        keys = {cell_key(condition, method, seed) for seed in (None, *self.seeds)}
        return len(keys & {*self.missing})

    def num_finished(self, condition: str, method: str) -> int:
        """Return how many cells of a method have metrics."""
        return len(self.of(condition, method)) - self.num_failed(condition, method)

    def values(self, condition: str, method: str, name: str) -> dict[int | None, float]:
        """Return the values of a metric or a cost by seed; failed cells have none."""
        return {
            row["seed"]: float(value)
            for row in self.of(condition, method)
            if row["error"] is None
            and (value := row["metrics"].get(name, row.get(name))) is not None
        }

    def estimate(self, condition: str, method: str, name: str) -> Estimate | None:
        """Return mean and interval over the seeds; None where no cell has the value."""
        return mean_interval(self.values(condition, method, name).values())

    def difference(self, condition: str, method: str, name: str) -> Estimate | None:
        """Return the paired difference to the baseline; None for the baseline itself."""
        if self.baseline is None or method == self.baseline:
            return None
        return paired_difference(
            self.values(condition, method, name), self.values(condition, self.baseline, name)
        )

    def corrected(self, condition: str, name: str) -> dict[str, float | None]:
        """Return by method the p-value of its difference to the baseline, corrected by `holm`.

        The correction is over the methods that train, which are the column of a table: it is
        computed once, and read for every line.
        """
        known = self._corrected.get((condition, name))
        if known is None:
            found = {method: self.difference(condition, method, name) for method in self.trained}
            known = holm({method: d.p_value if d else None for method, d in found.items()})
            self._corrected[condition, name] = known
        return known

    @cached_property
    def _corrected(self) -> dict[tuple[str, str], dict[str, float | None]]:
        return {}

    def best(self, condition: str, name: str, methods: Sequence[str]) -> tuple[str, ...]:
        """Return who of some methods has the best mean; none where neither way is better.

        A method of which a run failed or has no value is dropped: a mean over the runs that went
        well would win by what it does not count.
        """
        metric = metric_of(name)
        seeds = self._seeds_of(row for m in self.trained for row in self.of(condition, m))
        values = {method: self.values(condition, method, name) for method in methods}
        # the pre-trained model has one value, without a seed
        whole = [m for m, known in values.items() if None in known or seeds <= known.keys()]
        means = {m: e.mean for m in whole if (e := mean_interval(values[m].values())) is not None}
        if metric.higher_is_better is None or not means:
            return ()
        best = max(means.values(), key=metric.gain)
        return tuple(method for method, mean in means.items() if mean == best)

    def chance(self, condition: str, name: str) -> float | None:
        """Return what the majority class has in a metric; None where that is not known."""
        return self.values(condition, MAJORITY, name).get(None)

    @cached_property
    def _details(self) -> dict[str, dict[str, Any]]:
        return read_details(self.folder, self.rows)

    def details(self, condition: str, method: str, part: str) -> list[Any]:
        """Return a part of ``details.json`` of each run of a method that has it."""
        found = (self._details.get(row["cell"], {}).get(part) for row in self.of(condition, method))
        return [own for own in found if own]


def read_study(folder: Path) -> Study:
    """Return the comparison of a folder.

    Raises:
        ConfigError: If the folder holds none.
    """
    rows = read_rows(folder)
    file = folder / COMPARISON_FILE
    settings = (read_mapping(file) if file.is_file() else {}).get(COMPARE) or {}
    final = tuple(row for row in rows if row["stage"] == "final")
    constants = _constants(final)
    named = _in_order(settings.get("methods"), final, "method")
    asked = places(settings.get("models"), settings.get("conditions"))
    conditions = _in_order(filter(None, asked), final, "condition") or ("",)
    wanted = settings.get("metric")
    is_task = wanted is not None and metric_of(wanted).role == "task"
    task = wanted if is_task else task_metric([row["metrics"] for row in final])
    measured = [n for row in final for n, value in row["metrics"].items() if value is not None]
    retention = _retention(measured, task)
    order = dict.fromkeys((task, retention, *METRICS, *measured))
    return Study(
        folder=folder,
        settings=settings,
        rows=final,
        tried=tuple(row for row in rows if row["stage"] != "final"),
        constants=constants,
        missing=_missing(settings, conditions, final),
        methods=(MAJORITY, *named) if constants else named,
        conditions=conditions,
        baseline=_baseline(settings.get("baseline"), named),
        metrics=tuple(name for name in order if name is not None and name in measured),
        task=task,
        retention=retention,
    )


def _in_order(wanted: Any, rows: tuple[Row, ...], field: str) -> tuple[str, ...]:
    """Return the names that were asked for and those that rows have, each once."""
    return tuple(dict.fromkeys([*(wanted or ()), *(row[field] for row in rows)]))


def _constants(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Return a row of the majority class for each condition whose rows have its metrics."""
    known = {row["condition"]: row["majority"] for row in reversed(rows) if row.get("majority")}
    who = {"cell": MAJORITY, "method": MAJORITY, "seed": None, "error": None}
    return tuple({**who, "condition": c, "metrics": metrics} for c, metrics in known.items())


def _missing(
    settings: Mapping[str, Any], conditions: tuple[str, ...], rows: tuple[Row, ...]
) -> tuple[str, ...]:
    """Return the keys of the cells that were asked for and have no row."""
    there = {row["cell"] for row in rows}
    keys = [
        cell_key(condition, method, seed)
        for condition in conditions
        for method in settings.get("methods") or ()
        for seed in ([None] if method == BASE else settings.get("seeds") or ())
    ]
    return tuple(key for key in keys if key not in there)


def _baseline(named: str | None, methods: Sequence[str]) -> str | None:
    trained = [name for name in methods if name != BASE]
    if named is not None or not trained:
        return named
    return "lora" if "lora" in trained else trained[0]


def _retention(measured: Sequence[str], task: str | None) -> str | None:
    """Return the metric that speaks of forgetting; the drift in KL where nothing else does."""
    elsewhere = [name for name in measured if name not in METRICS]
    names = [n for n, m in METRICS.items() if m.role == "retention"]
    names += [n for n in elsewhere if task is not None and n.endswith(f":{task}")]
    names += [n for n in elsewhere if metric_of(n).role == "retention"]
    return next((name for name in [*names, "kl"] if name in measured), None)
