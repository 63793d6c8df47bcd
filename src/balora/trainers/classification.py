"""``BALoraTrainer``: transformers' ``Trainer`` with anchored PiSSA and the terms of NLU."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from balora.anchored import add_adapter, check_adapter, initialise
from balora.config import BALoraConfig
from balora.config.objective import GENERATION_FIELDS
from balora.errors import ConfigError, NonFiniteError
from balora.models.classifier import (
    ClassifierHead,
    LoadedClassifier,
    align_pad_token,
    set_pad_token,
)
from balora.models.limits import Limits
from balora.models.quantization import quantised_by
from balora.objective import Normalizer, nlu_objective, task_loss
from balora.trainers.arguments import BALoraTrainingArguments, settings
from balora.trainers.checks import (
    check_arguments,
    check_configs,
    check_is_trainable,
    check_labels,
    check_needs,
    check_padding,
    check_rows_fit,
    check_shares,
    check_single_device,
    check_start,
    warn_of_half_precision,
)
from balora.trainers.evaluation import num_counted
from balora.trainers.mixin import ObjectiveMixin, default_output_dir, own_arguments
from balora.trainers.reference import (
    REFERENCE_COLUMN,
    ROW_COLUMN,
    CollateRows,
    Reference,
    ReferencePass,
    compute_reference,
    initial_head,
    keep_reference,
    load_reference,
    reference_key,
    with_row_numbers,
)
from balora.trainers.resume import ResumeMixin
from balora.trainers.save import StagedSaveMixin
from balora.trainers.sharding import check_classifier, check_layout, check_trainer, full
from balora.trainers.texts import ready

logger = logging.getLogger(__name__)


class BALoraTrainer(ObjectiveMixin, ResumeMixin, StagedSaveMixin, Trainer):  # type: ignore[misc]
    r"""Classification and regression with BA-LoRA, where ``transformers.Trainer`` stood.

    The adapter starts from the principal components of each weight, the base model stays
    untouched, the head is trained in full, and the loss is
    :func:`balora.objective.nlu_objective`. The consistency term compares with the model as it is
    before the first step, whose rows are computed once. Evaluation reports the task loss alone.

    ``save_model`` leaves a plain LoRA adapter of rank 2r with the head, which loads with
    ``PeftModel.from_pretrained`` on the untouched base.

    Args:
        model: From :func:`~balora.models.classifier.load_classifier`, so that every new
            parameter is trained and saved; or a model with a head, or a ``PeftModel`` of one.
        args: As for transformers, or a
            :class:`~balora.trainers.arguments.BALoraTrainingArguments`, which holds the settings
            of the next one. Without it: bf16 where the device has it.
        balora_config: The start and the objective; by default the paper's for classification.
        peft_config: A plain ``LoraConfig``. Without it every weight is trained, which allows no
            consistency term.
        train_dataset: With ``labels`` or ``label``, and with tokens, or with ``text`` (and
            ``text_pair``) that the tokenizer passed as ``processing_class`` makes them of. With a
            consistency term a ``datasets.Dataset``, whose rows can be counted.
        **kwargs: Everything else that ``Trainer`` takes, by keyword.

    Raises:
        ConfigError: For a setting that cannot work, before training starts.
        DataError: For data without rows or labels.
        RowError: For a label that does not fit the head.
    """

    loss_is_scaled_for_ga = True
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any

    def __init__(
        self,
        model: LoadedClassifier | PreTrainedModel | PeftModel,
        args: TrainingArguments | None = None,
        *,
        balora_config: BALoraConfig | None = None,
        peft_config: PeftConfig | None = None,
        train_dataset: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        check_configs(balora_config, peft_config, args, BALoraTrainingArguments)
        preset = BALoraConfig.preset("paper", task="nlu")
        self.balora_config = settings(args, balora_config, preset, called="balora_config")
        _check_config(self.balora_config)
        if peft_config is not None:
            model = add_adapter(model, peft_config, self.balora_config)
        elif isinstance(model, LoadedClassifier):
            model = model.model
        has_adapter = isinstance(model, PeftModel)
        args = _own_arguments(model, args, self.balora_config)
        check_arguments(args, kwargs)
        check_needs(self.balora_config, has_adapter=has_adapter)
        check_is_trainable(model, has_adapter=has_adapter)
        check_single_device(args)
        check_layout(args, self.balora_config if has_adapter else None, quantised_by(model))
        check_classifier(args)
        self._said_single_row = False
        self._reference: Reference | None = None
        self._reference_file: Path | None = None
        if isinstance(kwargs.get("processing_class"), PreTrainedTokenizerBase):
            kwargs["processing_class"] = _that_pads(kwargs["processing_class"], model.config)
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        self.train_dataset = self._ready(self.train_dataset, "train")
        self.eval_dataset = self._ready(self.eval_dataset, "eval")
        self._make_resumable()
        # every label is an item, whether the model's own loss takes their number or not
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, False
        self._base = self.model.get_base_model() if has_adapter else self.model
        if getattr(self.processing_class, "pad_token_id", None) is not None:
            align_pad_token(self._base, self.processing_class)
        self._head = ClassifierHead(self._base)
        self._check_model()
        space = self.balora_config.space
        columns = "classes" if space == "logits" else "features"
        self._svd_limits = {columns: self._head.width(space)}
        self._say_single_column()
        limits = Limits.of(self._base, self.processing_class)
        check_padding(limits, args)
        for name, dataset in (("train", self.train_dataset), ("eval", self.eval_dataset)):
            check_labels(dataset, self._base.config.num_labels, name)
            check_rows_fit(dataset, limits, name)
        if has_adapter:
            self._anchor()

    def _ready(self, dataset: Any, name: str) -> Any:
        """Return a data set as the objective reads it: see :func:`~balora.trainers.texts.ready`."""
        return ready(dataset, self.processing_class, self.model, name)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the batches of a data set that ``evaluate`` was given, or of the trainer's."""
        loader: DataLoader[Any] = super().get_eval_dataloader(self._ready(eval_dataset, "eval"))
        return loader

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the batches of a data set that ``predict`` was given."""
        loader: DataLoader[Any] = super().get_test_dataloader(self._ready(test_dataset, "test"))
        return loader

    def _check_model(self) -> None:
        self._sharding = check_trainer(self)
        self._settle_search()
        check_shares(self.train_dataset, self.args.world_size)
        warn_of_half_precision(self.model)
        needs_reference, dataset = self.balora_config.needs_reference, self.train_dataset
        if needs_reference and not isinstance(dataset, Dataset | None):
            raise ConfigError(
                f"the training data are a `{type(dataset).__name__}`, but the reference of the "
                "consistency term is computed for each row before training. Pass a "
                "`datasets.Dataset`, or set `consistency_coef: 0`."
            )
        if not isinstance(self.model, PeftModel):
            return
        check_adapter(self.model, self.balora_config)
        check_start(self.model, self.balora_config)
        if not self._head.is_trained:
            raise ConfigError(
                f"the head is not trained in full: `{self._head.name}` is frozen or adapted, and "
                "would not be saved. Set `task_type='SEQ_CLS'` in the `LoraConfig`, or name it in "
                "`modules_to_save`."
            )
        if needs_reference and not self._head.is_at_start:
            raise ConfigError(
                "the model's head is trained already, and the one it started from would be the "
                "reference of the consistency term. Merge the adapter into the model first, or "
                "set `consistency_coef: 0`."
            )

    def prepare(self, checkpoint: str | Path | None = None) -> None:
        """Make what ``train`` needs first: the start of the adapter, and the reference.

        Args:
            checkpoint: A folder to read the reference from; the start is read when it is loaded.

        Raises:
            ConfigError: If the reference there was computed from something else.
            DataError: If the training data are not tokenized.
            NonFiniteError: If the model gives NaN or infinity.
        """
        if not checkpoint and isinstance(self.model, PeftModel):
            initialise(self.model, device=self.args.device, full=full)
        if self.balora_config.needs_reference and isinstance(self.train_dataset, Dataset):
            self._reference = self._reference_of_step_0(checkpoint)
            self._reference_file = None

    def _reference_of_step_0(self, checkpoint: str | Path | None) -> Reference:
        """Return the rows of the model at step 0: from the checkpoint, or computed now."""
        space, collated = self.balora_config.space, self._remove_unused_columns(self.train_dataset)
        key = reference_key(
            self._base,
            collated,
            collate=self.data_collator,
            space=space,
            precision=self.accelerator.mixed_precision,
        )
        if checkpoint:
            return load_reference(Path(checkpoint), self._base, key)
        passes = ReferencePass(
            rows_of=self._rows_of,
            collate=self.data_collator,
            batch_size=self.args.eval_batch_size,
            width=self._head.width(space),
            show_progress=not self.args.disable_tqdm,
        )
        return Reference(
            compute_reference(self._base, collated, passes), initial_head(self._base), key
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches, each with the numbers of its rows and their reference."""
        dataset, collator = self.train_dataset, self.data_collator
        rows = None if self._reference is None else self._reference.rows
        if isinstance(dataset, Dataset):
            self.train_dataset = with_row_numbers(dataset)
            self.data_collator = CollateRows(collator, rows)
        try:
            loader: DataLoader[Any] = super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collator
        return loader

    def _rows_of(self, batch: dict[str, Any]) -> Tensor:
        with self.accelerator.autocast():
            output, features = self._run(self._base, self._prepare_inputs(batch))
        rows: Tensor = output.logits if features is None else features
        return rows

    def _run(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, Tensor | None]:
        """Return the model's output and, where the terms act on them, the features."""
        if self.balora_config.space == "features":
            return self._head.run(model, inputs)
        return model(**inputs), None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the objective of one micro-step; in evaluation, the task loss."""
        inputs = dict(inputs)
        reference, row = inputs.pop(REFERENCE_COLUMN, None), inputs.pop(ROW_COLUMN, None)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise ConfigError(
                f"the batches have no `labels`, only {', '.join(inputs)}: the data collator leaves "
                "them out. Use one that lets them through, or leave `data_collator` out."
            )
        if not self.model.training or return_outputs:
            outputs = model(**inputs)
            counted = slice(num_counted(self.accelerator, len(labels)))
            loss = task_loss(outputs.logits[counted], labels[counted])
            loss = loss / max(len(labels[counted]), 1)
            return (loss, outputs) if return_outputs else loss
        if self.balora_config.needs_reference and reference is None:
            raise ConfigError(
                "the batch has no reference for the consistency term to compare with: it is made "
                "by `train()` and rides along in `get_train_dataloader()`. Take batches from there."
            )
        self._say_single_row(len(labels))
        outputs, features = self._run(model, inputs)
        if num_items_in_batch is None:  # a micro-step outside the training loop
            normalizer = Normalizer(len(labels))
        else:
            normalizer = self._normalizer(num_items_in_batch)
        coefficients = self._coefficients()
        try:
            loss, terms, counts = nlu_objective(
                outputs.logits,
                features,
                labels,
                reference,
                config=self.balora_config,
                normalizer=normalizer,
                coefficients=coefficients,
            )
        except NonFiniteError as error:
            where = "" if row is None else f", rows {', '.join(map(str, row.tolist()))}"
            raise NonFiniteError(f"step {self.state.global_step + 1}{where}: {error}") from None
        num_rows = counts.num_svd_rows or 0
        if num_rows > 1:  # the term of a single row is 0
            self._say_constant_svd(num_rows, "examples", self._svd_limits)
        self._step_log.add(terms, coefficients, counts, num_micro_steps=normalizer.num_micro_steps)
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the examples: transformers would leave out a regression target of -100."""
        labelled = [batch for batch in batch_samples if "labels" in batch]
        examples = [{"labels": torch.zeros(len(batch["labels"]))} for batch in labelled]
        return super()._get_num_items_in_batch(examples, device)

    def _say_single_column(self) -> None:
        """Say which terms are constant for a regression on its logits, which are one column."""
        values = {"diversity": 0, "svd": -1}
        on = [name for name in values if getattr(self.balora_config, f"{name}_coef")]
        is_column = self.balora_config.space == "logits" and self._base.config.num_labels == 1
        if not (on and is_column):
            return
        self._said_constant_svd = True
        if not self.is_world_process_zero():
            return
        logger.warning(
            "a regression has one column of logits, of which %s: nothing is trained by it. Set "
            "`space: features`, or %s.",
            " and ".join(f"{name} is the constant {values[name]}" for name in on),
            " and ".join(f"`{name}_coef: 0`" for name in on),
        )

    def _say_single_row(self, num_rows: int) -> None:
        """Say once which terms are 0 in a batch of one example: those that compare examples."""
        config = self.balora_config
        is_batch_term = {
            "consistency": config.space == "logits" and self._base.config.num_labels == 1,
            "diversity": True,
            "svd": True,
        }
        zero = [n for n, is_one in is_batch_term.items() if is_one and getattr(config, f"{n}_coef")]
        is_single = num_rows == 1 and self.accelerator.num_processes == 1
        if self._said_single_row or not is_single or not zero:
            return
        self._said_single_row = True
        logger.warning(
            "a batch has one example, but %s need at least two and are skipped for it. Use a "
            "`per_device_train_batch_size` of 2 or more, or "
            "`dataloader_drop_last: true` where only the last batch of an epoch is so short.",
            " and ".join(zero),
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ROW_COLUMN not in self._signature_columns:
            self._signature_columns.append(ROW_COLUMN)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with every term of the objective in each row of the training loss."""
        if "loss" in logs:
            logs.update(self._step_log.pop(self.accelerator))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as ``Trainer`` does; a checkpoint also gets the reference it was trained with."""
        super().save_model(output_dir, _internal_call)
        is_checkpoint = _internal_call and output_dir is not None and self.args.should_save
        if is_checkpoint and self._reference is not None:
            self._reference_file = keep_reference(
                Path(str(output_dir)), self._reference, self._reference_file
            )


def _that_pads(tokenizer: PreTrainedTokenizerBase, config: Any) -> PreTrainedTokenizerBase:
    """Return a tokenizer that can put rows of different lengths into a batch; a copy if need be."""
    if tokenizer.pad_token is None:
        tokenizer = deepcopy(tokenizer)
        set_pad_token(tokenizer, config)
    return tokenizer


def _check_config(config: BALoraConfig) -> None:
    defaults = {field.name: field.default for field in fields(BALoraConfig)}
    problems = [
        f"`{name}` is {getattr(config, name)}, which acts in text generation only"
        for name in GENERATION_FIELDS
        if getattr(config, name) != defaults[name]
    ]
    if problems:
        raise ConfigError("; ".join(problems) + ". Leave it out for classification.")


def _own_arguments(
    model: Any, args: TrainingArguments | None, config: BALoraConfig
) -> TrainingArguments:
    if args is None:
        args = TrainingArguments(
            output_dir=default_output_dir(model), bf16=bool(is_torch_bf16_gpu_available())
        )
    return own_arguments(args, config)
