"""``BALoraSFTTrainer``: trl's ``SFTTrainer`` with anchored PiSSA and the BA-LoRA objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer, is_conversational

from balora.anchored import check_adapter, initialise, naming_targets, started_by_peft
from balora.config import BALoraConfig
from balora.config.replay import ReplayConfig
from balora.data.stored import in_file
from balora.distributed import one_first
from balora.errors import ConfigError, NonFiniteError
from balora.models.adapter import inner_model
from balora.models.head import head_of
from balora.models.limits import Limits
from balora.models.load import load_model, load_tokenizer
from balora.models.quantization import quantised_by
from balora.models.source import ModelSource, placed_source
from balora.objective import Coefficients, Normalizer
from balora.trainers.arguments import BALoraSFTConfig, settings
from balora.trainers.checks import (
    check_arguments,
    check_configs,
    check_head_is_frozen,
    check_is_trainable,
    check_needs,
    check_padding,
    check_shares,
    check_start,
    restore_adapter_dtype,
    trained_weights,
    warn_of_half_precision,
)
from balora.trainers.evaluation import LENGTHS, CollateLengths, TokenSums, masked
from balora.trainers.mixin import ObjectiveMixin, default_output_dir, own_arguments
from balora.trainers.reading_once import loading, prepare_to_split, reader
from balora.trainers.replay import Replay
from balora.trainers.replay_run import MicroSteps, check_replay, keep_texts, prepare_replay
from balora.trainers.resume import ResumeMixin
from balora.trainers.rows import (
    check_limits,
    check_raw_rows,
    check_tokenized_rows,
    closed_once,
    closes_texts,
    drop_overlong_rows,
    kept_part,
    scores_responses_only,
    unshortened,
)
from balora.trainers.save import StagedSaveMixin
from balora.trainers.sharding import check_layout, check_trainer, shape_of, whole
from balora.trainers.sharding_settings import REPLAYED, refuse_reading_once
from balora.trainers.step import ObjectiveStep, add_objective

# transformers renamed it and warns of the old name
_CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in SFTConfig.__dataclass_fields__
)


class BALoraSFTTrainer(ObjectiveMixin, ResumeMixin, StagedSaveMixin, SFTTrainer):  # type: ignore[misc]
    r"""Supervised fine-tuning with BA-LoRA, where ``trl.SFTTrainer`` stood.

    The adapter starts from the principal components of each weight, the base model stays
    untouched, and the loss is the objective of :mod:`balora.objective`. Responses only are
    scored: for data with ``messages``, the assistant's turns. Evaluation reports the task loss
    alone, a mean over the tokens of all rows whatever the number of processes.

    ``save_model`` leaves a plain LoRA adapter of rank 2r that loads with
    ``PeftModel.from_pretrained`` on the untouched base.

    Args:
        model: A model id, a folder, a causal language model, or a ``PeftModel`` with one LoRA.
        args: As for trl, or a :class:`~balora.trainers.arguments.BALoraSFTConfig`, which holds
            the settings of the next two. Without it: bf16 where the device has it, no gradient
            checkpointing.
        balora_config: The start and the objective; by default the paper's.
        replay_config: Texts that the model should go on modelling; by default none.
        peft_config: A plain ``LoraConfig``. Without it every weight is trained, which allows no
            consistency term.
        overlong_rows: ``"error"`` refuses a row whose response is cut off entirely by
            ``max_length``, ``"drop"`` leaves it out and says how many there were.
        **kwargs: Everything else that ``SFTTrainer`` takes, by keyword.

    Raises:
        ConfigError: For a setting that cannot work, before training starts.
        RowError: For a row that cannot be trained on.
    """

    _tag_names = ("trl", "sft", "balora")
    loss_is_scaled_for_ga = True
    prompt_template = "none"
    """What the rows were laid out with, for the lines that use the result; a recipe sets it."""
    data_collator: Any

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SFTConfig | None = None,
        *,
        balora_config: BALoraConfig | None = None,
        replay_config: ReplayConfig | None = None,
        peft_config: PeftConfig | None = None,
        overlong_rows: str = "error",
        **kwargs: Any,
    ) -> None:
        check_configs(balora_config, peft_config, args, BALoraSFTConfig)
        self.balora_config = settings(args, balora_config, BALoraConfig(), called="balora_config")
        self.replay_config = settings(args, replay_config, ReplayConfig(), called="replay_config")
        self.replay: Replay | None = None
        self.overlong_rows = overlong_rows
        self._micro_steps = MicroSteps()
        self._token_sums = TokenSums()
        args = _own_arguments(model, args, self.balora_config, self.replay_config)
        check_arguments(args, kwargs)
        if isinstance(model, str):
            model = _loaded(model, args, kwargs)
        has_adapter = peft_config is not None or isinstance(model, PeftModel)
        check_needs(self.balora_config, has_adapter=has_adapter)
        check_is_trainable(model, has_adapter=has_adapter)
        check_layout(args, self.balora_config if has_adapter else None, quantised_by(model))
        if scores_responses_only(kwargs.get("train_dataset")):
            args.assistant_only_loss = True
        self._limits = Limits.of(
            model, kwargs.get("processing_class"), multiple_of=args.pad_to_multiple_of
        )
        if peft_config is not None:
            peft_config = started_by_peft(peft_config, self.balora_config)
        before = trained_weights(model)
        with naming_targets(peft_config):
            super().__init__(model, args, peft_config=peft_config, **kwargs)
        restore_adapter_dtype(self.model, before)
        if not self.padding_free:
            check_padding(replace(self._limits, tokenizer=self._tokenizer), args)
        self._make_resumable()
        self._check_model()
        # the normaliser is always the number of shifted labels; transformers leaves it out for a
        # model without loss arguments and counts GPT-2's labels unshifted
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True
        base = self.model.get_base_model() if has_adapter else self.model
        if has_adapter:
            self._anchor()
        head = head_of(base)
        num_tokens, width = shape_of(head.weight)
        self._svd_limits = {
            "tokens in the vocabulary": num_tokens,
            "entries in a hidden state": width + (head.bias is not None),
        }
        self._fused = add_objective(base, self.balora_config)
        self.add_callback(self._micro_steps)
        self.checkpoint_files.append(partial(keep_texts, self))
        self._replay_swap = check_replay(self)

    def _check_model(self) -> None:
        if self.aux_loss_enabled:
            raise ConfigError(
                "the mixture-of-experts auxiliary loss is not part of the objective. Set "
                "`router_aux_loss_coef: 0`."
            )
        if self._is_vision_dataset:
            raise ConfigError("the data set has images; balora trains on text only.")
        warn_of_half_precision(self.model)
        self._sharding = check_trainer(self)
        if self.replay_config.is_on:
            refuse_reading_once(self._sharding, REPLAYED)
        prepare_to_split(self)
        self._settle_search()
        check_shares(self.train_dataset, self.args.world_size)
        if isinstance(self.model, PeftModel):
            check_adapter(self.model, self.balora_config)
            check_start(self.model, self.balora_config)
            check_head_is_frozen(self.model)

    def prepare(self, checkpoint: str | Path | None = None) -> None:
        """Compute the start of the adapter; a resumed run reads its own when that is loaded."""
        if self.replay_config.is_on and self.replay is None:
            with whole(self.model):
                self.replay = prepare_replay(
                    self, None if checkpoint is None else Path(checkpoint), swap=self._replay_swap
                )
        head, read = head_of(inner_model(self.model)), reader(self._sharding, self.args.device)
        if not head.is_trained:  # before the start, which then works in the memory that this leaves
            bias = None if head.bias is None else read(head.bias)
            self._fused.prepare(replace(head, weight=read(head.weight), bias=bias))
        if not checkpoint and isinstance(self.model, PeftModel):
            initialise(self.model, device=self.args.device, full=read)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as :meth:`ResumeMixin.train` does."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._fused.release()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the objective of one micro-step; in evaluation, the mean loss of the tokens."""
        if not self.model.training:
            return self._evaluated(model, dict(inputs), return_outputs)
        if return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        step = self._objective_step(inputs, num_items_in_batch)
        try:
            loss, terms, counts, replay = model(**inputs, objective_step=step)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.state.global_step + 1}: {error}") from None
        if counts.num_svd_rows:
            self._say_constant_svd(counts.num_svd_rows, "scored tokens", self._svd_limits)
        self._step_log.add(
            terms,
            step.coefficients,
            counts,
            num_input_tokens=_num_input_tokens(inputs),
            num_micro_steps=step.normalizer.num_micro_steps,
            replay=replay,
            replay_coefficient=step.replay_coefficient,
        )
        return loss

    def _evaluated(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Return the mean loss of a batch; its sums go into those of the evaluation."""
        lengths = inputs.pop(LENGTHS, None)
        labels = masked(inputs.pop("labels"), lengths, self.accelerator)
        step = ObjectiveStep(Coefficients(0.0, 0.0, 0.0), Normalizer(1))
        result = model(**inputs, labels=labels, objective_step=step)
        loss, counts = result.loss, result.counts
        self._token_sums.add(loss, counts)
        mean = loss / counts.num_tokens.clamp(min=1)
        return (mean, model(**inputs, use_cache=False)) if return_outputs else mean

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate as transformers does; every metric is a mean over the tokens of all rows."""
        self._token_sums = TokenSums()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._token_sums.means()
        if f"{metric_key_prefix}_loss" in output.metrics:
            output.metrics[f"{metric_key_prefix}_loss"] = means.pop("loss")
            if metric_key_prefix.startswith("eval"):  # of which trl logs these
                means["num_tokens"] = self._total_train_tokens
                self._metrics["eval"].update({name: [value] for name, value in means.items()})
        return output

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the batches of a data set, with the lengths of rows that lie in one."""
        collator = self.data_collator
        if self.padding_free:
            self.data_collator = CollateLengths(collator)
        try:
            loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator
        return loader

    def _objective_step(
        self, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> ObjectiveStep:
        if num_items_in_batch is None:  # a micro-step outside the training loop
            normalizer = Normalizer((inputs["labels"][:, 1:] != -100).sum())
        else:
            normalizer = self._normalizer(num_items_in_batch)
        coefficients = self._coefficients()
        if self.replay is None:
            return ObjectiveStep(coefficients, normalizer)
        step, micro_step = self.state.global_step, self._micro_steps.next()
        return ObjectiveStep(
            coefficients,
            normalizer,
            self.replay.coefficient(step),
            self.replay.part(step, micro_step, normalizer.num_micro_steps, self.args.device),
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as trl does, with every term of the objective in each row of the training loss."""
        if "loss" in logs:
            self._count_input_tokens()
            logs.update(self._step_log.pop(self.accelerator), num_tokens=self._total_train_tokens)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the task loss alone."""
        self._count_input_tokens()  # trl's `eval_num_tokens` reads the total
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _settle_progress(self) -> None:
        self._count_input_tokens()

    def _progress(self) -> dict[str, Any]:
        return {**super()._progress(), "num_tokens": self._total_train_tokens}

    def _restore_progress(self, progress: Mapping[str, Any]) -> None:
        self._total_train_tokens = progress["num_tokens"]

    def _count_input_tokens(self) -> None:
        self._total_train_tokens += self._step_log.pop_num_input_tokens(self.accelerator)

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """Let trl tokenize and label, check every row, then let trl truncate and pack."""
        if isinstance(dataset, Dataset):
            with one_first():
                dataset = in_file(dataset)
        checked = check_raw_rows(dataset, dataset_name)
        whole = super()._prepare_dataset(
            checked, processing_class, unshortened(args), False, formatting_func, dataset_name
        )
        kept = kept_part(args, packing=packing)
        with one_first():  # as trl does for all that it stores
            if self._is_closed_twice(checked):
                whole = closed_once(whole, self._tokenizer.eos_token_id, args.dataset_num_proc)
            if self.overlong_rows == "drop":
                whole = drop_overlong_rows(whole, kept, dataset_name, args.dataset_num_proc)
        if self.overlong_rows != "drop":
            whole = check_tokenized_rows(whole, kept, dataset_name)
        whole = check_limits(whole, self._limits, args, dataset_name, packing=packing)
        # the rows are tokenized by now: trl would warn that it ignores the formatting function
        return super()._prepare_dataset(whole, processing_class, args, packing, None, dataset_name)

    def _is_closed_twice(self, dataset: Any) -> bool:
        """Return whether trl's end of a text comes before the tokenizer's own."""
        row = next(iter(dataset))
        is_text = "input_ids" not in row and not is_conversational(row)
        return is_text and closes_texts(self._tokenizer)


def default_arguments(model: Any) -> SFTConfig:
    """Return the arguments of a run that was given none: bf16 only where the device has it."""
    return SFTConfig(
        output_dir=default_output_dir(model),
        bf16=bool(is_torch_bf16_gpu_available()),
        use_cpu=not torch.accelerator.is_available(),
        **{_CHECKPOINTING: False},
    )


def _own_arguments(
    model: Any, args: TrainingArguments | None, *parts: BALoraConfig | ReplayConfig
) -> SFTConfig:
    if args is None:
        args = default_arguments(model)
    elif not isinstance(args, SFTConfig):  # as trl does
        args = SFTConfig(**(args.to_dict() | {"hub_token": args.hub_token}))
    return cast(SFTConfig, own_arguments(args, *parts))


def _loaded(name: str, args: SFTConfig, kwargs: dict[str, Any]) -> PreTrainedModel:
    """Return the model of a name, as every command loads it; its tokenizer goes into ``kwargs``."""
    given = {"dtype": "float32", "trust_remote_code": args.trust_remote_code}
    given |= dict(args.model_init_kwargs or {})
    if (quantization := kwargs.pop("quantization_config", None)) is not None:
        given["quantization_config"] = quantization
    source = ModelSource.of_arguments(name, given)
    if kwargs.get("processing_class") is None:
        kwargs["processing_class"] = load_tokenizer(source)
    args.model_init_kwargs = None  # trl says that it ignores them for a model that is loaded
    with loading(args):
        return load_model(placed_source(source))


def _num_input_tokens(inputs: dict[str, Any]) -> Tensor:
    if "attention_mask" in inputs:
        return torch.as_tensor(inputs["attention_mask"].sum())
    return torch.tensor(inputs["input_ids"].numel(), device=inputs["input_ids"].device)
