"""A run of text generation: prompts and responses, trl's trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, TrainingArguments
from trl import SFTConfig

from balora.config import DataConfig
from balora.data import Examples, load_examples
from balora.errors import ConfigError
from balora.models.names import check_model_name
from balora.recipes import Recipe
from balora.trainers.prepared import (
    Prepared,
    in_words_of_the_recipe,
    loading_settings,
    peft_config,
)
from balora.trainers.sft import BALoraSFTTrainer

logger = logging.getLogger(__name__)


def prepare_generation(recipe: Recipe, args: TrainingArguments) -> Prepared:
    """Load data and model and return the trainer of ``recipe``, ready to train.

    Raises:
        ConfigError: If a setting cannot work.
        DataError: If the data cannot be trained on, naming file and line.
    """
    args, data = cast(SFTConfig, args), cast(DataConfig, recipe.data)
    train = load_examples(data, split=data.dataset_train_split, name="train")
    evaluation = _evaluation_examples(data, args)
    for note in (*train.notes, *(evaluation.notes if evaluation else ())):
        logger.warning(note)
    args.model_init_kwargs = loading_settings(recipe) | dict(args.model_init_kwargs or {})
    _check_files(recipe, args, train)
    with in_words_of_the_recipe(recipe, {"train": train, "eval": evaluation or train}):
        trainer = BALoraSFTTrainer(
            recipe.model.model_name_or_path,
            args,
            balora_config=recipe.objective,
            peft_config=peft_config(recipe, "CAUSAL_LM"),
            overlong_rows=data.overlong_rows,
            train_dataset=train.dataset,
            eval_dataset=evaluation.dataset if evaluation else None,
        )
    return Prepared(trainer, recipe)


def _check_files(recipe: Recipe, args: SFTConfig, train: Examples) -> None:
    """Refuse a model folder or a template that is not there, and chats without a template."""
    name, template = recipe.model.model_name_or_path, args.chat_template_path
    check_model_name(name, "`model_name_or_path`")
    if template is not None and template.endswith((".jinja", ".j2")):
        if not Path(template).is_file():
            raise ConfigError(f"`chat_template_path` {template!r} does not exist.")
    elif template is None and "messages" in train.dataset.column_names:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                name, trust_remote_code=args.trust_remote_code
            )
        except (OSError, ValueError):
            return  # loading the model says what is wrong
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"the rows are chats, but the tokenizer of {name!r} has no chat template. Set "
                "`chat_template_path` to a template with {% generation %} markers, or "
                "`prompt_template: alpaca` to train on the first question and answer."
            )


def _evaluation_examples(data: DataConfig, args: SFTConfig) -> Examples | None:
    split = data.dataset_test_split
    if split is None and data.eval_dataset_name is None:
        if args.eval_strategy != "no" or args.load_best_model_at_end:
            raise ConfigError(
                f"`eval_strategy` is {str(args.eval_strategy)!r}, but there is nothing to evaluate "
                "on. Set `dataset_test_split` or `eval_dataset_name`."
            )
        return None
    return load_examples(data, split=split or "train", name="eval")
