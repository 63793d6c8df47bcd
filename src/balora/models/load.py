"""The one way to load a model: for training, evaluation, comparison and export alike.

Each step has its own errors, which name the setting that the user gave the model by: the config,
the weights, the tokenizer, the adapter. What transformers would fill with random numbers, leave
out or report at length is refused here by the name of the tensor.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_fsdp_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.peft_utils import find_adapter_config_file

from balora.errors import ConfigError
from balora.models.blank import blank_model, reads_no_weights
from balora.models.finite import check_finite
from balora.models.quantization import (
    check_can_quantise,
    check_is_quantised,
    keep_unpacked,
    quantization_config,
)
from balora.models.reading import reading_model
from balora.models.source import ModelSource

_OF_AN_ADAPTER = ("revision", "token", "cache_dir", "subfolder")
"""What looking for an adapter takes of `ModelSource.where`."""


def accelerator() -> torch.device:
    """Return the device that finished models are measured on."""
    # torch names the device that it is built for, also where there is none
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def load_config(source: ModelSource, **changes: Any) -> PretrainedConfig:
    """Return the config of a pre-trained model, with some fields changed.

    Raises:
        ConfigError: If there is none, or the name is that of an adapter.
    """
    with in_words_of(source):
        where = {k: v for k, v in source.where().items() if k in _OF_AN_ADAPTER}
        adapter = find_adapter_config_file(source.name, **where)
        if adapter is not None:
            raise ConfigError(
                f"{source.words} is an adapter, not a pre-trained model. Name the model it was "
                "trained on; `balora export --merge` makes one model of both."
            )
        return AutoConfig.from_pretrained(source.name, **source.where(), **changes)


def load_model(source: ModelSource, *, device: torch.device | None = None) -> PreTrainedModel:
    """Return a causal language model in eval mode.

    Args:
        source: The model, and how it is loaded.
        device: Where it goes; None leaves it where ``source`` puts it.

    Raises:
        ConfigError: If it cannot be loaded, is no causal language model, lacks a weight, or has
            one that is not finite.
    """
    config = load_config(source)
    check_is_causal(config, source)
    model, info = from_pretrained(AutoModelForCausalLM, source)
    if not reads_no_weights():  # whose head would seem to be missing
        refuse_missing(model, info, source)
    model = placed(model, device)
    check_finite(model, source.words)
    return model


def placed(model: PreTrainedModel, device: torch.device | None) -> PreTrainedModel:
    """Return ``model`` on a device, unless there is none, or loading has spread it already."""
    is_spread = getattr(model, "hf_device_map", None) is not None
    return model if device is None or is_spread else model.to(device)


def load_tokenizer(source: ModelSource, run: Path | None = None) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer, or the one that a run saved: it may have a template of its own.

    Raises:
        ConfigError: If it cannot be loaded, or there is none: transformers would make one that
            knows no text.
    """
    if run is not None and (run / "tokenizer_config.json").is_file():
        source = ModelSource(name=str(run.absolute()), setting="the tokenizer of")
    with in_words_of(source):
        tokenizer = AutoTokenizer.from_pretrained(source.name, **source.where())
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ConfigError(
            f"{source.words} has no tokenizer: there is no tokenizer.json and no vocabulary. Put "
            "the tokenizer of the model into its folder (`tokenizer.save_pretrained`)."
        )
    return tokenizer


def whole_copy(model: Any) -> nn.Module:
    """Return a model as its checkpoint has it, not quantised, on the CPU.

    Its weights are pages of the files, which take memory of their own while they are read only.

    Raises:
        ConfigError: If the checkpoint cannot be read.
    """
    config = deepcopy(model.config)
    del config.quantization_config
    name = str(config.name_or_path)
    where = {"revision": getattr(config, "_commit_hash", None) or "main"}
    report = silenced("transformers.modeling_utils", "LOAD REPORT")  # of a head, which is not read
    with reading_model(name, "the model", revision=where["revision"]), report:
        whole: nn.Module = type(model).from_pretrained(
            name,
            config=config,
            dtype="auto",
            ignore_mismatched_sizes=True,  # of a head
            **where,
        )
    return whole


