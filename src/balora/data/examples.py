"""Load a data set, check every row, and hand the trainer prompts and completions, or chat turns."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value

from balora.config import DataConfig
from balora.data.columns import pick_layout
from balora.data.layouts import ChatLayout, ChatPairLayout, Layout
from balora.data.lines import record_lines
from balora.data.sources import LocalFiles, find_local, load_rows, split_ranges
from balora.errors import DataError

logger = logging.getLogger(__name__)

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
        for split, start, stop in split_ranges(self.split, dict(self.split_sizes)):
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
    subset = config.dataset_config if dataset_name == config.dataset_name else None
    files = find_local(dataset_name)
    raw, sizes = load_rows(dataset_name, files, subset, split)
    where = Examples(raw, dataset_name, split, (), files, tuple(sizes.items()))
    layout = pick_layout(raw, config, dataset_name)
    notes = _check_rows(where, layout)
    for note in notes:
        logger.warning(note)
    return Examples(_render(raw, layout), dataset_name, split, notes, files, where.split_sizes)


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
