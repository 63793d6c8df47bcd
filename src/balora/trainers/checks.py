"""Settings that trl or transformers would accept and that would train something else than asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from peft import LoraConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import TrainingArguments

from balora.anchored import BASE_UNTOUCHED, lora_layers, only_adapter
from balora.anchored.layer import anchored_adapters, is_anchored
from balora.config import BALoraConfig
from balora.config.rules import Allowed
from balora.errors import ConfigError, DataError, RowError
from balora.models.limits import Limits
from balora.models.quantization import keep_unpacked, quantised_by
from balora.recipes.limits import limits
from balora.recipes.methods import reference_problem
from balora.trainers.arguments import HoldsSettings

logger = logging.getLogger(__name__)


def check_arguments(args: TrainingArguments, kwargs: dict[str, Any]) -> None:
    """Refuse by name the settings that replace or bypass the objective.

    Raises:
        ConfigError: Listing every one of them.
    """
    problems = [
        f"`{name}` {problem}"
        for name, rules in limits().items()
        for rule in rules
        if isinstance(rule, Allowed) and hasattr(args, name)
        if (problem := rule.problem(getattr(args, name))) is not None
    ]
    if kwargs.get("compute_loss_func") is not None:
        problems.append("`compute_loss_func` replaces the objective; leave it out")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def check_configs(balora_config: Any, peft_config: Any, args: Any, holder: type) -> None:
    """Refuse settings of another class, and adapters of another method than LoRA.

    Args:
        balora_config: As the trainer was given it.
        peft_config: Likewise.
        args: Likewise.
        holder: The class of arguments that holds the settings of this trainer.

    Raises:
        ConfigError: Naming the argument.
    """
    if isinstance(args, HoldsSettings) and not isinstance(args, holder):
        raise ConfigError(
            f"`args` is a {type(args).__name__}, which is for the other trainer. Pass a "
            f"`{holder.__name__}`."
        )
    if not isinstance(balora_config, BALoraConfig | None):
        raise ConfigError(
            f"`balora_config` is a {type(balora_config).__name__}, not a `BALoraConfig`. Pass "
            "`BALoraConfig(...)`, or leave it out for the paper's."
        )
    is_lora = isinstance(peft_config, LoraConfig) and peft_config.peft_type == PeftType.LORA
    if peft_config is not None and not is_lora:
        raise ConfigError(
            f"`peft_config` is a {type(peft_config).__name__}, but balora trains a LoRA. Pass a "
            "`LoraConfig`, or leave it out to train every weight."
        )


def check_head_is_frozen(model: PeftModel) -> None:
    """Refuse an output layer that is trained, adapted, or tied to an embedding that is.

    Raises:
        ConfigError: Naming the setting to change.
    """
    base = model.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    tokens = getattr(model.peft_config[only_adapter(model)], "trainable_token_indices", None)
    if tokens and _is_trained(head):
        raise ConfigError(
            f"`trainable_token_indices` is {tokens}, which trains rows of the output layer too "
            "(an embedding that is tied to it has the same), but the regularizers compare its "
            "logits with the pre-trained ones. Leave it out."
        )
    if _is_trained(head):
        raise ConfigError(
            "the output layer is trained or adapted, but the regularizers compare its logits with "
            "the pre-trained ones. Take it out of `lora_target_modules` and `modules_to_save`."
        )
    if base.config.get_text_config().tie_word_embeddings and _is_trained(embedding):
        raise ConfigError(
            "the input embedding is trained and the output layer is tied to it, so the head would "
            "move as well. Take it out of `lora_target_modules`, `modules_to_save` and "
            "`trainable_token_indices`."
        )


def _is_trained(layer: Any) -> bool:
    wrapped = isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
    return wrapped or any(p.requires_grad for p in layer.parameters())


def check_needs(config: BALoraConfig, *, has_adapter: bool) -> None:
    """Refuse the consistency term where there is no adapter to switch off.

    Raises:
        ConfigError: If the reference would need a second copy of the model.
    """
    problem = reference_problem(config.consistency_coef, has_adapter=has_adapter)
    if problem is not None:
        raise ConfigError(
            f"`consistency_coef` is {config.consistency_coef}, but {problem}. Set it to 0, or pass "
            "a `peft_config`."
        )


def check_is_trainable(model: nn.Module, *, has_adapter: bool) -> None:
    """Refuse weights that cannot be trained, or beside which nothing can.

    Quantised ones are not trained themselves, nor is an adapter beside such in a form without
    gradients; of weights that lie on the CPU or the disk the start and the objective read nothing.

    Raises:
        ConfigError: Naming how they are quantised, or the module that is elsewhere.
    """
    _check_is_not_offloaded(model)
    keep_unpacked(model)
    scheme = quantised_by(model)
    if scheme is not None and not has_adapter:
        raise ConfigError(
            f"the weights of the model are quantised (`{scheme}`), and cannot be trained. Pass a "
            "`peft_config`, or load the model without it."
        )


def _check_is_not_offloaded(model: nn.Module) -> None:
    devices: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    places = {str(device) for device in devices.values()}
    # on a machine without an accelerator the CPU is where the model belongs
    elsewhere = {"disk"} if places <= {"cpu", "disk"} else {"cpu", "disk"}
    away = [name for name, device in devices.items() if str(device) in elsewhere]
    if away:
        raise ConfigError(
            f"`device_map` leaves parts of the model on the {devices[away[0]]} "
            f"(`{away[0]}` first), where no start of an adapter is computed. Quantise the base "
            "(`load_in_4bit: true`), load it in `dtype: bfloat16`, or take a larger device."
        )


def check_start(model: PeftModel, config: BALoraConfig) -> None:
    """Refuse an adapter whose start would lose something: its training, or the reference.

    Raises:
        ConfigError: If an anchored start would overwrite a trained adapter, or another one than
            that which the model has, or if PEFT's own start has changed the base weights that the
            consistency term compares with.
    """
    adapter = only_adapter(model)
    layers = [layer for _, layer in lora_layers(model)]
    init = model.peft_config[adapter].init_lora_weights
    anchored = {
        layer.lora_variant[adapter].config.adapter_init
        for layer in layers
        if is_anchored(layer, adapter)
    }
    if anchored - {config.adapter_init}:
        raise ConfigError(
            f"`adapter_init` is {config.adapter_init}, but the adapter of the model starts from "
            f"{', '.join(anchored)} already. Set it so, or pass the base model."
        )
    if config.is_anchored and not anchored:
        factors = [layer.lora_B[adapter] for layer in layers if adapter in layer.lora_B]
        if any(bool(factor.weight.any()) for factor in factors):
            raise ConfigError(
                "the model's adapter is trained already, and its start would overwrite it. "
                "Merge it into the base model first, or set `adapter_init: lora`."
            )
    if config.needs_reference and init not in BASE_UNTOUCHED:
        raise ConfigError(
            f"`init_lora_weights` is {init!r}, which changes the base weights, so switching the "
            "adapter off no longer gives the pre-trained model. Leave it at True (`adapter_init: "
            "pissa` starts from the same directions), or set `consistency_coef: 0`."
        )


def check_started(model: nn.Module) -> None:
    """Refuse to go on where an adapter has not got its anchor back: it would start anew.

    Raises:
        ConfigError: Naming the first such layer.
    """
    for name, layer in model.named_modules():
        started = [layer.lora_variant[a].is_initialised for a in anchored_adapters(layer)]
        if not all(started):
            raise ConfigError(
                f"the checkpoint's anchor has not reached `{name}`, and going on would start its "
                "adapter anew. Load it with `load_adapter`, as `train(resume_from_checkpoint=...)` "
                "does."
            )


def check_shares(dataset: Any, num_processes: int) -> None:
    """Refuse more processes than rows: rows would be repeated to give each of them one.

    Args:
        dataset: To train on, as it is batched; one without a length passes.
        num_processes: Of the run.

    Raises:
        DataError: With both numbers.
    """
    if isinstance(dataset, Dataset) and 0 < len(dataset) < num_processes:
        raise DataError(
            f"the train data set has {len(dataset)} rows for {num_processes} processes, so that "
            f"some would have none. Start at most {len(dataset)}, or turn `packing` off where it "
            "has made few rows of many."
        )


def check_single_device(args: TrainingArguments) -> None:
    """Refuse ``DataParallel``, which transformers falls back to: it splits the rows of a batch.

    Raises:
        ConfigError: If one process would drive several devices.
    """
    if args.n_gpu > 1:
        raise ConfigError(
            f"this process sees {args.n_gpu} GPUs and would split each batch over them, but the "
            "terms need its rows together. Start one process for each with `accelerate launch`, "
            "or show it one with `CUDA_VISIBLE_DEVICES=0`."
        )


def warn_of_half_precision(model: nn.Module) -> None:
    """Say when weights are trained in 16 bits, without a copy in 32: small steps are rounded away.

    PEFT keeps the low-rank factors in float32, but a head in the dtype of the model.
    """
    half = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4}
    if half:
        named = ", ".join(str(dtype).removeprefix("torch.") for dtype in half)
        logger.warning(
            "some weights are trained in %s, where small steps are rounded away: load the model "
            "in float32, and set `bf16: true` for speed",
            named,
        )


def restore_adapter_dtype(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Undo the cast to bfloat16 that trl makes of everything trained on a 4 or 8 bit base.

    The principal components are large, and a step is small: in 16 bits it would be rounded away.

    Args:
        model: After trl's trainer has been built.
        before: The trained weights by name as they were before, empty where the adapter has been
            made by trl; PEFT makes it in float32.
    """
    flags = ("is_loaded_in_4bit", "is_loaded_in_8bit")  # what trl goes by
    if quantised_by(model) is None and not any(getattr(model, flag, False) for flag in flags):
        return
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in before:
            parameter.data = before[name].to(parameter.device)
        elif "lora_" in name:
            parameter.data = parameter.data.float()


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Return the weights of a model with an adapter that are trained, by name; else nothing."""
    if not isinstance(model, PeftModel):
        return {}
    return {name: p.data for name, p in model.named_parameters() if p.requires_grad}


def check_labels(dataset: Any, num_labels: int, name: str) -> None:
    """Refuse labels that a classification head cannot learn: no class of it, no finite number.

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
    column = dataset.select_columns(["labels"]).with_format("numpy")
    labels = np.asarray(column["labels"][:])
    if labels.ndim != 1 or labels.dtype.kind not in "iuf":
        raise DataError(f"`labels` of the {name} data set must hold one number for each row.")
    bad, problem = _bad_labels(labels, num_labels)
    if bad.any():
        row = int(bad.argmax())
        fix = "Correct the labels, or load the model for the classes of the data."
        raise RowError(row, f"the label {labels[row]} {problem}. {fix}", dataset=name)


