"""From a trained run to what others load: a plain LoRA, a smaller one, or a merged model.

A run folder holds the plain LoRA of rank 2r already; an export of it has one rank and one scale
(:mod:`balora.anchored.plain`). Merging is done in float32 and cast last. Language models and
classifiers, whose head and class names go into the merged model, are exported alike.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file

from balora.anchored.beside import BASE_UNTOUCHED
from balora.anchored.layer import take_weights
from balora.anchored.plain import uniform, uniform_config, updates_of, with_factors
from balora.anchored.save import ADAPTER_FILE
from balora.anchored.truncate import Truncation, truncate
from balora.config.quantization import Quantization
from balora.errors import ConfigError
from balora.folders import Read, new_folder
from balora.models.adapter import CONFIG_FILE, read_adapter
from balora.models.fits import check_adapter_fits
from balora.models.load import load_config
from balora.models.quantization import quantised_checkpoint
from balora.models.run_folder import classes_of, load_run
from balora.models.source import ModelSource, base_of_runs
from balora.state import read_tensors
from balora.usage import absolute_name

_TOKENIZER_FILES = re.compile(r"tokenizer.*|special_tokens_map\.json|chat_template\.jinja|vocab.*")

_OTHER_KINDS = (
    "use_dora",
    "lora_bias",
    "target_parameters",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "alora_invocation_tokens",
    "velora_config",
    "monteclora_config",
    "kasa_config",
    "megatron_config",
)
"""Settings of ``LoraConfig`` with which the update of a layer is not, or not only, s B A."""

_MERGED_BY_PEFT = ("use_dora", "lora_bias", "target_parameters")
"""Those that PEFT merges all the same."""


def export_adapter(
    source: Path,
    base: str,
    destination: Path,
    *,
    revision: str | None = None,
    rank: int | None = None,
    overwrite: bool = False,
) -> Truncation | None:
    """Write the adapter of a run as a plain LoRA, truncated to ``rank`` where one is given.

    Args:
        source: A folder that ``save_model`` or a checkpoint left.
        base: The model it was trained on, id or folder; the adapter must fit it.
        destination: The new folder; it appears whole, by rename.
        revision: Of the base; None takes the recipe's where it trains that name.
        rank: The rank of every layer; None keeps the largest that a layer has.
        overwrite: Whether a ``destination`` that exists is replaced.

    Returns:
        What the truncation lost, None without one.

    Raises:
        ConfigError: If ``source`` is no LoRA, does not fit ``base``, ``rank`` is below 1 or not
            below the adapter's own, or ``destination`` exists or holds the ``source`` or ``base``.
    """
    config = _lora_config(source)
    model_source = base_of_runs([source], base, revision=revision)
    _check_fits(source, model_source)
    others = _other_kinds(config)
    truncation = None
    tensors = read_tensors(source / ADAPTER_FILE, "Save it again, or take another checkpoint.")
    if rank is not None:
        if others:
            raise _of_another_kind(source, others, f"`--rank` is {rank}", "Leave `--rank` out")
        config, tensors, truncation = truncate(config, tensors, rank)
    elif not others and (config.rank_pattern or config.alpha_pattern or config.use_rslora):
        plain = uniform(updates_of(config, tensors))
        config = uniform_config(config, plain.rank, plain.alpha)
        tensors = with_factors(tensors, plain.factors)
    config.base_model_name_or_path, config.inference_mode = absolute_name(base), True
    config.revision = None if model_source.revision == "main" else model_source.revision
    reads = _reads(source, base)
    with new_folder(destination, "`--to`", overwrite=overwrite, reads=reads) as stage:
        save_file(tensors, stage / ADAPTER_FILE, metadata={"format": "pt"})
        config.save_pretrained(str(stage))
        _copy_tokenizer(source, stage)
    return truncation


def export_merged(
    source: Path,
    base: str,
    destination: Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    **schemes: Any,
) -> Quantization:
    """Write ``base`` with the adapter merged into its weights: in float32, cast last.

    A classifier is written with its trained head and the names of its classes. An adapter that was
    trained on quantised weights is merged into what these stand for, dequantised: the weights as
    they were saved are another model. The merged model is not quantised.

    Args:
        source: A folder that ``save_model`` or a checkpoint left.
        base: The model it was trained on, id or folder; it is written in its own dtype.
        destination: The new folder; it appears whole, by rename.
        revision: Of the base; None takes the recipe's where it trains that name.
        overwrite: Whether a ``destination`` that exists is replaced.
        **schemes: ``load_in_4bit``, ``load_in_8bit`` and ``torchao`` in place of the recipe's.

    Returns:
        How the weights were quantised that it was merged into.

    Raises:
        ConfigError: As for :func:`export_adapter`, and if ``base`` is a quantised checkpoint.
    """
    config = _lora_config(source)
    others = [name for name in _other_kinds(config) if name not in _MERGED_BY_PEFT]
    if others:
        raise _of_another_kind(source, others, "`--merge` is set", "Leave `--merge` out")
    trained_on = base_of_runs([source], base, revision=revision, **schemes)
    model_source = _as_saved(trained_on)
    _check_fits(source, model_source)
    _check_is_not_quantised(model_source)
    reads = _reads(source, base)
    with new_folder(destination, "`--to`", overwrite=overwrite, reads=reads) as stage:
        run = load_run(source, model_source)
        model: Any = run.model
        dtype = model.get_base_model().dtype
        model.float()
        if trained_on.quantization:
            quantised = load_run(source, trained_on).model
            take_weights(model.get_base_model(), quantised.get_base_model())
            del quantised
        merged = model.merge_and_unload()
        merged.to(dtype).save_pretrained(str(stage))
        _copy_tokenizer(source, stage)
        if not any(stage.glob("tokenizer*")):
            run.tokenizer.save_pretrained(str(stage))
    return trained_on.quantization


def _lora_config(source: Path) -> LoraConfig:
    """Return the settings of the LoRA in a folder.

    Raises:
        ConfigError: If the folder holds none, or an adapter of another method.
    """
    config = read_adapter(source).config
    if not isinstance(config, LoraConfig) or config.peft_type != "LORA":
        raise ConfigError(
            f"`{source / CONFIG_FILE}` has `peft_type` {str(config.peft_type.value)!r}, and export "
            "knows LORA only. Use peft itself for this adapter."
        )
    return config


def _other_kinds(config: LoraConfig) -> list[str]:
    """Return the settings that make the adapter another thing than s B A on the base as it is."""
    names = [name for name in _OTHER_KINDS if getattr(config, name, None)]
    changes_base = config.init_lora_weights not in BASE_UNTOUCHED
    return [*names, "init_lora_weights"] if changes_base else names


def _of_another_kind(source: Path, names: list[str], what_is_set: str, remedy: str) -> ConfigError:
    config = read_adapter(source).config
    values = ", ".join(f"`{name}` is {getattr(config, name)!r}" for name in names)
    return ConfigError(
        f"{what_is_set}, which goes with a plain LoRA on an unchanged base only, and in "
        f"`{source / CONFIG_FILE}` {values}. {remedy}: the copy is the adapter as it is."
    )


def _check_fits(source: Path, base: ModelSource) -> None:
    num_labels = None
    if read_adapter(source).is_classifier:
        num_labels = len(classes_of(source) or ("target",))
    check_adapter_fits(source, base, num_labels=num_labels)


def _as_saved(base: ModelSource) -> ModelSource:
    """Return ``base`` in the types of its checkpoint, whatever training loaded it for."""
    options = {k: v for k, v in base.options.items() if k != "quantization_config"}
    return replace(
        base,
        dtype="auto",
        attn_implementation=None,
        options=options,
        quantization=Quantization(),
    )


def _check_is_not_quantised(base: ModelSource) -> None:
    kind = quantised_checkpoint(load_config(base))
    if kind is not None:
        raise ConfigError(
            f"{base.words} is quantised ({kind}), and merging would round the update to its few "
            "bits. Name the model that it was made from, or export the adapter without `--merge`."
        )


def _reads(source: Path, base: str) -> tuple[Read, ...]:
    return (Read("the run", str(source), may_hold_output=True), Read("`--base`", base))


def _copy_tokenizer(source: Path, destination: Path) -> None:
    for path in source.iterdir():
        if path.is_file() and _TOKENIZER_FILES.fullmatch(path.name):
            shutil.copy2(path, destination / path.name)
