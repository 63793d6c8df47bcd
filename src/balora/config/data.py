"""The data of a text generation run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from balora.config.fields import field_problems
from balora.config.parts import refuse
from balora.config.rules import Checked, Named, PathTo
from balora.config.words import suggestion

_NOT_STREAMED = {
    "dataset_num_proc": "one process reads and tokenizes the rows; leave it out",
    "train_sampling_strategy": "rows come in their order; leave it out",
}
"""Fields of the trainer's arguments that cannot act on a stream, and why."""
OverlongRows = Literal["error", "drop"]


def _template_problem(text: str | None) -> str | None:
    if text in (None, "alpaca", "none", "chat") or "{instruction}" in text:
        return None
    return (
        f"is `{text}`, which holds no {{instruction}}"
        f"{suggestion(text, ('alpaca', 'none', 'chat'))}; write alpaca, none, chat or a text with "
        "{instruction} in it"
    )


RunTemplate = Annotated[str | None, Named(("alpaca", "none", "chat")), Checked(_template_problem)]
"""How a finished run is asked: as in training (null), by name, or with a text of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which rows to train on, and how a row becomes a prompt and a response."""

    dataset_name: Annotated[str, PathTo("data")]
    """A hub id, a local .jsonl, .json, .csv, .tsv or .parquet file, or a folder of them."""

    dataset_config: str | None = None
    """Configuration (subset) of `dataset_name`, where that is a data set on the hub."""

    dataset_train_split: str = "train"
    """Rows to train on, such as train, train[:100000] or train[10%:]."""

    eval_dataset_name: Annotated[str | None, PathTo("data")] = None
    """Another data set to evaluate on, named like `dataset_name`; null takes the same one."""

    dataset_test_split: str | None = None
    """Rows to evaluate on; null with no `eval_dataset_name` means no evaluation."""

    prompt_column: str | None = None
    """Column with the instruction, where its name is not one of the usual ones."""

    input_column: str | None = None
    """Column with an optional input to the instruction; needs `prompt_column`."""

    response_column: str | None = None
    """Column with the response, where its name is not one of the usual ones."""

    prompt_template: Annotated[str | None, Named(("alpaca", "none"))] = None
    """Text with {instruction} and optionally {input}, or alpaca, or none; null picks by columns."""

    overlong_rows: OverlongRows = "error"
    """What to do with rows whose response is cut off entirely by `max_length`: error or drop."""

    streaming: bool = False
    """Whether training rows are read while the run goes on and not stored; needs `max_steps`."""

    @property
    def is_evaluated(self) -> bool:
        """True when there are rows to evaluate on."""
        return self.eval_dataset_name is not None or self.dataset_test_split is not None

    @property
    def named_sets(self) -> dict[str, str | None]:
        """Every data set by the field that names it."""
        return {"dataset_name": self.dataset_name, "eval_dataset_name": self.eval_dataset_name}

    def __post_init__(self) -> None:
        refuse(
            "data",
            field_problems(
                self, self._column_problems, self._template_problems, self._split_problems
            ),
        )

    def check_training(self, training: Mapping[str, Any]) -> None:
        """Refuse what cannot work on rows that are not known beforehand.

        Args:
            training: The fields of the trainer's arguments that are set.

        Raises:
            ConfigError: With every problem.
        """
        if not self.streaming:
            return
        problems = []
        steps = training.get("max_steps")
        if steps is None or steps < 1:
            problems.append(
                "`streaming` is true, and a stream has no number of rows, so `max_steps` must say "
                "when to stop; set it"
            )
        problems += [
            f"`{name}` is {training[name]}, but with `streaming` {why}"
            for name, why in _NOT_STREAMED.items()
            if training.get(name) not in (None, "random", "sequential")
        ]
        refuse("data", problems)

    def _split_problems(self) -> list[str]:
        if self.streaming and any(sign in self.dataset_train_split for sign in "[("):
            return [
                f"`dataset_train_split` is {self.dataset_train_split}, but `streaming` reads a "
                "split from its start on; name it without a range (`max_steps` says how much is "
                "read)"
            ]
        return []

    def _column_problems(self) -> list[str]:
        problems = []
        for one, other in (
            ("prompt_column", "response_column"),
            ("response_column", "prompt_column"),
            ("input_column", "prompt_column"),
        ):
            if getattr(self, one) is not None and getattr(self, other) is None:
                problems.append(f"`{one}` is {getattr(self, one)}, so `{other}` must be set too")
        return problems

    def _template_problems(self) -> list[str]:
        text = self.prompt_template
        if text is None or text == "alpaca":
            return []
        if text != "none" and "{instruction}" not in text:
            hint = suggestion(text, ("alpaca", "none"))
            return [
                f"`prompt_template` is `{text}`, which holds no {{instruction}}{hint}; write "
                "alpaca, none or a text with {instruction} in it"
            ]
        if text.endswith((" ", "\t")):
            return [
                "`prompt_template` ends in a space, which tokenizers merge with the first word of "
                "the response; leave the space out, the response then starts with one"
            ]
        if self.input_column is not None and "{input}" not in text:
            return [
                f"`input_column` is {self.input_column}, but `prompt_template` has no {{input}}; "
                "add {input} to it or leave `input_column` out"
            ]
        return []
