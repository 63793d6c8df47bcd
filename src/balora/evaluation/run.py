"""``balora eval``: measure finished runs against the model they started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.card_results import Evaluation, add_to_card, cards_line, results_of
from balora.config import DataConfig
from balora.config.fields import field_hints
from balora.config.options import EvalOptions
from balora.config.values import parse_fields
from balora.data import load_examples
from balora.data.glue import evaluated_on
from balora.errors import ConfigError
from balora.evaluation.batches import chat_prompt
from balora.evaluation.instrument import MeasureOptions, Metrics, Models
from balora.evaluation.instruments import measure
from balora.evaluation.responses import count_responses
from balora.evaluation.table import format_table, metric_lines
from balora.files import read_filled_text
from balora.models.load import accelerator, load_model, load_tokenizer
from balora.models.names import name_of_dtype
from balora.models.record import check_recorded_weights
from balora.models.run_folder import check_base, load_run
from balora.models.source import ModelSource, read_recipe


@dataclass(frozen=True)
class Evaluated:
    """What was measured of one model, and on how much."""

    metrics: Metrics
    """By the name of the metric."""
    counts: dict[str, int]
    """As :func:`~balora.evaluation.responses.count_responses` has them."""
    dtype: str
    """Of the weights of both models, such as float32; the KL of two half-precision models is
    rounding where they are near each other."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything in one mapping."""
        return {**self.metrics, **self.counts, "dtype": self.dtype}


def evaluate(
    runs: Sequence[Path], base: ModelSource, given: Mapping[str, str], options: EvalOptions
) -> tuple[str, dict[str, Any]]:
    """Evaluate runs of text generation as `balora eval` does.

    Args:
        runs: Folders of finished runs, at least one.
        base: As for `evaluate_runs`.
        given: Data fields as they were typed, which replace those of the first run's recipe.
        options: Of the command.

    Returns:
        The table, and everything by the name of the run.

    Raises:
        ConfigError: As `data_config` and `evaluate_runs`.
        DataError: If the rows cannot be read.
    """
    data = data_config(runs[0], given)
    found = evaluate_runs(
        runs,
        base,
        data,
        retention_file=Path(options.retention_file) if options.retention_file else None,
        num_rows=options.num_rows,
        options=MeasureOptions(options.batch_size, options.max_new_tokens or 256),
    )
    table = format_table({name: row.metrics for name, row in found.items()})
    lines = [table, f"Computed in {found['base'].dtype}."]
    if found["base"].metrics["exact_match"] is None:
        lines.append("No exact match: no completion ends in `The answer is: ...` or `#### ...`.")
    if options.card:
        lines += _add_to_cards(runs, found, data, options)
    return "\n".join(lines), {name: row.to_dict() for name, row in found.items()}


def _add_to_cards(
    runs: Sequence[Path], found: Mapping[str, Evaluated], data: DataConfig, options: EvalOptions
) -> list[str]:
    """Write what was measured into the cards of the runs, and return the line that says so."""
    name = evaluated_on(asdict(data))
    retained = f"; the text is {options.retention_file}" if options.retention_file else ""
    written = []
    for run in runs:
        one = found[run.name]
        columns = {"before": found["base"].metrics, "after": one.metrics}
        names = [name for name, value in one.metrics.items() if value is not None]
        evaluation = Evaluation(
            command="eval",
            data=name,
            part=data.dataset_test_split,
            num_rows=options.num_rows,
            heads=tuple(columns),
            rows=metric_lines(columns, names),
            how=f"in {one.dtype}{retained}",
            results=results_of(one.metrics, data=name, is_classifier=False),
        )
        written.append(add_to_card(run, evaluation))
    return cards_line(written)


