"""A run of text generation: prompts and responses, trl's trainer."""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.pytorch_utils import Conv1D
from trl import SFTConfig

from balora.config import DataConfig
from balora.data import Examples, load_examples
from balora.data.streaming import stream_examples
from balora.distributed import one_first
from balora.errors import ConfigError
from balora.models.adaptable import check_adaptable
from balora.models.load import check_is_causal, load_config, load_model, load_tokenizer
from balora.models.source import ModelSource, placed_source, source_of
from balora.models.special_tokens import (
    align_special_tokens,
    apply_template,
    check_marks_turns,
    check_syntax,
    settle_special_tokens,
)
from balora.recipes import Recipe
from balora.trainers.build import Prepared, building_trainer, naming_refused_chats, peft_config
from balora.trainers.reading_once import loading
from balora.trainers.rows import Rows, scores_responses_only
from balora.trainers.sft import BALoraSFTTrainer


def prepare_generation(recipe: Recipe, args: TrainingArguments) -> Prepared:
    """Load data and model and return the trainer of ``recipe``, ready to train.

    Raises:
        ConfigError: If a setting cannot work.
        DataError: If the data cannot be trained on, naming file and line.
    """
    args, data = cast(SFTConfig, args), cast(DataConfig, recipe.data)
    with one_first():
        rows, train, template = _rows_of(data, args)
    _check_scored(recipe, train)
    source = source_of(recipe)
    tokenizer = _tokenizer(source, args, train)
    adapter = peft_config(recipe, "CAUSAL_LM")
    config = load_config(source)
    check_is_causal(config, source)
    _check_top_k(recipe, config.get_text_config().vocab_size, source)
    if adapter is not None:
        check_adaptable(config, adapter, source)
    with loading(args):
        model = load_model(placed_source(source))
    align_special_tokens(model, tokenizer)
    if adapter is not None:
        adapter.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    # trl would apply these to a model that it loads itself
    args.model_init_kwargs = args.chat_template_path = args.eos_token = args.pad_token = None
    with building_trainer(rows), naming_refused_chats(rows, tokenizer):
        trainer = BALoraSFTTrainer(
            model,
            args,
            balora_config=recipe.objective,
            replay_config=recipe.replay,
            peft_config=adapter,
            overlong_rows=data.overlong_rows,
            train_dataset=train,
            eval_dataset=rows["eval"].dataset if "eval" in rows else None,
            processing_class=tokenizer,
        )
    trainer.prompt_template = template
    return Prepared(trainer, recipe)


def _rows_of(data: DataConfig, args: SFTConfig) -> tuple[dict[str, Examples], Rows, str]:
    """Return the rows that are known, by what they are for, those to train on, and their layout."""
    evaluation = _evaluation_examples(data, args)
    known = {"eval": evaluation} if evaluation else {}
    if data.streaming:
        return known, *stream_examples(data)
    train = load_examples(data, split=data.dataset_train_split, name="train")
    return {"train": train, **known}, train.dataset, train.template


def _check_scored(recipe: Recipe, train: Rows) -> None:
    asked = recipe.training.get("assistant_only_loss")
    if asked is False and scores_responses_only(train):
        raise ConfigError(
            "`assistant_only_loss` is false, but of chats with `messages` balora scores the "
            "assistant's turns alone. Leave it out, or set it to true."
        )


def _tokenizer(source: ModelSource, args: SFTConfig, train: Rows) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the special tokens and the chat template of the recipe."""
    tokenizer = load_tokenizer(source)
    if args.chat_template_path is not None:
        apply_template(tokenizer, args.chat_template_path)
    settle_special_tokens(tokenizer, source, eos_token=args.eos_token, pad_token=args.pad_token)
    if scores_responses_only(train):
        where = repr(args.chat_template_path or source.name)
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"the rows are chats, but the tokenizer of {where} has no chat template. Set "
                "`chat_template_path` to a template with {% generation %} markers, or "
                "`prompt_template: alpaca` to train on the first question and answer."
            )
        check_syntax(tokenizer, source.name)
        check_marks_turns(tokenizer, where)
    return tokenizer


def _check_top_k(recipe: Recipe, vocabulary: int, source: ModelSource) -> None:
    top_k = recipe.objective.entropy_top_k
    if top_k is not None and top_k > vocabulary:
        raise ConfigError(
            f"`entropy_top_k` is {top_k}, but the vocabulary of {source.words} has {vocabulary} "
            "tokens. Lower it, or leave it out to take them all."
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
