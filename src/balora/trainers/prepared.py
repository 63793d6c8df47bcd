"""What the runs of both kinds share: the adapter, and errors in the words of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from peft import LoraConfig

from balora.data.located import LocatedRows
from balora.errors import BaloraError, ConfigError, DataError, RowError
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
    if adapter.method == "full":
        return None
    return LoraConfig(
        task_type=task_type,
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=target_modules or adapter.lora_target_modules,
        use_rslora=adapter.use_rslora,
        fan_in_fan_out=fan_in_fan_out,
    )


def loading_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told about the model of a recipe."""
    model = recipe.model
    settings = {"dtype": model.dtype, "revision": model.model_revision}
    if model.attn_implementation:
        settings["attn_implementation"] = model.attn_implementation
    return settings


@contextmanager
def in_words_of_the_recipe(recipe: Recipe, rows: Mapping[str, LocatedRows]) -> Iterator[None]:
    """Turn what goes wrong while model and trainer are built into one sentence on a setting.

    Args:
        recipe: Of the run.
        rows: The data by the name that the trainer gives them; a bad row is named by its place.

    Raises:
        DataError: For a row.
        ConfigError: For a model or a setting.
    """
    try:
        yield
    except RowError as error:
        where = rows[error.dataset].locate(error.row)
        raise DataError(f"{where}: {error.problem}") from error
    except BaloraError:
        raise
    except OSError as error:
        raise ConfigError(
            f"`model_name_or_path` {recipe.model.model_name_or_path!r} cannot be loaded: "
            f"{_first_line(error)}"
        ) from error
    except ValueError as error:
        raise ConfigError(_setting_named(error, recipe)) from error


def _setting_named(error: ValueError, recipe: Recipe) -> str:
    """Name the setting behind an error of peft's or trl's."""
    message = _first_line(error)
    if "not training-compatible" in message:
        return (
            "the chat template does not mark the assistant's turns, and only these are scored. Put "
            "{% generation %} ... {% endgeneration %} around them and name the file in "
            "`chat_template_path`."
        )
    return message


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