def evaluate_runs(
    runs: Sequence[Path],
    base: ModelSource,
    data: DataConfig,
    *,
    retention_file: Path | None = None,
    num_rows: int | None = None,
    options: MeasureOptions | None = None,
) -> dict[str, Evaluated]:
    """Measure the pre-trained model and every run, on the same rows and the same text.

    Args:
        runs: Folders with an adapter, or with a whole model.
        base: The pre-trained model, and how all of them are loaded: `base_of_runs`.
        data: The held-out rows: `eval_dataset_name` or `dataset_name`, and `dataset_test_split`.
        retention_file: Plain text that the model should still model well.
        num_rows: At most this many rows, from the first on.
        options: Batch size and lengths; the examples and the text are those of the files.

    Returns:
        The metrics by name: ``base`` first, then each run by its folder's name.

    Raises:
        ConfigError: If a folder or the base model cannot be loaded, they do not belong together,
            or a name repeats.
        DataError: If the rows cannot be read.
    """
    check_runs(runs)
    retention_text = (
        None if retention_file is None else read_filled_text(retention_file, "`--retention_file`")
    )
    rows = evaluation_rows(data, num_rows)
    for run in runs:
        check_base(run, base)
    reference = load_model(base, device=accelerator())
    for run in runs:  # before anything is measured
        check_recorded_weights(run, base, reference)
    # a run keeps its own tokenizer: training may have given it a chat template
    tokenizer = load_tokenizer(base, runs[0] if runs else None)
    options = replace(
        options or MeasureOptions(),
        examples=prompt_pairs(rows, tokenizer),
        retention_text=retention_text,
    )

    def evaluated(tuned: PreTrainedModel) -> Evaluated:
        models = Models(tuned, reference, tokenizer)
        return Evaluated(
            measure(models, options), count_responses(models, options), name_of_dtype(tuned.dtype)
        )

    return {"base": evaluated(reference)} | {
        run.name: evaluated(load_run(run, base, device=accelerator()).model) for run in runs
    }


def check_runs(runs: Sequence[Path]) -> None:
    """Refuse runs that are not there, or whose metrics could not be told apart by name.

    Raises:
        ConfigError: If a folder is not there, a name repeats, or one is ``base``.
    """
    for run in runs:
        if not run.is_dir():
            raise ConfigError(f"`{run}` does not exist; name the folder of a finished run.")
    names = [run.name for run in runs]
    if len({"base", *names}) != len(names) + 1:
        raise ConfigError(f"the runs {names} must have different names, and none may be `base`.")


def evaluation_rows(data: DataConfig, num_rows: int | None = None) -> Dataset:
    """Return the rows that are evaluated on, at most so many, from the first on.

    Raises:
        DataError: If they cannot be read.
    """
    split = data.dataset_test_split or "train"
    rows: Dataset = load_examples(data, split=split, name="eval").dataset
    return rows if num_rows is None else rows.take(min(num_rows, len(rows)))


def prompt_pairs(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """Return prompt and gold completion of each row; of a chat, its last assistant turn.

    Raises:
        ConfigError: If the rows are chats and the tokenizer has no chat template.
    """
    columns = dataset.column_names
    if {"prompt", "completion"} <= set(columns) and isinstance(dataset[0]["prompt"], str):
        return list(zip(dataset["prompt"], dataset["completion"], strict=True))
    if tokenizer.chat_template is None:
        raise ConfigError(
            "the rows are chats, but the tokenizer of the model has no chat template."
        )
    return [_last_turn(row, tokenizer) for row in dataset]


def _last_turn(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    turns = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    return chat_prompt(tokenizer, turns[:last]), str(turns[last]["content"])


def data_config(run: Path, given: Mapping[str, str]) -> DataConfig:
    """Return the data settings of a run's own recipe, with the given fields replaced.

    A data set that is named anew is read from its split ``train``, unless one is given.

    Raises:
        ConfigError: If a field is unknown or wrong, or no data set is named anywhere.
    """
    values = parse_fields(given, DataConfig, of="the data to evaluate on")
    known = field_hints(DataConfig)
    fields = {name: value for name, value in read_recipe(run).items() if name in known}
    if "dataset_name" in values:
        for name in ("eval_dataset_name", "dataset_test_split", "dataset_config"):
            fields.pop(name, None)
    fields |= values
    if "dataset_name" not in fields:
        raise ConfigError("no data set is named: pass `--dataset_name` with held-out rows.")
    return DataConfig(**fields)