def _bad_labels(labels: Any, num_labels: int) -> tuple[Any, str]:
    """Return which labels the head cannot learn, and what is wrong with them."""
    if num_labels == 1:
        problem = "is not a finite number, and the model has one output, for regression"
        return ~np.isfinite(labels), problem
    if labels.dtype.kind == "f":
        problem = f"is not a class index, and the model has {num_labels} classes"
        return np.ones(len(labels), dtype=bool), problem
    problem = f"is none of the model's {num_labels} classes, 0 to {num_labels - 1}"
    return (labels < 0) | (labels >= num_labels), problem


def check_rows_fit(dataset: Any, limits: Limits, name: str, *, kept: slice = slice(None)) -> None:
    """Refuse rows that are longer than the model has positions, or hold a token it does not know.

    Args:
        dataset: Tokenized; one that cannot be looked through (``None``, streamed) passes.
        limits: Of the model.
        name: What the data are called in the message.
        kept: The part of a row that the model is given.

    Raises:
        RowError: For the first such row.
    """
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_rows_fit(part, limits, key, kept=kept)
    if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
        found = limits.first_problem(dataset, kept=kept)
        if found is not None:
            raise RowError(found[0], found[1], dataset=name)


def check_padding(limits: Limits, args: TrainingArguments) -> None:
    """Refuse a padding token that the model does not know, where rows of a batch are padded.

    Raises:
        ConfigError: Naming the token.
    """
    sizes = args.per_device_train_batch_size, args.per_device_eval_batch_size
    problem = limits.unknown_padding() if max(sizes) > 1 else None
    if problem is not None:
        raise ConfigError(problem)
