"""A new adapter on a model, in the manner of PEFT's ``get_peft_model``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from peft import LoraConfig, NoMatchingPeftModuleError, PeftConfig, PeftModel, get_peft_model

from balora.anchored.model import anchor_adapter, check_adapter, initialise
from balora.config import BALoraConfig
from balora.errors import ConfigError
from balora.models.classifier import LoadedClassifier


def get_balora_model(
    model: Any,
    peft_config: LoraConfig,
    config: BALoraConfig | None = None,
    adapter_name: str = "default",
) -> PeftModel:
    """Return ``model`` with a new adapter at its start, ready to train: PEFT's ``get_peft_model``.

    The model gives what its base gives, bit for bit, and so it does whenever the adapter is off.
    ``save_pretrained`` writes a plain LoRA for the untouched base.

    Args:
        model: A transformers model, or what :func:`~balora.models.classifier.load_classifier`
            returns, whose new modules are then trained in full.
        peft_config: A plain ``LoraConfig``; it is not changed.
        config: ``adapter_init`` and the ``pissa_*`` fields are read; PiSSA where it is left out.
        adapter_name: As for PEFT.

    Raises:
        ConfigError: If a setting does not go with the start, or matches no layer.
    """
    config = BALoraConfig() if config is None else config
    adapted = add_adapter(model, peft_config, config, adapter_name)
    check_adapter(adapted, config)
    if config.is_anchored:
        anchor_adapter(adapted, config)
        initialise(adapted)
    return adapted


def add_adapter(
    model: Any, peft_config: PeftConfig, config: BALoraConfig, adapter_name: str = "default"
) -> PeftModel:
    """Return ``model`` with a plain LoRA, started as PEFT starts it, its new modules trained too.

    Args:
        model: As for :func:`get_balora_model`.
        peft_config: As for :func:`get_balora_model`.
        config: Of the start.
        adapter_name: As for PEFT.

    Raises:
        ConfigError: If there is an adapter already, or no layer matches.
    """
    new_modules: tuple[str, ...] = ()
    if isinstance(model, LoadedClassifier):
        model, new_modules = model
    if isinstance(model, PeftModel):
        raise ConfigError(
            "the model carries an adapter already and `peft_config` asks for another. Leave "
            "`peft_config` out, or pass the base model."
        )
    own = started_by_peft(peft_config, config)
    named = list(own.modules_to_save or ())
    added = [name for name in new_modules if name not in named]
    own.modules_to_save = [*named, *added] or None
    with naming_targets(own):
        return get_peft_model(model, own, adapter_name)


def started_by_peft(peft_config: PeftConfig, config: BALoraConfig) -> Any:
    """Return a copy of ``peft_config`` in which PEFT is asked for the start that ``config`` names.

    Raises:
        ConfigError: If it asks for another one.
    """
    own: Any = deepcopy(peft_config)  # PEFT writes into it
    init, start = getattr(own, "init_lora_weights", True), config.adapter_init
    if config.is_anchored or start in ("lora", init):
        return own
    if init is not True:
        raise ConfigError(
            f"`init_lora_weights` of `peft_config` is {init!r} and `adapter_init` is {start}: two "
            "starts. Leave the first at True, or set `adapter_init: lora` to keep it."
        )
    own.init_lora_weights = start
    return own


@contextmanager
def naming_targets(peft_config: PeftConfig | None) -> Iterator[None]:
    """Name the setting where PEFT finds no layer to adapt.

    Raises:
        ConfigError: In place of PEFT's error.
    """
    try:
        yield
    except NoMatchingPeftModuleError as error:
        targets = getattr(peft_config, "target_modules", None)
        shown = sorted(targets) if isinstance(targets, set) else targets
        raise ConfigError(
            f"`target_modules` of `peft_config` (`lora_target_modules` in a recipe), {shown!r}, "
            "match no linear layer of the model. Use `all-linear`, or names such as `q_proj`."
        ) from error