def attach_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Return ``model`` with the adapter of a folder on it, in eval mode: plain PEFT.

    Whether the two belong together is for :func:`balora.models.fits.check_base` to say, before.

    Raises:
        ConfigError: If a weight of the adapter is not finite.
    """
    with reading_model(str(folder), "the adapter"):
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    check_finite(adapted, f"the adapter in `{folder}`")
    return adapted


def check_is_causal(config: PretrainedConfig, source: ModelSource) -> None:
    """Refuse a checkpoint of another kind of model: it would get a new output layer, or none.

    Raises:
        ConfigError: Naming the setting, and what the checkpoint is.
    """
    known, saved_as = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, config.architectures or ()
    has_remote_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if source.trust_remote_code and has_remote_code:
        return
    is_causal = config.model_type in known and not getattr(config, "is_encoder_decoder", False)
    if is_causal and (not saved_as or set(saved_as) & set(known.values())):
        return
    what = f"it was saved as `{saved_as[0]}`" if saved_as else f"its type is {config.model_type}"
    raise ConfigError(
        f"{source.words} is no causal language model: {what}. Name a model that was saved with its "
        "output layer, or set `task` to train a classifier."
    )


def from_pretrained(
    auto: Any, source: ModelSource, **arguments: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model and what loading found missing, unexpected or of another shape.

    Raises:
        ConfigError: If it cannot be loaded.
    """
    if source.quantization.scheme is not None:
        config = load_config(source, **arguments)
        check_can_quantise(source, config)
        if not reads_no_weights():
            arguments["quantization_config"] = quantization_config(auto, source, config)
    if reads_no_weights():
        with in_words_of(source):
            blank = blank_model(auto, load_config(source, **arguments), source.arguments())
        check_is_quantised(blank[0], source)
        return blank
    if is_fsdp_enabled() and not PartialState().is_local_main_process:
        config = load_config(source, **arguments)
        if _is_known_unread(source, config):
            return _unread(auto, source, config), {"missing_keys": set(), "mismatched_keys": set()}
    report = silenced("transformers.modeling_utils", "LOAD REPORT")
    with in_words_of(source), report:
        model, info = auto.from_pretrained(
            source.name,
            **(source.arguments() | arguments),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # what differs is refused by name, not in a report
        )
    check_is_quantised(model, source)
    keep_unpacked(model)
    return model.eval(), info


def _is_known_unread(source: ModelSource, config: PretrainedConfig) -> bool:
    """Say whether a model can be built without its files: of known type, by no code of the hub."""
    has_type = source.dtype != "auto" or getattr(config, "dtype", None) is not None
    return has_type and not source.trust_remote_code


def _unread(auto: Any, source: ModelSource, config: PretrainedConfig) -> PreTrainedModel:
    """Return a model of which every weight is on the meta device, and every other buffer is real.

    For a process to which another sends the weights when they are split (FSDP's
    `cpu_ram_efficient_loading`): transformers leaves them there by itself, but reads the files.
    """
    arguments = source.arguments()
    with torch.device("meta"):
        kind = type(auto.from_config(config))
    own = {k: arguments[k] for k in ("dtype", "attn_implementation") if k in arguments}
    with silenced("transformers.modeling_utils", "LOAD REPORT"):
        model: PreTrainedModel = kind.from_pretrained(None, config=config, state_dict={}, **own)
    model.config.name_or_path = model.name_or_path = source.name
    return model.eval()


def refuse_missing(
    model: PreTrainedModel,
    info: dict[str, Any],
    source: ModelSource,
    *,
    but: Callable[[str, bool], bool] = lambda name, is_missing: False,
) -> None:
    """Refuse a checkpoint without some of the model's weights: they would be random numbers.

    Args:
        model: After loading.
        info: What loading found.
        source: Of the model.
        but: Says for a weight by name whether it may be missing (true) or of another shape.

    Raises:
        ConfigError: Naming the first one.
    """
    for name, saved, own in sorted(info["mismatched_keys"]):
        if not but(name, False):
            raise ConfigError(
                f"{source.words} contradicts itself: `{name}` has shape {tuple(saved)} in the "
                f"weights and {tuple(own)} by config.json. Download it again."
            )
    parameters = {name for name, _ in model.named_parameters()}
    missing = sorted(n for n in set(info["missing_keys"]) & parameters if not but(n, True))
    if missing:
        raise ConfigError(
            f"{source.words} lacks {len(missing)} of the weights that its config.json asks for, "
            f"`{missing[0]}` first. Download it again, or name a checkpoint that is complete."
        )


@contextmanager
def in_words_of(source: ModelSource) -> Iterator[None]:
    """Turn what goes wrong while the files of a model are read into one sentence on the setting.

    Raises:
        ConfigError: Naming the setting and the model, the attention kernel, or a package.
    """
    with reading_model(source.name, source.setting, revision=source.revision):
        try:
            yield
        except (ImportError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
            if source.attn_implementation is not None and re.search("attn|attention", reason, re.I):
                raise ConfigError(
                    f"`attn_implementation` is {source.attn_implementation!r}, which cannot be "
                    f"used with {source.words}: {reason}. Set `sdpa` or `eager`, or leave it out."
                ) from error
            if isinstance(error, ImportError):
                raise ConfigError(
                    f"{source.words} needs a package that is not installed: {reason}."
                ) from error
            raise


@contextmanager
def silenced(logger: str, words: str) -> Iterator[None]:
    """Keep the records of a library's logger that hold some words to ourselves."""

    def is_other(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logging.getLogger(logger).addFilter(is_other)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(is_other)
