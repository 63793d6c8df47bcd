"""What the columns of a data set mean, by the names the user gave or by their usual names."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from balora.config import DataConfig
from balora.data.layouts import (
    ChatLayout,
    ChatPairLayout,
    FirstPairLayout,
    InstructionLayout,
    Layout,
)
from balora.data.templates import ALPACA, PLAIN, PromptTemplate, template_named
from balora.errors import DataError

_PLAIN_COLUMNS = (  # instruction, response, input
    ("query", "response", None),
    ("query", "answer", None),
    ("question", "answer", None),  # GSM8K's own
    ("instruction", "output", "input"),
    ("instruction", "response", None),
)

_MOST_LISTED = 10


def listed(columns: Sequence[str]) -> str:
    """Return the names of columns for a message; of many only the first few."""
    shown = ", ".join(f"`{column}`" for column in columns[:_MOST_LISTED])
    if len(columns) <= _MOST_LISTED:
        return shown
    question = "; is the file a list of rows?" if columns[0] == "0" else ""
    return f"{shown}, ... ({len(columns)} in all{question})"


def pick_layout(dataset: Dataset, config: DataConfig, name: str) -> Layout:
    """Return how to read the rows: by the columns that `config` names, else by the usual names.

    Raises:
        DataError: If a named column is missing or no usual ones are there, with those that are.
    """
    columns = dataset.column_names
    template = template_named(config.prompt_template) if config.prompt_template else None
    there = f"; the columns are {listed(columns)}"
    if config.prompt_column and config.response_column:
        named = (config.prompt_column, config.response_column, config.input_column)
        for wanted in named:
            if wanted is not None and wanted not in columns:
                raise DataError(f"{name} has no column `{wanted}`{there}.")
        return InstructionLayout(*named, template or ALPACA)
    if "messages" in columns:
        return _conversation("messages", template)
    if {"prompt", "completion"} <= set(columns):
        return _prompt_and_completion(dataset, template, name)
    for prompt, response, given_input in _PLAIN_COLUMNS:
        if {prompt, response} <= set(columns):
            given_input = given_input if given_input in columns else None
            return InstructionLayout(prompt, response, given_input, template or ALPACA)
    if "conversations" in columns:
        return _conversation("conversations", template)
    raise DataError(
        f"{name} has none of the usual columns (messages; prompt and completion; query and "
        "response or answer; question and answer; instruction and output or response; "
        "conversations)"
        f"{there}. Name two of them with `prompt_column` and `response_column`."
    )


def _conversation(column: str, template: PromptTemplate | None) -> Layout:
    return FirstPairLayout(column, template) if template else ChatLayout(column)


def _prompt_and_completion(dataset: Dataset, template: PromptTemplate | None, name: str) -> Layout:
    if not isinstance(dataset[0]["prompt"], list):
        return InstructionLayout("prompt", "completion", None, template or PLAIN)
    if template:
        raise DataError(
            f"`prompt_template` is set, but `prompt` of {name} is a list of chat turns and "
            "the model's chat template lays it out; leave `prompt_template` out."
        )
    return ChatPairLayout()


def template_of(layout: Layout) -> str:
    """Return what lays a question out, as `prompt_template` names it, or chat."""
    if not isinstance(layout, InstructionLayout | FirstPairLayout):
        return "chat"
    if layout.template == PLAIN:
        return "none"
    return "alpaca" if layout.template == ALPACA else layout.template.text
