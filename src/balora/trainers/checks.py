"""Settings that trl or transformers would accept and that would train something else than asked."""

from __future__ import annotations

from typing import Any

from accelerate import ParallelismConfig
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import TrainingArguments

from balora.anchored import lora_layers, only_adapter
from balora.config import BALoraConfig
from balora.errors import ConfigError


def check_arguments(args: TrainingArguments, kwargs: dict[str, Any]) -> None:
    """Refuse by name the settings that replace or bypass the objective.

    Raises:
        ConfigError: Listing every one of them.
    """
    refused = [
        (
            getattr(args, "loss_type", None) == "dft",
            "`loss_type: dft` replaces the task loss; set `nll`",
        ),
        (args.label_smoothing_factor > 0, "`label_smoothing_factor` changes the task loss; set 0"),
        (args.use_liger_kernel, "`use_liger_kernel` replaces the model's loss; set false"),
        (
            kwargs.get("compute_loss_func") is not None,
            "`compute_loss_func` replaces the objective; leave it out",
        ),
    ]
    problems = [sentence for is_set, sentence in refused if is_set]
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def check_head_is_frozen(model: PeftModel) -> None:
    """Refuse an output layer that is trained, adapted, or tied to an embedding that is.

    Raises:
        ConfigError: Naming the setting to change.
    """
    base = model.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
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
    if config.needs_reference and not has_adapter:
        raise ConfigError(
            f"`consistency_coef` is {config.consistency_coef}, but full fine-tuning has no "
            "adapter to switch off, so the reference would need a second model. Set it to 0, or "
            "pass a `peft_config`."
        )


_BASE_UNTOUCHED = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base weights as they are."""


def check_start(model: PeftModel, config: BALoraConfig) -> None:
    """Refuse an adapter whose start would lose something: its training, or the reference.

    Raises:
        ConfigError: If the PiSSA start would overwrite a trained adapter, or if PEFT's own start
            has changed the base weights that the consistency term compares with.
    """
    adapter = only_adapter(model)
    if config.adapter_init == "pissa":
        factors = [m.lora_B[adapter] for _, m in lora_layers(model) if adapter in m.lora_B]
        if any(bool(factor.weight.any()) for factor in factors):
            raise ConfigError(
                "the model's adapter is trained already, and the PiSSA start would overwrite it. "
                "Merge it into the base model first, or set `adapter_init: lora`."
            )
    init = model.peft_config[adapter].init_lora_weights
    if config.needs_reference and init not in _BASE_UNTOUCHED:
        raise ConfigError(
            f"`init_lora_weights` is {init!r}, which changes the base weights, so switching the "
            "adapter off no longer gives the pre-trained model. Leave it at True (`adapter_init: "
            "pissa` starts from the same directions), or set `consistency_coef: 0`."
        )


def check_parallelism(config: ParallelismConfig | None) -> None:
    """Refuse to split a sequence or a matrix over processes: rows would be counted wrongly.

    Raises:
        ConfigError: Naming the setting.
    """
    for name in ("tp_size", "cp_size", "sp_size"):
        size = getattr(config, name, 1)
        if size > 1:
            raise ConfigError(
                f"`{name}` is {size}, but the objective needs whole sequences on each process. "
                "Set it to 1."
            )
