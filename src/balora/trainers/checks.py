"""Settings and rows that trl would accept and that would train something else than asked."""

from __future__ import annotations

from copy import copy
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from trl import SFTConfig

from balora.config import BALoraConfig
from balora.errors import ConfigError, RowError


def check_arguments(args: SFTConfig, kwargs: dict[str, Any]) -> None:
    """Refuse by name the settings that replace or bypass the objective.

    Raises:
        ConfigError: Listing every one of them.
    """
    refused = [
        (args.loss_type == "dft", "`loss_type: dft` replaces the task loss; set `nll`"),
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


def check_raw_rows(dataset: Dataset | IterableDataset) -> None:
    """Refuse a row whose completion is empty: trl would train it as a lone end-of-text token.

    Raises:
        RowError: For the first such row.
    """
    _each_row(dataset, _check_completion)


def _check_completion(row: dict[str, Any], index: int) -> None:
    completion = row.get("completion")
    if isinstance(completion, str) and not completion.strip():
        raise RowError(index, "the `completion` is empty. Remove the row or fill it in.")


def is_scored(row: dict[str, Any], max_length: int | None) -> bool:
    """Return whether any label is left to predict within ``max_length`` tokens."""
    return any(label != -100 for label in row["labels"][1:max_length])


def check_tokenized_rows(dataset: Dataset | IterableDataset, max_length: int | None) -> None:
    """Refuse a row whose response is cut off entirely: trl would drop it silently.

    Raises:
        RowError: For the first such row.
    """

    def check(row: dict[str, Any], index: int) -> None:
        if is_scored(row, max_length):
            return
        if not is_scored(row, None):
            raise RowError(index, "no token of it is to be predicted. Remove the row.")
        raise RowError(
            index,
            f"`max_length` {max_length} cuts the whole response off (the prompt alone has "
            f"{_prompt_length(row)} tokens). Raise `max_length`, shorten the row, or set "
            "`overlong_rows: drop`.",
        )

    _each_row(dataset, check)


def _prompt_length(row: dict[str, Any]) -> int:
    return next(i for i, label in enumerate(row["labels"]) if label != -100)


def _each_row(dataset: Dataset | IterableDataset, check: Any) -> None:
    if isinstance(dataset, Dataset):
        for index, row in enumerate(dataset):
            check(row, index)


def unshortened(args: SFTConfig) -> SFTConfig:
    """Return ``args`` with which trl tokenizes and labels, and keeps every row in its place."""
    plain = copy(args)
    plain.max_length, plain.shuffle_dataset = None, False
    return plain
