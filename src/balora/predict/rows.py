"""The texts that are predicted: from the command line or a file, in the columns of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from jinja2 import TemplateError

from balora.config import ClassificationConfig
from balora.config.options import PredictOptions
from balora.data.columns import listed
from balora.data.glue import GLUE_TASKS
from balora.data.inputs import Input, training_input
from balora.data.layouts import as_messages, text_problem, turns_problem
from balora.data.opening import ending
from balora.data.provenance import LocatedRows
from balora.data.reading import check_texts, num_texts_of, pick_texts, read_rows
from balora.errors import ConfigError, DataError
from balora.evaluation.batches import chat_prompt
from balora.evaluation.bench.prompts import Prompter
from balora.files import read_text
from balora.models.source import RECIPE_FILE, read_recipe
from balora.recipes import load_recipe

_TEXT = "text"
"""The column of texts that come without one: of the command line, and of a .txt file."""
_PROMPTS = ("messages", "prompt", "query", "question", "instruction", "conversations", _TEXT)
"""Where files have their prompts; the first that is there counts."""


def read_asked(run: Path, texts: Sequence[str], options: PredictOptions) -> LocatedRows:
    """Return the rows to predict, as they are stored.

    Raises:
        ConfigError: If there are texts and a file, or neither.
        DataError: If the file cannot be read, or has no rows.
    """
    if bool(texts) == (options.input is not None):
        what = "both are given" if texts else "neither is given"
        raise ConfigError(
            f"texts stand after the run or in a file, and {what}: `balora predict {run} TEXT ...` "
            f"or `balora predict {run} --input FILE`."
        )
    if options.input is None:
        return _rows_of(list(texts), "the command line")
    if ending(Path(options.input)) == ".txt":
        lines = read_text(Path(options.input), "`--input`").splitlines()
        if not lines:
            raise DataError(f"{options.input} is empty.")
        return _rows_of(lines, options.input)
    return read_rows(
        Input(
            name=options.input,
            task=str(read_recipe(run).get("task") or "classification"),
            split="train",
            name_setting="--input",
        )
    )


def _rows_of(texts: list[str], name: str) -> LocatedRows:
    return LocatedRows(Dataset.from_dict({_TEXT: texts}), name, "texts")


def texts_to_classify(
    run: Path, rows: LocatedRows, options: PredictOptions
) -> tuple[tuple[str, ...], int | None]:
    """Return the columns of the texts, and the longest input that the run was trained with.

    Without a recipe that length is None: what the model takes.

    Raises:
        DataError: If a column is missing, or a text is empty or none.
    """
    data = _data_of(run)
    recipe = () if data is None else (data.text_column, data.text_pair_column)
    own = [name for name in recipe if name is not None and name in rows.dataset.column_names]
    given = [name for name in (options.text_column, options.text_pair_column) if name is not None]
    task = "classification" if data is None else data.task
    source = Input(
        name=rows.name,
        task=task,
        split=rows.split,
        texts=tuple(given or own) or _of_bare_texts(rows),
        num_texts=None if data is None else _num_texts(data),
        name_setting="--input",
    )
    texts = pick_texts(rows.dataset, source)
    check_texts(rows, texts, task=task, purpose="predicted")
    return texts, None if data is None else data.max_length


def _of_bare_texts(rows: LocatedRows) -> tuple[str, ...] | None:
    return (_TEXT,) if rows.dataset.column_names == [_TEXT] else None


def _data_of(run: Path) -> ClassificationConfig | None:
    path = run / RECIPE_FILE
    return cast(ClassificationConfig, load_recipe(path).data) if path.is_file() else None


def _num_texts(data: ClassificationConfig) -> int | None:
    """Return the texts of a row in training; None where only data say it that are gone."""
    if data.text_column is not None:
        return 1 if data.text_pair_column is None else 2
    if data.task in GLUE_TASKS:
        return GLUE_TASKS[data.task].num_texts
    try:
        return num_texts_of(training_input(data))
    except DataError:
        return None


def prompts_of(
    run: Path, rows: LocatedRows, prompter: Prompter, options: PredictOptions
) -> list[str]:
    """Return the prompt of each row, laid out as the run was trained.

    Raises:
        DataError: If a column is missing, a prompt is empty or none, or the chat template refuses
            its turns.
    """
    recipe, columns = read_recipe(run), rows.dataset.column_names
    column = _prompt_column(rows, options.text_column, recipe.get("prompt_column"))
    given = options.text_pair_column or recipe.get("input_column") or "input"
    if options.text_pair_column is not None and given not in columns:
        raise _no_column("text_pair_column", given, rows)
    values = rows.dataset[column]
    inputs = rows.dataset[given] if given in columns else [None] * len(values)
    bad, problem, prompts = [], "", []
    for number, (value, extra) in enumerate(zip(values, inputs, strict=True)):
        try:
            prompts.append(_prompt(prompter, column, value, extra))
        except ValueError as error:
            bad.append(number)
            problem = problem or str(error)
    if bad:
        rows.refuse(bad, problem, purpose="answered")
    return prompts


def _prompt(prompter: Prompter, column: str, value: Any, extra: Any) -> str:
    """Return the prompt of a text with its input, or of the turns of a chat.

    Raises:
        ValueError: With what is wrong with them.
    """
    if not isinstance(value, list):
        if problem := text_problem(column, value):
            raise ValueError(problem)
        return prompter.prompt(value, given_input=extra if isinstance(extra, str) else "")
    if problem := turns_problem(column, value, needs_assistant=False):
        raise ValueError(problem)
    if prompter.tokenizer is None:
        raise ValueError(
            f"`{column}` has the turns of a chat, but `prompt_template` of the run is "
            f"{prompter.template}; name a column of plain text with `--text_column`"
        )
    turns = as_messages(value)
    while turns and turns[-1]["role"] == "assistant":  # what the run is to write
        turns.pop()
    try:
        return chat_prompt(prompter.tokenizer, turns)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses it: {error}") from error


def _prompt_column(rows: LocatedRows, given: str | None, trained: str | None) -> str:
    columns = rows.dataset.column_names
    if given is not None and given not in columns:
        raise _no_column("text_column", given, rows)
    usual: Mapping[str | None, None] = dict.fromkeys((given, trained, *_PROMPTS))
    for name in usual:
        if name is not None and name in columns:
            return name
    raise DataError(
        f"{rows.name} has none of the usual columns of a prompt ({', '.join(_PROMPTS)}); its "
        f"columns are {listed(columns)}. Name one with `--text_column`."
    )


def _no_column(setting: str, column: str, rows: LocatedRows) -> DataError:
    return DataError(
        f"`--{setting}` is {column}, but {rows.name} has no column of that name; its columns are "
        f"{listed(rows.dataset.column_names)}."
    )
