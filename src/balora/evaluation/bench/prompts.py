"""The prompt of a problem: laid out as the run was trained, so that skill is measured, not form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from balora.config import DataConfig
from balora.config.fields import field_hints
from balora.data.columns import pick_layout, template_of
from balora.data.sources import find_local, load_rows
from balora.data.templates import template_named
from balora.errors import ConfigError, DataError
from balora.evaluation.batches import chat_prompt
from balora.models.source import RECIPE_FILE, read_recipe

CHAT = "chat"
"""The value of `prompt_template` for the chat template of the model's tokenizer."""


@dataclass(frozen=True)
class Prompter:
    """Lays problems out as prompts."""

    template: str
    """alpaca, none, chat or a text with {instruction}."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Of a chat; no other template needs one."""

    def prompt(self, instruction: str, suffix: str = "", *, given_input: str = "") -> str:
        """Return the prompt of a problem, with what its answer is to begin with."""
        if self.tokenizer is not None:
            text = chat_prompt(self.tokenizer, [{"role": "user", "content": instruction}])
        else:
            text = template_named(self.template).prompt(instruction, given_input)
        return text + (suffix.lstrip() if text[-1:].isspace() else suffix)

    @property
    def stop(self) -> tuple[str, ...]:
        """Where an answer ends though the model goes on: at the next question it asks itself."""
        return ("### Instruction:",) if "### Instruction:" in self._text else ()

    @property
    def _text(self) -> str:
        return "" if self.template == CHAT else template_named(self.template).text


def prompter_of(
    run: Path | None, given: str | None, load: Callable[[], PreTrainedTokenizerBase]
) -> Prompter:
    """Return how the problems are asked: as the user set, else as the run was trained.

    Args:
        run: The run; None for the pre-trained model, which is asked with alpaca.
        given: The setting `prompt_template`.
        load: Returns the tokenizer of the run, for a chat.

    Raises:
        ConfigError: If it is a chat and the tokenizer has no chat template, or the run does not
            say how it was trained.
    """
    template = given or ("alpaca" if run is None else _trained_with(run))
    if template != CHAT:
        return Prompter(template)
    tokenizer = load()
    if tokenizer.chat_template is None:
        of = "the model" if run is None else f"`{run}`"
        raise ConfigError(
            f"`prompt_template` is chat, but the tokenizer of {of} has no chat template; set it to "
            "alpaca, none or a text with {instruction} in it."
        )
    return Prompter(template, tokenizer)


def template_of_run(run: Path) -> str:
    """Return what the prompts of a run were laid out with; ``none`` where that is not known."""
    try:
        return _trained_with(run)
    except ConfigError:
        return "none"


def _trained_with(run: Path) -> str:
    """Return the template by its recipe."""
    if not (run / RECIPE_FILE).is_file():
        raise _unknown(run, f"it has no {RECIPE_FILE}")
    recipe = read_recipe(run)
    if recipe.get("prompt_template") is not None:
        return str(recipe["prompt_template"])
    if "dataset_name" not in recipe:
        raise _unknown(run, f"its {RECIPE_FILE} names no data set")
    hints = field_hints(DataConfig)
    data = DataConfig(**{name: value for name, value in recipe.items() if name in hints})
    try:
        return template_of_rows(data)
    except DataError as error:
        raise _unknown(run, f"its data cannot be read ({str(error).rstrip('.')})") from error


def template_of_rows(data: DataConfig) -> str:
    """Return the template that training rows with such columns are laid out with, if none is set.

    Raises:
        DataError: If the rows cannot be read.
    """
    split = data.dataset_train_split.split("+")[0].split("[")[0]
    files = find_local(data.dataset_name)
    rows, _ = load_rows(data.dataset_name, files, data.dataset_config, f"{split}[:1]")
    return template_of(pick_layout(rows, data, data.dataset_name))


def _unknown(run: Path, why: str) -> ConfigError:
    return ConfigError(
        f"which prompt `{run}` was trained with is not known: {why}. Set `prompt_template` to "
        "alpaca, none, chat or a text with {instruction} in it."
    )
