"""``balora eval`` for runs of classification: each on the evaluation sets its recipe names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from balora.card_results import Evaluation, add_to_card, cards_line, results_of
from balora.config.classification import ClassificationConfig
from balora.config.options import EvalOptions
from balora.config.values import parse_fields, read_mapping
from balora.data.classification import (
    ClassificationRows,
    load_evaluation_rows,
    load_out_of_domain_rows,
)
from balora.data.glue import evaluated_on
from balora.errors import ConfigError, DataError
from balora.evaluation.predict import glue_x_average, measure_sets
from balora.evaluation.results import OUTSIDE, doubts, format_metrics, metric_cells
from balora.models.load import accelerator
from balora.models.names import name_of_dtype
from balora.models.run_folder import class_names_of, load_run
from balora.models.source import RECIPE_FILE, ModelSource
from balora.recipes.load import check_recipe


@dataclass(frozen=True)
class EvaluatedRun:
    """The metrics of one run by the name of the data set, as `measure_sets` gives them."""

    evaluation: dict[str, dict[str, Any]]
    out_of_domain: dict[str, dict[str, Any]]
    dtype: str
    """Of the weights that computed them."""
    glue_x: str | None
    """Where the sets out of domain are GLUE-X's: their average, and over which it is."""

    def to_text(self) -> str:
        """Return the table of all sets, side by side."""
        outside = {f"{name}{OUTSIDE}": row for name, row in self.out_of_domain.items()}
        sets = {**self.evaluation, **outside}
        average = [] if self.glue_x is None else ["", self.glue_x]
        return "\n".join([format_metrics(sets), *doubts(sets), *average])


def evaluate(
    runs: Sequence[Path], base: ModelSource, given: Mapping[str, str], options: EvalOptions
) -> tuple[str, dict[str, Any]]:
    """Evaluate runs of classification as `balora eval` does.

    Args:
        runs: Folders of finished runs.
        base: As for `evaluate_classification_runs`.
        given: Data fields as they were typed, which replace those of each run's recipe.
        options: Of the command.

    Returns:
        The tables, and everything by the name of the run.

    Raises:
        ConfigError: If an option acts on text generation only; or as
            `evaluate_classification_runs`.
        DataError: If the rows cannot be read.
    """
    for name in ("retention_file", "max_new_tokens"):
        if getattr(options, name) is not None:
            raise ConfigError(f"`--{name}` acts on runs of text generation only; leave it out.")
    found = evaluate_classification_runs(
        runs, base, given, num_rows=options.num_rows, batch_size=options.batch_size
    )
    tables = [f"{name}, computed in {run.dtype}:\n\n{run.to_text()}" for name, run in found.items()]
    if options.card:
        written = [_add_to_card(run, found[run.name], given, options) for run in runs]
        tables += cards_line(written)
    return "\n\n".join(tables), {name: dataclasses.asdict(run) for name, run in found.items()}


def _add_to_card(
    run: Path, found: EvaluatedRun, given: Mapping[str, str], options: EvalOptions
) -> str | None:
    """Write what was measured into the card of a run, and return where it is."""
    data = data_settings(run, given)
    name = evaluated_on(dataclasses.asdict(data))
    sets = {**found.evaluation, **found.out_of_domain}
    results = []
    for title, row in sets.items():
        metrics = {f"{title}: {metric}": value for metric, value in row.items()}
        where = name if title in found.evaluation else title
        results += results_of(metrics, data=where, is_classifier=True)
    evaluation = Evaluation(
        command="eval",
        data=name,
        part=data.dataset_test_split,
        num_rows=options.num_rows,
        heads=tuple(sets),
        rows=metric_cells(sets),
        how=f"in {found.dtype}",
        results=results,
    )
    return add_to_card(run, evaluation)


def evaluate_classification_runs(
    runs: Sequence[Path],
    base: ModelSource,
    given: Mapping[str, str],
    *,
    num_rows: int | None = None,
    batch_size: int = 32,
) -> dict[str, EvaluatedRun]:
    """Evaluate each run on the sets of its own recipe, or on others.

    Args:
        runs: Folders with an adapter, which plain PEFT loads on the base, or with a whole model.
        base: The pre-trained model, and how the runs are loaded: `base_of_runs`.
        given: Data fields that replace those of the recipe. `dataset_name` and `eval_dataset_name`
            both name other rows to evaluate on.
        num_rows: At most this many rows of a set, from the first on.
        batch_size: Rows at once.

    Returns:
        The metrics by the name of the run's folder.

    Raises:
        ConfigError: If a name repeats, a field is no data field or wrong, or the base cannot be
            loaded.
        DataError: If the rows cannot be read, or there are none to evaluate on.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"the runs {names} must have different names.")
    return {
        run.name: _evaluate(run, base, given, num_rows=num_rows, batch_size=batch_size)
        for run in runs
    }


def _evaluate(
    run: Path, base: ModelSource, given: Mapping[str, str], *, num_rows: int | None, batch_size: int
) -> EvaluatedRun:
    data = data_settings(run, given)
    class_names = class_names_of(data)
    evaluation = load_evaluation_rows(data, class_names)
    out_of_domain = load_out_of_domain_rows(data, class_names)
    if not evaluation and not out_of_domain:
        raise DataError(
            f"the recipe of `{run}` names no rows to evaluate on. Pass `--eval_dataset_name` or "
            "`--dataset_test_split`."
        )
    loaded = load_run(run, base, class_names=class_names, device=accelerator())

    def measure(sets: Mapping[str, ClassificationRows]) -> dict[str, dict[str, Any]]:
        return measure_sets(
            loaded.model,
            {name: _first_rows(rows, num_rows) for name, rows in sets.items()},
            loaded.tokenizer,
            task=data.task,
            max_length=data.max_length,
            batch_size=batch_size,
        )

    outside = measure(out_of_domain)
    return EvaluatedRun(
        measure(evaluation),
        outside,
        name_of_dtype(loaded.model.dtype),
        glue_x_average(data, outside),
    )


def data_settings(run: Path, given: Mapping[str, str]) -> ClassificationConfig:
    """Return the data settings of a run's recipe, with the given fields replaced.

    Rows that are named anew are read from the split that `load_evaluation_rows` takes, unless
    `dataset_test_split` is given as well.

    Raises:
        ConfigError: If a field is unknown or wrong.
    """
    values = parse_fields(given, ClassificationConfig, of="the data to evaluate on")
    if "dataset_name" in values:
        values.setdefault("eval_dataset_name", values.pop("dataset_name"))
    if "eval_dataset_name" in values:
        values.setdefault("dataset_test_split", None)
    source = run / RECIPE_FILE
    recipe = check_recipe(read_mapping(source), values, source=source)
    return cast(ClassificationConfig, recipe.data)


def _first_rows(rows: ClassificationRows, num_rows: int | None) -> ClassificationRows:
    if num_rows is None:
        return rows
    return dataclasses.replace(rows, dataset=rows.dataset.take(min(num_rows, len(rows.dataset))))
