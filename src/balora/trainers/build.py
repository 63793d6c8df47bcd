"""What the runs of both kinds share: the adapter, and the place of a row that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from jinja2 import TemplateError
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from balora.data.provenance import LocatedRows
from balora.errors import BaloraError, ConfigError, DataError, RowError
from balora.models.source import source_of
from balora.recipes import Recipe


class Prepared(NamedTuple):
    """A run that is ready to train."""

    trainer: Any
    recipe: Recipe
    """As it is saved: with what the data have settled."""
    finish: Callable[[float], None] | None = None
    """Called after saving, with the seconds that training took."""


def peft_config(
    recipe: Recipe,
    task_type: str,
    target_modules: str | list[str] | None = None,
    *,
    fan_in_fan_out: bool = False,
) -> LoraConfig | None:
    """Return PEFT's config of the recipe's adapter, None for full fine-tuning.

    Args:
        recipe: Of the run.
        task_type: PEFT's, CAUSAL_LM or SEQ_CLS.
        target_modules: In place of the recipe's.
        fan_in_fan_out: Whether the layers store their weight transposed, as GPT-2's do.
    """
    adapter = recipe.adapter
    if not recipe.has_adapter:
        return None
    revision = source_of(recipe).revision
    return LoraConfig(
        task_type=task_type,
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=target_modules or adapter.lora_target_modules,
        use_rslora=adapter.use_rslora,
        fan_in_fan_out=fan_in_fan_out,
        # of the base, for who loads the adapter by its own name
        revision=None if revision == "main" else revision,
    )


@contextmanager
def building_trainer(rows: Mapping[str, LocatedRows]) -> Iterator[None]:
    """Name the place of a row that cannot be used, and settings that do not go together.

    Model, tokenizer, template and adapter have been checked before, each by its own name: what is
    left to a trainer are its arguments, which refuse one another in its own words.

    Args:
        rows: The data by the name that the trainer gives them.

    Raises:
        DataError: For a row.
        ConfigError: For settings that the trainer refuses, or a folder it cannot write to.
    """
    try:
        yield
    except RowError as error:
        if error.dataset not in rows:  # streamed: it says its number itself
            raise
        where = rows[error.dataset].locate(error.row)
        raise DataError(f"{where}: {error.problem}") from error
    except BaloraError:
        raise
    except (ValueError, ImportError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"the training settings do not work together or on this machine: {first}. Change the "
            "one that is named, or leave it out."
        ) from error


@contextmanager
def naming_refused_chats(
    rows: Mapping[str, LocatedRows], tokenizer: PreTrainedTokenizerBase
) -> Iterator[None]:
    """Name the first chat that the chat template refuses, roles out of turn for example.

    Args:
        rows: The data by the name that the trainer gives them.
        tokenizer: With the template.

    Raises:
        RowError: For the row.
        ConfigError: If the template fails by itself.
    """
    try:
        yield
    except TemplateError as error:
        for name, located in rows.items():
            for number, row in enumerate(located.dataset):
                problem = _refusal(row, tokenizer)
                if problem is not None:
                    raise RowError(number, problem, dataset=name) from error
        raise ConfigError(
            f"`chat_template_path`, or the template of the tokenizer, fails: {error}. Correct it."
        ) from error


def _refusal(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str | None:
    turns = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    try:
        tokenizer.apply_chat_template(turns, tools=row.get("tools"), tokenize=False)
    except TemplateError as error:
        reason = str(error.message or type(error).__name__).rstrip(".")
        return f"the chat template refuses it: {reason}. Change its turns or the template."
    return None
