"""Load a data set, check every row, and hand the trainer prompts and completions, or chat turns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetsError

from balora.config import DataConfig
from balora.data.layouts import (
    ChatLayout,
    ChatPairLayout,
    FirstPairLayout,
    InstructionLayout,
    Layout,
)
from balora.data.sources import (
    LocalFiles,
    csv_header,
    find_local,
    first_bad_record,
    record_lines,
)
from balora.data.templates import ALPACA, PLAIN, template_named
from balora.errors import DataError

_SPLIT = re.compile(
    r"\w+(\.\w+)*(\[(-?[\d_]+%?)?:(-?[\d_]+%?)?\])?(\((closest|pct1_dropremainder)\))?"
)
_PLAIN_COLUMNS = (  # instruction, response, input
    ("query", "response", None),
    ("query", "answer", None),
    ("instruction", "output", "input"),
    ("instruction", "response", None),
)
_FOR_THE_CHAT_TEMPLATE = ("tools", "chat_template_kwargs")
_TEXT_PAIR = Features({"prompt": Value("string"), "completion": Value("string")})
_TURNS = [{"role": Value("string"), "content": Value("string")}]


@dataclass(frozen=True)
class Examples:
    """Rows that were checked, and where each of them comes from."""

    dataset: Dataset
    """Columns ``prompt`` and ``completion`` (text, or lists of turns), or ``messages``."""
    name: str
    """The data set as the user named it."""
    split: str
    """The split as the user wrote it, such as ``train[:100]``."""
    notes: tuple[str, ...] = ()
    """One sentence for each thing in the rows that does not reach the trainer."""
    files: LocalFiles | None = None
    """The files on disk; None for a data set of the hub."""
    split_sizes: tuple[tuple[str, int], ...] = ()
    """Rows of each whole split."""

    def locate(self, row: int) -> str:
        """Return where `row` of `dataset` stands, counted from 0: "math.jsonl, line 17"."""
        split, absolute = self._absolute(row)
        lines = self._line(split, absolute)
        return lines or f"row {absolute} of {self.name} ({split}), counted from 0"

    def _absolute(self, row: int) -> tuple[str, int]:
        """Return the split without its slice, and the row in it."""
        for split, start, stop in _ranges(self.split, dict(self.split_sizes)):
            if row < stop - start:
                return split, start + row
            row -= stop - start
        return self.split, row

    def _line(self, split: str, row: int) -> str | None:
        if self.files is None or split not in self.files.files:
            return None
        records: list[tuple[Any, int]] = []
        for file in self.files.files[split]:
            lines = record_lines(file)
            if lines is None:
                return None
            records += [(file, line) for line in lines]
        if len(records) != dict(self.split_sizes)[split]:  # not one record a line after all
            return None
        file, line = records[row]
        return f"{file}, line {line}"


def load_examples(config: DataConfig, *, split: str, name: str = "train") -> Examples:
    """Load one split of the data set that `config` names, and check every row of it.

    Args:
        config: Names the data set, its columns and the prompt template.
        split: The rows, such as ``train``, ``train[:100000]`` or ``train[10%:20%]``.
        name: What the rows are for: ``train`` reads `dataset_name`, ``eval`` reads
            `eval_dataset_name` where it is set.

    Raises:
        DataError: If the data cannot be read, has no rows or not the columns, or holds a row that
            cannot be trained on: the first such row by file and line, and how many more there are.
    """
    dataset_name = config.dataset_name
    if name == "eval" and config.eval_dataset_name is not None:
        dataset_name = config.eval_dataset_name
    if not all(_SPLIT.fullmatch(part.strip()) for part in split.split("+")):
        raise DataError(
            f"the split `{split}` of {dataset_name} cannot be read; write for example train, "
            "train[:1000] or train[10%:20%]."
        )
    files = find_local(dataset_name)
    raw = _load_local(files, config, split) if files else _load_hub(dataset_name, config, split)
    sizes = {key: info.num_examples for key, info in (raw.info.splits or {}).items()}
    if not len(raw) or any(stop <= start for _, start, stop in _ranges(split, sizes)):
        raise DataError(f"{dataset_name} has no rows in `{split}`.")
    where = Examples(raw, dataset_name, split, (), files, tuple(sizes.items()))
    layout = pick_layout(raw, config, dataset_name)
    notes = _check_rows(where, layout)
    return Examples(_render(raw, layout), dataset_name, split, notes, files, where.split_sizes)


def _ranges(split: str, sizes: dict[str, int]) -> list[tuple[str, int, int]]:
    """Return split, first row and row after the last for each part of a split text."""
    parts = [part.strip() for part in split.split("+")]
    if not sizes or any(re.split(r"[\[(]", part)[0] not in sizes for part in parts):
        return []
    absolute = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    return [(part.splitname, part.from_ or 0, part.to) for part in absolute]


def _load_local(files: LocalFiles, config: DataConfig, split: str) -> Dataset:
    if config.dataset_config is not None:
        raise DataError(
            f"`dataset_config` is {config.dataset_config}, but {files.name} is on disk and has no "
            "configurations; leave it out."
        )
    for part in split.split("+"):
        wanted = re.split(r"[\[(]", part.strip())[0]
        if wanted not in files.files:
            raise DataError(f"{files.name} has no split `{wanted}`, only {', '.join(files.files)}.")
    every_file = [file for of_split in files.files.values() for file in of_split]
    for file in every_file:
        if not file.stat().st_size:
            raise DataError(f"{file} is empty.")
    options: dict[str, Any] = {}
    if files.builder == "csv":
        header = csv_header(every_file[0])
        for file in every_file:  # the reader would shift or pad such a row silently
            if problem := first_bad_record(file):
                raise DataError(problem + ".")
        # every value is text as it stands: no numbers, and "None" and "NA" are no gaps
        options = {"features": Features({column: Value("string") for column in header})}
        options["keep_default_na"] = False
    data_files = {key: [str(file) for file in of] for key, of in files.files.items()}
    try:
        return datasets.load_dataset(files.builder, data_files=data_files, split=split, **options)
    except (DatasetsError, ValueError, OSError, StopIteration, TypeError) as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{files.name} has no rows in `{split}`.") from error
        problem = next((found for file in every_file if (found := first_bad_record(file))), None)
        reason = problem or f"{files.name} cannot be read: {_reason(error)}"
        raise DataError(reason.rstrip(".") + ".") from error


def _load_hub(name: str, config: DataConfig, split: str) -> Dataset:
    try:
        return datasets.load_dataset(name, config.dataset_config, split=split)
    except (DatasetsError, ValueError, OSError, RuntimeError) as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{name} has no rows in `{split}`.") from error
        raise DataError(
            f"{name} is no file or folder here, and the hub does not give it: "
            f"{_reason(error).rstrip('.')}. Check the name, the split `{split}` and the connection."
        ) from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def pick_layout(dataset: Dataset, config: DataConfig, name: str) -> Layout:
    """Return how to read the rows: by the columns that `config` names, else by the usual names.

    Raises:
        DataError: If a named column is missing or no usual ones are there, with those that are.
    """
    columns = dataset.column_names
    template = template_named(config.prompt_template) if config.prompt_template else None
    there = "; the columns are " + ", ".join(f"`{column}`" for column in columns)
    if config.prompt_column and config.response_column:
        for wanted in (config.prompt_column, config.response_column, config.input_column):
            if wanted is not None and wanted not in columns:
                raise DataError(f"{name} has no column `{wanted}`{there}.")
        pair = (config.prompt_column, config.response_column, config.input_column)
        return InstructionLayout(*pair, template or ALPACA)
    if "messages" in columns:
        return FirstPairLayout("messages", template) if template else ChatLayout("messages")
    if {"prompt", "completion"} <= set(columns):
        if not isinstance(dataset[0]["prompt"], list):
            return InstructionLayout("prompt", "completion", None, template or PLAIN)
        if template:
            raise DataError(
                f"`prompt_template` is set, but `prompt` of {name} is a list of chat turns and "
                "the model's chat template lays it out; leave `prompt_template` out."
            )
        return ChatPairLayout()
    for prompt, response, given_input in _PLAIN_COLUMNS:
        if {prompt, response} <= set(columns):
            given_input = given_input if given_input in columns else None
            return InstructionLayout(prompt, response, given_input, template or ALPACA)
    if "conversations" in columns:
        return (
            FirstPairLayout("conversations", template) if template else ChatLayout("conversations")
        )
    raise DataError(
        f"{name} has none of the usual columns (messages; prompt and completion; query and "
        "response or answer; instruction and output or response; conversations)"
        f"{there}. Name two of them with `prompt_column` and `response_column`."
    )


def _rows(dataset: Dataset, layout: Layout) -> Iterator[dict[str, Any]]:
    """Yield rows of the layout's columns, a batch in memory at a time."""
    wanted = dataset.select_columns(list(layout.columns))
    for batch in wanted.iter(batch_size=1000):
        yield from (
            dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
        )


