"""``balora eval`` for runs of classification: each on the evaluation sets its recipe names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from balora.classification_config import ClassificationConfig
from balora.data.classification import (
    ClassificationRows,
    load_evaluation_rows,
    load_out_of_domain_rows,
)
from balora.data.glue import GLUE_TASKS
from balora.errors import ConfigError, DataError
from balora.evaluation.classified import measure_sets
from balora.evaluation.results import format_figures
from balora.field_types import suggestion
from balora.models.classifier import load_classifier
from balora.models.names import check_model_name
from balora.recipes import load_recipe
from balora.recipes.values import read_mapping

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class EvaluatedRun:
    """The figures of one run by the name of the data set, as `measure_sets` gives them."""

    evaluation: dict[str, dict[str, Any]]
    out_of_domain: dict[str, dict[str, Any]]

    def to_text(self) -> str:
        """Return the table of all sets, side by side."""
        outside = {f"{name} (OOD)": row for name, row in self.out_of_domain.items()}
        return format_figures({**self.evaluation, **outside})


def is_classification_run(run: Path) -> bool:
    """Say whether a folder holds a run of classification: its recipe sets `task`."""
    recipe = run / RECIPE_FILE
    return recipe.is_file() and read_mapping(recipe).get("task") is not None


def evaluate_classification_runs(
    runs: Sequence[Path],
    base: str,
    given: Mapping[str, str],
    *,
    num_rows: int | None = None,
    batch_size: int = 32,
) -> dict[str, EvaluatedRun]:
    """Evaluate each run on the sets of its own recipe, or on others.

    Args:
        runs: Folders with an adapter, which plain PEFT loads on the base, or with a whole model.
        base: The pre-trained model, id or folder.
        given: Data fields that replace those of the recipe. `dataset_name` and `eval_dataset_name`
            both name other rows to evaluate on.
        num_rows: At most this many rows of a set, from the first on.
        batch_size: Rows at once.

    Returns:
        The figures by the name of the run's folder.

    Raises:
        ConfigError: If a folder is no run of classification, a name repeats, a field is no data
            field or wrong, or the base cannot be loaded.
        DataError: If the rows cannot be read, or there are none to evaluate on.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"the runs {names} must have different names.")
    for run in runs:
        if not is_classification_run(run):
            raise ConfigError(
                f"`{run}` holds no run of classification: its {RECIPE_FILE} sets no `task`. "
                "Evaluate runs of text generation by themselves."
            )
    return {
        run.name: _evaluate(run, base, given, num_rows=num_rows, batch_size=batch_size)
        for run in runs
    }


def _evaluate(
    run: Path, base: str, given: Mapping[str, str], *, num_rows: int | None, batch_size: int
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
    model, tokenizer = load_classification_run(run, base, class_names)

    def measure(sets: Mapping[str, ClassificationRows]) -> dict[str, dict[str, Any]]:
        return measure_sets(
            model,
            {name: _first_rows(rows, num_rows) for name, rows in sets.items()},
            tokenizer,
            task=data.task,
            max_length=data.max_length,
            batch_size=batch_size,
        )

    return EvaluatedRun(measure(evaluation), measure(out_of_domain))


def data_settings(run: Path, given: Mapping[str, str]) -> ClassificationConfig:
    """Return the data settings of a run's recipe, with the given fields replaced.

    Rows that are named anew are read from the split that `load_evaluation_rows` takes, unless
    `dataset_test_split` is given as well.

    Raises:
        ConfigError: If a field is unknown or wrong.
    """
    known = [field.name for field in fields(ClassificationConfig)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"unknown option `--{unknown[0]}`{suggestion(unknown[0], known)}.")
    values = dict(given)
    if "dataset_name" in values:
        values.setdefault("eval_dataset_name", values.pop("dataset_name"))
    if "eval_dataset_name" in values:
        values.setdefault("dataset_test_split", "null")
    return cast(ClassificationConfig, load_recipe(run / RECIPE_FILE, values).data)


def class_names_of(data: ClassificationConfig) -> tuple[str, ...] | None:
    """Return the classes of a run in the order of the model's outputs; None for regression.

    Raises:
        ConfigError: If the recipe of own data does not say them.
    """
    if data.is_regression:
        return None
    names = GLUE_TASKS[data.task].class_names if data.task in GLUE_TASKS else data.named_classes
    if names is None:
        raise ConfigError("the recipe says no `class_names`; pass them in the model's order.")
    return tuple(names)


def load_classification_run(
    run: Path, base: str, class_names: Sequence[str] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model of a run, by plain PEFT on the base or whole, and its tokenizer.

    Raises:
        ConfigError: If the folder holds neither, or a model cannot be loaded.
    """
    is_adapter = (run / "adapter_config.json").is_file()
    if not is_adapter and not (run / "config.json").is_file():
        raise ConfigError(f"`{run}` holds neither an adapter nor a model; name a finished run.")
    check_model_name(base, "`--base`")
    has_tokenizer = (run / "tokenizer_config.json").is_file()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    name = base if is_adapter else str(run)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(run) if has_tokenizer else base)
        model = load_classifier(name, class_names=class_names, tokenizer=tokenizer).model
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the model {name!r} cannot be loaded: {reason}") from error
    if is_adapter:
        model = PeftModel.from_pretrained(model, str(run))
    return model.to(device).eval(), tokenizer


def _first_rows(rows: ClassificationRows, num_rows: int | None) -> ClassificationRows:
    if num_rows is None:
        return rows
    return dataclasses.replace(rows, dataset=rows.dataset.take(min(num_rows, len(rows.dataset))))
