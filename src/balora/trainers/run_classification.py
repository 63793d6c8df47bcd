"""A run of classification or regression: labelled texts, a head, metrics, ``results.json``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from datasets import Dataset
from peft import LoraConfig
from transformers import (
    EvalPrediction,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import IntervalStrategy

from balora.config.classification import ClassificationConfig
from balora.data.classification import (
    ClassificationRows,
    load_evaluation_rows,
    load_out_of_domain_rows,
    load_training_rows,
    tokenize_rows,
)
from balora.distributed import one_first
from balora.environment import describe_environment
from balora.errors import ConfigError
from balora.evaluation.classification import primary_metric, task_metrics
from balora.evaluation.predict import glue_x_average, measure_sets
from balora.evaluation.results import (
    best_row,
    doubts,
    per_evaluation,
    selection_rule,
    write_results,
)
from balora.models.adaptable import check_adaptable
from balora.models.adapter import inner_model
from balora.models.classifier import LoadedClassifier, load_classifier
from balora.models.limits import Limits
from balora.models.load import load_config, load_tokenizer
from balora.models.names import name_of_dtype
from balora.models.source import ModelSource, source_of
from balora.models.special_tokens import align_special_tokens
from balora.models.targets import paper_target_modules
from balora.recipes import Recipe
from balora.trainers.build import Prepared, building_trainer, peft_config
from balora.trainers.checks import check_rows_fit
from balora.trainers.classification import BALoraTrainer
from balora.trainers.sharding import check_classifier

logger = logging.getLogger(__name__)

_FEW_ROWS = 200
"""Training rows that a model is looked at on where nothing is evaluated."""
_LAYER_WORDS = ("query_value", "query_key_value", "all")
"""What `lora_target_modules` takes in classification beside what PEFT takes."""


class Sets(NamedTuple):
    """The data of a run."""

    train: ClassificationRows
    evaluation: dict[str, ClassificationRows]
    out_of_domain: dict[str, ClassificationRows]


def prepare_classification(recipe: Recipe, args: TrainingArguments) -> Prepared:
    """Load data and model and return the trainer of ``recipe``, ready to train.

    Raises:
        ConfigError: If a setting cannot work.
        DataError: If the data cannot be trained on, naming file and line.
    """
    check_classifier(args)
    data, source = cast(ClassificationConfig, recipe.data), source_of(recipe)
    with one_first():
        sets = _load_sets(data)
    _settle_evaluation(recipe, args, sets.evaluation)
    config, tokenizer = load_config(source), load_tokenizer(source)
    _check_length(data, tokenizer, source)
    adapter = _adapter(recipe, config)
    if adapter is not None:
        check_adaptable(config, adapter, source)
    set_seed(args.seed)  # the head is drawn when the model is loaded
    loaded = load_classifier(
        source,
        class_names=sets.train.class_names,
        tokenizer=tokenizer,
        ignore_mismatched_sizes=data.ignore_mismatched_sizes,
    )
    align_special_tokens(loaded.model, tokenizer)
    # the trainer calls a single evaluation set "eval", and its metrics `eval_accuracy`, ...
    single = next(iter(sets.evaluation.values()), sets.train)
    rows = {"train": sets.train, "eval": single, **sets.evaluation, **sets.out_of_domain}
    with building_trainer(rows):
        trainer = _trainer(recipe, args, sets, loaded, tokenizer)
        for name, examples in sets.out_of_domain.items():  # before an hour of training, not after
            tokens = _tokens(examples, tokenizer, data)
            check_rows_fit(tokens, Limits.of(loaded.model, tokenizer), name)
    resolved = _with_class_names(recipe, sets.train)
    return Prepared(trainer, resolved, partial(_finish, trainer, resolved, sets, loaded))


def _trainer(
    recipe: Recipe,
    args: TrainingArguments,
    sets: Sets,
    loaded: LoadedClassifier,
    tokenizer: PreTrainedTokenizerBase,
) -> BALoraTrainer:
    data = cast(ClassificationConfig, recipe.data)
    evaluated = {key: _tokens(rows, tokenizer, data) for key, rows in sets.evaluation.items()}
    single = next(iter(evaluated.values())) if len(evaluated) == 1 else None
    return BALoraTrainer(
        loaded,
        args,
        balora_config=recipe.objective,
        peft_config=_adapter(recipe, loaded.model.config, loaded.model),
        train_dataset=_tokens(sets.train, tokenizer, data),
        eval_dataset=single or evaluated or None,
        processing_class=tokenizer,
        compute_metrics=partial(_compute_metrics, task=data.task),
    )


def _tokens(
    rows: ClassificationRows, tokenizer: PreTrainedTokenizerBase, data: ClassificationConfig
) -> Dataset:
    with one_first():
        return tokenize_rows(rows, tokenizer, data.max_length)


def _load_sets(data: ClassificationConfig) -> Sets:
    train = load_training_rows(data)
    evaluation = load_evaluation_rows(data, train.class_names)
    return Sets(train, evaluation, load_out_of_domain_rows(data, train.class_names))


def _settle_evaluation(
    recipe: Recipe, args: TrainingArguments, evaluation: Mapping[str, ClassificationRows]
) -> None:
    """Switch off the evaluation after each epoch where there is nothing to evaluate on.

    Raises:
        ConfigError: If the recipe asks for it all the same.
    """
    if evaluation:
        return
    for name in ("eval_strategy", "load_best_model_at_end", "eval_on_start"):
        if (value := recipe.training.get(name)) not in (None, False, "no"):
            raise ConfigError(
                f"`{name}` is {str(value).lower()}, but there is nothing to evaluate on. Set "
                "`dataset_test_split` or `eval_dataset_name`."
            )
    args.eval_strategy = IntervalStrategy.NO


def _check_length(
    data: ClassificationConfig, tokenizer: PreTrainedTokenizerBase, source: ModelSource
) -> None:
    if data.max_length > tokenizer.model_max_length:
        raise ConfigError(
            f"`max_length` is {data.max_length}, but {source.words} takes "
            f"{tokenizer.model_max_length} tokens at most. Lower it."
        )


def _adapter(
    recipe: Recipe, config: PretrainedConfig, model: PreTrainedModel | None = None
) -> LoraConfig | None:
    """Return the adapter of the recipe; with the model it knows how the layers store weights."""
    targets = recipe.adapter.lora_target_modules
    if isinstance(targets, str) and targets in _LAYER_WORDS and recipe.has_adapter:
        targets = paper_target_modules(config.model_type, targets)
    modules = () if model is None else model.modules()
    is_transposed = any(isinstance(module, Conv1D) for module in modules)
    return peft_config(recipe, "SEQ_CLS", targets, fan_in_fan_out=is_transposed)


def _compute_metrics(prediction: EvalPrediction, *, task: str) -> dict[str, float]:
    logits = prediction.predictions
    if isinstance(logits, tuple):  # the model returns more than logits
        logits = logits[0]
    return task_metrics(task, logits, prediction.label_ids)


def _with_class_names(recipe: Recipe, train: ClassificationRows) -> Recipe:
    """Return the recipe with the classes of own data, which the saved adapter belongs to."""
    data = cast(ClassificationConfig, recipe.data)
    if data.task != "classification" or data.class_names is not None:
        return recipe
    names = list(train.class_names or ())
    return dataclasses.replace(recipe, data=dataclasses.replace(data, class_names=names))


def _finish(
    trainer: BALoraTrainer,
    recipe: Recipe,
    sets: Sets,
    loaded: LoadedClassifier,
    seconds: float,
) -> None:
    """Evaluate the final model on every set, and write ``results.json``."""
    data, args = cast(ClassificationConfig, recipe.data), trainer.args
    measure = partial(
        measure_sets,
        trainer.model,
        tokenizer=trainer.processing_class,
        task=data.task,
        max_length=data.max_length,
        batch_size=args.per_device_eval_batch_size,
    )
    metric = primary_metric(data.task)
    history = per_evaluation(trainer.state.log_history, list(sets.evaluation))
    outside = measure(sets.out_of_domain)
    results = {
        "task": data.task,
        "method": recipe.adapter.method,
        "seed": args.seed,
        "model": recipe.model.model_name_or_path,
        "dtype": name_of_dtype(trainer.model.dtype),
        "class_names": sets.train.class_names,
        "trained_parameters": trained_parameters(trainer.model, loaded.new_modules),
        "transforms": dict(sets.train.transforms),
        "num_training_rows": len(sets.train.dataset),
        "primary_metric": metric,
        "selection": selection_rule(metric, by_epoch=args.eval_strategy != IntervalStrategy.STEPS),
        "per_evaluation": history,
        "best": {name: best_row(rows, metric) for name, rows in history.items()},
        "last": {name: rows[-1] if rows else None for name, rows in history.items()},
        "final_model": _final_model(args),
        "final": measure(sets.evaluation),
        "out_of_domain": outside,
        "glue_x": glue_x_average(data, outside),
        "wall_seconds": round(seconds, 1),
        "environment": describe_environment(),
    }
    if not sets.evaluation and not sets.out_of_domain:
        some = dataclasses.replace(sets.train, dataset=_first(sets.train.dataset))
        for line in doubts(measure({"training rows": some})):
            logger.warning(line)
    if args.should_save:
        trainer.write_card(_card_metrics(results))
        # last: where it is there, nothing of the run is missing
        write_results(Path(args.output_dir), results)


def _card_metrics(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of the final model by set and metric, the majority class beside them."""
    found: dict[str, Any] = {}
    for name, metrics in results["final"].items():
        for metric, value in metrics.items():
            if isinstance(value, int | float):
                found[f"{name}: {metric}"] = value
        for metric, value in (metrics.get("majority_class") or {}).items():
            found[f"{name}: {metric} of the majority class"] = value
    return found


def _first(rows: Dataset) -> Dataset:
    return rows.take(min(_FEW_ROWS, len(rows)))


def _final_model(args: TrainingArguments) -> str:
    if args.load_best_model_at_end:
        return f"the saved model, of the checkpoint with the best {args.metric_for_best_model}"
    return "the saved model, after the last step"


def trained_parameters(model: Any, new_modules: tuple[str, ...]) -> dict[str, int]:
    """Return how many parameters were trained: in the adapter, the head, and the encoder itself.

    Args:
        model: After training.
        new_modules: The modules that are no part of the pre-trained model; they count as head.
    """
    counts = {"adapter": 0, "head": 0, "encoder": 0}
    base = inner_model(model)
    for name, parameter in base.named_parameters():
        if parameter.requires_grad:
            is_new = any(name.startswith(f"{module}.") for module in new_modules)
            part = "adapter" if "lora_" in name else "head" if is_new else "encoder"
            counts[part] += parameter.numel()
    return counts | {"total": sum(counts.values())}