def _check_rows(examples: Examples, layout: Layout) -> tuple[str, ...]:
    """Raise DataError for the first row that cannot be trained on; return notes on the others."""
    bad: list[int] = []
    problem, num_cut = "", 0
    for number, row in enumerate(_rows(examples.dataset, layout)):
        found = layout.problem(row)
        if found:
            problem = problem or found
            bad.append(number)
        else:
            num_cut += layout.left_out(row)
    if bad:
        more = f" {len(bad) - 1} more rows cannot be trained on either." if len(bad) > 1 else ""
        raise DataError(f"{examples.locate(bad[0])}: {problem}.{more} Correct or remove them.")
    if not num_cut:
        return ()
    return (
        f"{num_cut} of {len(examples.dataset)} rows of {examples.name} have more turns than one "
        "question and its answer; `prompt_template` takes the first pair and leaves out the rest.",
    )


def _render(dataset: Dataset, layout: Layout) -> Dataset:
    """Return the rows as the trainer reads them; cached by `datasets` like every map."""
    if isinstance(layout, ChatLayout | ChatPairLayout):
        kept = [column for column in _FOR_THE_CHAT_TEMPLATE if column in dataset.column_names]
        if "from" not in dataset[0][layout.columns[-1]][0]:
            chat = dataset.select_columns([*layout.columns, *kept])
            is_named = isinstance(layout, ChatPairLayout) or layout.column == "messages"
            return chat if is_named else chat.rename_column(layout.columns[0], "messages")
        names = layout.columns if isinstance(layout, ChatPairLayout) else ("messages",)
        features = Features(
            {name: _TURNS for name in names} | {name: dataset.features[name] for name in kept}
        )
    else:
        kept, features = [], _TEXT_PAIR
    return dataset.map(
        _render_batch,
        batched=True,
        fn_kwargs={"layout": layout},  # part of the cache's key, with the template's text
        remove_columns=[column for column in dataset.column_names if column not in kept],
        features=features,
        desc="Formatting rows",
    )


def _render_batch(batch: dict[str, list[Any]], layout: Layout) -> dict[str, list[Any]]:
    columns = [batch[name] for name in layout.columns]
    rows = [
        layout.render(dict(zip(layout.columns, values, strict=True)))
        for values in zip(*columns, strict=True)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}
