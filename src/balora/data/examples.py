"""Load a data set, check every row, and hand the trainer prompts and completions, or chat turns."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value

from balora.config import DataConfig
from balora.data.columns import pick_layout, template_of
from balora.data.layouts import ChatLayout, ChatPairLayout, Layout
from balora.data.once import once
from balora.data.provenance import LocatedRows, iterate_rows
from balora.data.sources import find_local, load_rows

logger = logging.getLogger(__name__)

FOR_THE_CHAT_TEMPLATE = ("tools", "chat_template_kwargs")
_TEXT_PAIR = Features({"prompt": Value("string"), "completion": Value("string")})
_TURNS = [{"role": Value("string"), "content": Value("string")}]


@dataclass(frozen=True)
class Examples(LocatedRows):
    """Rows that were checked, and where each of them comes from.

    ``dataset`` has the columns ``prompt`` and ``completion`` (text, or lists of turns), or
    ``messages``; ``notes`` says what in the rows does not reach the trainer.
    """

    template: str = "none"
    """What lays a question out: chat, none, alpaca or a text with ``{instruction}``."""


@once
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
    dataset_name, setting = config.dataset_name, "dataset_name"
    if name == "eval" and config.eval_dataset_name is not None:
        dataset_name, setting = config.eval_dataset_name, "eval_dataset_name"
    subset = config.dataset_config if dataset_name == config.dataset_name else None
    files = find_local(dataset_name, setting=setting)
    split_setting = "dataset_test_split" if name == "eval" else "dataset_train_split"
    raw, sizes = load_rows(dataset_name, files, subset, split, setting=split_setting)
    where = Examples(raw, dataset_name, split, (), files, tuple(sizes.items()))
    layout = pick_layout(raw, config, dataset_name)
    notes = _check_rows(where, layout)
    for note in notes:
        logger.warning(note)
    return Examples(
        _render(raw, layout),
        dataset_name,
        split,
        notes,
        files,
        where.split_sizes,
        template=template_of(layout),
    )


def _check_rows(examples: Examples, layout: Layout) -> tuple[str, ...]:
    """Raise DataError for the first row that cannot be trained on; return notes on the others."""
    bad: list[int] = []
    problem, num_cut = "", 0
    for number, row in enumerate(iterate_rows(examples.dataset, layout.columns)):
        found = layout.problem(row)
        if found:
            problem = problem or found
            bad.append(number)
        else:
            num_cut += layout.drops(row)
    if bad:
        examples.refuse(bad, problem)
    if not num_cut:
        return ()
    return (
        f"{num_cut} of {len(examples.dataset)} rows of {examples.name} have more turns than one "
        "question and its answer; `prompt_template` takes the first pair and drops the rest.",
    )


def _render(dataset: Dataset, layout: Layout) -> Dataset:
    """Return the rows as the trainer reads them; cached by `datasets` like every map."""
    if isinstance(layout, ChatLayout | ChatPairLayout):
        kept = [column for column in FOR_THE_CHAT_TEMPLATE if column in dataset.column_names]
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


def training_rows(config: DataConfig) -> Dataset:
    """Return the rows that a run trains on, with the columns they are stored with.

    Raises:
        DataError: If they cannot be read.
    """
    name, split = config.dataset_name, config.dataset_train_split
    return load_rows(name, find_local(name), config.dataset_config, split)[0]
