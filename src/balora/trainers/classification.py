"""``BALoraTrainer``: transformers' ``Trainer`` with anchored PiSSA and the terms of NLU."""

from __future__ import annotations

import logging
from copy import copy, deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import is_torch_bf16_gpu_available

from balora.anchored import anchor_adapter, check_adapter, initialise
from balora.config import BALoraConfig
from balora.errors import ConfigError, DataError, NonFiniteError, RowError
from balora.objective import Normalizer, coefficients_at, nlu_objective, task_loss
from balora.trainers.checks import check_arguments, check_needs, check_parallelism, check_start
from balora.trainers.classifier import ClassifierHead, LoadedClassifier, align_pad_token
from balora.trainers.log import StepLog
from balora.trainers.memory import ReportMemory
from balora.trainers.reference import (
    REFERENCE_COLUMN,
    ROW_COLUMN,
    Reference,
    add_columns,
    compute_reference,
    initial_head,
    link_reference,
    load_reference,
    reference_key,
    save_reference,
)
from balora.trainers.save import StagedSaveMixin

logger = logging.getLogger(__name__)

_NLG_ONLY = (
    "temperature",
    "entropy_top_k",
    "svd_variance_coef",
    "svd_denominator",
    "svd_max_tokens",
)


class BALoraTrainer(StagedSaveMixin, Trainer):  # type: ignore[misc]
    r"""Classification and regression with BA-LoRA, where ``transformers.Trainer`` stood.

    The adapter starts from the principal components of each weight, the base model stays
    untouched, the head is trained in full, and the loss is
    :func:`balora.objective.nlu_objective`. The consistency term compares with the model as it is
    before the first step, whose rows are computed once. Evaluation reports the task loss alone.

    ``save_model`` leaves a plain LoRA adapter of rank 2r with the head, which loads with
    ``PeftModel.from_pretrained`` on the untouched base.

    Args:
        model: From :func:`~balora.trainers.classifier.load_classifier`, so that every new
            parameter is trained and saved; or a model with a head, or a ``PeftModel`` of one.
        args: As for transformers. Without it: bf16 where the device has it.
        balora_config: The start and the objective; by default the paper's for classification.
        peft_config: A plain ``LoraConfig``. Without it every weight is trained, which allows no
            consistency term.
        train_dataset: Tokenized, with ``input_ids`` and ``labels``.
        **kwargs: Everything else that ``Trainer`` takes, by keyword.

    Raises:
        ConfigError: For a setting that cannot work, before training starts.
        RowError: For a label that does not fit the head.
    """

    loss_is_scaled_for_ga = True
    train_dataset: Any

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
        self.balora_config = balora_config or BALoraConfig.preset("paper", task="nlu")
        _check_config(self.balora_config)
        model = _adapted(model, peft_config)
        has_adapter = isinstance(model, PeftModel)
        args = _own_arguments(model, args)
        check_arguments(args, kwargs)
        check_needs(self.balora_config, has_adapter=has_adapter)
        self._step_log, self._said_single_row = StepLog(), False
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        # every label is an item, whether the model's own loss takes their number or not
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, False
        self._base = self.model.get_base_model() if has_adapter else self.model
        if self.processing_class is not None:
            align_pad_token(self._base, self.processing_class)
        self._head = ClassifierHead(self._base)
        self._check_model()
        for name, dataset in (("train", self.train_dataset), ("eval", self.eval_dataset)):
            check_labels(dataset, self._base.config.num_labels, name)
        if has_adapter and self.balora_config.adapter_init == "pissa":
            anchor_adapter(self.model, self.balora_config)
        if has_adapter:
            # first, so that its line comes before the progress bar
            self.callback_handler.callbacks.insert(0, ReportMemory())

    def _check_model(self) -> None:
        check_parallelism(self.accelerator.parallelism_config)
        needs_reference, dataset = self.balora_config.needs_reference, self.train_dataset
        if needs_reference and not isinstance(dataset, Dataset | None):
            raise ConfigError(
                f"the training data are a `{type(dataset).__name__}`, but the reference of the "
                "consistency term is computed for each row before training. Pass a "
                "`datasets.Dataset`, or set `consistency_coef: 0`."
            )
        if not isinstance(self.model, PeftModel):
            return
        check_adapter(self.model, anchored=self.balora_config.adapter_init == "pissa")
        check_start(self.model, self.balora_config)
        if not self._head.is_trained:
            raise ConfigError(
                f"the adapter leaves the head as it is: `{self._head.name}` is not trained. Set "
                "`task_type='SEQ_CLS'` in the `LoraConfig`, or name it in `modules_to_save`."
            )
        if needs_reference and not self._head.is_at_start:
            raise ConfigError(
                "the model's head is trained already, and the one it started from would be the "
                "reference of the consistency term. Merge the adapter into the model first, or "
                "set `consistency_coef: 0`."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as ``Trainer`` does; a resumed run reads its start and its reference."""
        self._step_log = StepLog()  # what an earlier call left unlogged is not of this run
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ConfigError(f"`{self.args.output_dir}` holds no checkpoint to resume from.")
        if not resume_from_checkpoint and isinstance(self.model, PeftModel):
            initialise(self.model)
        if isinstance(self.train_dataset, Dataset):
            rows = (
                self._reference(resume_from_checkpoint)
                if self.balora_config.needs_reference
                else None
            )
            self.train_dataset = add_columns(self.train_dataset, rows)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _reference(self, checkpoint: str | bool | None) -> Tensor:
        """Return the rows of step 0: from the checkpoint, or computed and kept for one."""
        space, dataset = self.balora_config.space, self.train_dataset
        key = reference_key(
            self._base, dataset, space=space, precision=self.accelerator.mixed_precision
        )
        if checkpoint:
            reference = load_reference(Path(str(checkpoint)), self._base, key)
        else:
            rows = compute_reference(
                self._base,
                dataset,
                rows_of=self._rows_of,
                collate=self.data_collator,
                batch_size=self.args.eval_batch_size,
                width=self._head.width(space),
            )
            reference = Reference(rows, initial_head(self._base), key)
        if self.args.should_save and self.args.save_strategy != "no":
            save_reference(Path(self.args.output_dir), reference)
        return reference.rows

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
        labels, reference, row = (
            inputs.pop(name, None) for name in ("labels", REFERENCE_COLUMN, ROW_COLUMN)
        )
        if not self.model.training or return_outputs:
            outputs = model(**inputs)
            loss = task_loss(outputs.logits, labels) / max(len(labels), 1)
            return (loss, outputs) if return_outputs else loss
        if self.balora_config.needs_reference and reference is None:
            raise ConfigError(
                f"the batches have no `{REFERENCE_COLUMN}`, which the consistency term compares "
                "with: the data collator leaves it out. Let it through, or use the default one."
            )
        self._say_single_row(len(labels))
        outputs, features = self._run(model, inputs)
        normalizer = self._normalizer(labels, num_items_in_batch)
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
        self._step_log.add(terms, coefficients, counts, num_micro_steps=normalizer.num_micro_steps)
        return loss

    def _coefficients(self) -> Any:
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return coefficients_at(self.balora_config, progress)

    def _normalizer(self, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Normalizer:
        if num_items_in_batch is None:  # a micro-step outside the training loop
            return Normalizer(len(labels))
        # without averaging, the count is this process's own
        is_global = self.args.average_tokens_across_devices
        return Normalizer(
            num_items_in_batch,
            self.accelerator.num_processes if is_global else 1,
            self.current_gradient_accumulation_steps,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the examples: transformers would leave out a regression target of -100."""
        examples = [{"labels": torch.zeros(len(batch["labels"]))} for batch in batch_samples]
        return super()._get_num_items_in_batch(examples, device)

    def _say_single_row(self, num_rows: int) -> None:
        """Say once that a batch of one example has no covariance and no spectrum."""
        config = self.balora_config
        is_single = num_rows == 1 and self.accelerator.num_processes == 1
        if self._said_single_row or not is_single or not (config.diversity_coef or config.svd_coef):
            return
        self._said_single_row = True
        logger.warning(
            "a batch of one example has neither a covariance nor a spectrum: the diversity and the "
            "SVD term are 0 in it. Use a `per_device_train_batch_size` of 2 or more."
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for name in (REFERENCE_COLUMN, ROW_COLUMN):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with every term of the objective in each row of the training loss."""
        if "loss" in logs:
            logs.update(self._step_log.pop(self.accelerator))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as ``Trainer`` does; a checkpoint also gets the reference it was trained with."""
        super().save_model(output_dir, _internal_call)
        is_checkpoint = _internal_call and output_dir is not None
        if is_checkpoint and self.args.should_save and self.balora_config.needs_reference:
            link_reference(Path(self.args.output_dir), Path(str(output_dir)))


def check_labels(dataset: Any, num_labels: int, name: str) -> None:
    """Refuse labels that the head cannot learn: no class of it, or not a finite number.

    Args:
        dataset: Tokenized; one that cannot be looked through (``None``, streamed) passes.
        num_labels: Outputs of the head, 1 for regression.
        name: What the data are called in the message.

    Raises:
        DataError: If there is no row or no column ``labels``.
        RowError: For the first such label.
    """
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_labels(part, num_labels, key)
    if not isinstance(dataset, Dataset):
        return
    if not len(dataset):
        raise DataError(f"the {name} data set is empty: it has no row.")
    if "labels" not in dataset.column_names:
        raise DataError(
            f"the {name} data set has no column `labels`, it has "
            f"{', '.join(dataset.column_names)}. Name it so, or tokenize the data first."
        )
    labels = np.asarray(dataset.with_format("numpy")["labels"][:])
    if labels.ndim != 1 or labels.dtype.kind not in "iuf":
        raise DataError(f"`labels` of the {name} data set must hold one number for each row.")
    if num_labels == 1:
        problem = "is not a finite number, and the model has one output, for regression"
        bad = ~np.isfinite(labels)
    elif labels.dtype.kind == "f":
        problem = f"is not a class index, and the model has {num_labels} classes"
        bad = np.ones(len(labels), dtype=bool)
    else:
        problem = f"is none of the model's {num_labels} classes, 0 to {num_labels - 1}"
        bad = (labels < 0) | (labels >= num_labels)
    if bad.any():
        row = int(bad.argmax())
        fix = "Correct the labels, or load the model for the classes of the data."
        raise RowError(row, f"the label {labels[row]} {problem}. {fix}", dataset=name)


def _check_config(config: BALoraConfig) -> None:
    defaults = {field.name: field.default for field in fields(BALoraConfig)}
    problems = [
        f"`{name}` is {getattr(config, name)}, which acts in text generation only"
        for name in _NLG_ONLY
        if getattr(config, name) != defaults[name]
    ]
    if problems:
        raise ConfigError("; ".join(problems) + ". Leave it out for classification.")


def _adapted(model: Any, peft_config: PeftConfig | None) -> Any:
    """Return the model with the adapter, its new modules among those that are trained in full."""
    new_modules: tuple[str, ...] = ()
    if isinstance(model, LoadedClassifier):
        model, new_modules = model
    if peft_config is None:
        return model
    peft_config = deepcopy(peft_config)  # PEFT writes into it
    named = list(peft_config.modules_to_save or ())
    added = [name for name in new_modules if name not in named]
    peft_config.modules_to_save = [*named, *added] or None
    return get_peft_model(model, peft_config)


def _own_arguments(model: Any, args: TrainingArguments | None) -> TrainingArguments:
    """Return arguments that may be changed without the caller's changing too."""
    if args is None:
        name = model.config.name_or_path or "model"
        args = TrainingArguments(
            output_dir=f"{name.rstrip('/').split('/')[-1]}-BALoRA",
            bf16=bool(is_torch_bf16_gpu_available()),
        )
    own = copy(args)
    if own.ddp_broadcast_buffers is None:
        own.ddp_broadcast_buffers = False  # the anchors never change
    return own
