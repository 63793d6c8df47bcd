"""What an anchored adapter changes in PEFT's public interface, other adapters beside it included.

PEFT reads A and B of an adapter in many places, and for an anchored one they are not the update.
Here each public method that does is either right (saved, loaded) or refused by name; the methods
of one layer (merge, unmerge, ``get_delta_weight``, loading a state dict) are in
:mod:`balora.anchored.layer`. ``tests/anchored/test_peft_methods.py`` keeps the list.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from balora.anchored.layer import anchored_adapters
from balora.anchored.residual import start_layers
from balora.anchored.save import load_checkpoint, plain_adapter, save_anchor, without_anchors
from balora.config.objective import PLAIN_STARTS
from balora.errors import ConfigError

BASE_UNTOUCHED = (True, False, "eva", *PLAIN_STARTS[1:])
"""Values of ``init_lora_weights`` that leave the base weights as they are."""


def anchored_names(model: Any) -> list[str]:
    """Return the names of the anchored adapters of ``model``, in PEFT's order."""
    found = {
        adapter
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for adapter in anchored_adapters(layer)
    }
    return [name for name in model.peft_config if name in found]


class _AnchoredTuner:
    """The public methods of ``LoraModel`` that read A and B, or change the base."""

    def inject_adapter(self, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter as PEFT does, unless it would change what the anchored one stands on."""
        tuner: Any = self
        others = [name for name in anchored_names(tuner) if name != adapter_name]
        if others:
            _check_beside(tuner.peft_config[adapter_name], others, tuner.peft_config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)  # type: ignore[misc]

    def add_weighted_adapter(self, adapters: Sequence[str], *args: Any, **kwargs: Any) -> None:
        """Combine other adapters as PEFT does; refuse to combine an anchored one."""
        anchored = [name for name in anchored_names(self) if name in adapters]
        if anchored:
            raise ConfigError(
                f"`adapters` holds {', '.join(f'`{n}`' for n in anchored)}, which is anchored: "
                "its A and B are no update without the start they moved from, so PEFT would "
                "combine something else. Save it with `model.save_pretrained(folder)` and combine "
                "the plain LoRA that it leaves, `PeftModel.from_pretrained(base, folder)`."
            )
        super().add_weighted_adapter(adapters, *args, **kwargs)  # type: ignore[misc]

    def subtract_mutated_init(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse PEFT's conversion of its own PiSSA."""
        if anchored_names(self):
            raise ConfigError(_NO_CONVERSION)
        return super().subtract_mutated_init(*args, **kwargs)  # type: ignore[misc]


_NO_CONVERSION = (
    "`path_initial_model_for_weight_conversion` converts PEFT's own PiSSA, and an anchored adapter "
    "is saved as a plain LoRA already. Leave it out."
)


def _check_beside(
    config: PeftConfig, anchored: Sequence[str], configs: dict[str, PeftConfig]
) -> None:
    """Refuse an adapter that changes the base, or that shares the settings of an anchored one."""
    init = getattr(config, "init_lora_weights", True)
    if init not in BASE_UNTOUCHED or getattr(config, "layer_replication", None):
        name, value = (
            ("init_lora_weights", init)
            if init not in BASE_UNTOUCHED
            else ("layer_replication", config.layer_replication)
        )
        raise ConfigError(
            f"`{name}` is {value!r}, which changes the base model that the anchored adapter "
            f"`{anchored[0]}` stands on. Add this adapter to a base model of its own."
        )
    for other in anchored:
        if configs[other] is config:
            raise ConfigError(
                f"`peft_config` is that of the anchored adapter `{other}` itself. PEFT would copy "
                "its A and B next, which are no update without the start they moved from. Save "
                "the adapter with `model.save_pretrained(folder)` and load it on the base model."
            )


class _AnchoredModel:
    """The public methods of ``PeftModel`` that write and read an anchored adapter."""

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Write plain LoRAs as PEFT does, and ``anchor.safetensors`` beside an anchored one."""
        model: Any = self
        save = super().save_pretrained  # type: ignore[misc]
        call = inspect.signature(save).bind(save_directory, *args, **kwargs).arguments
        further: dict[str, Any] = call.pop("kwargs", {})
        selected = call.get("selected_adapters")
        anchored = [n for n in anchored_names(model) if selected is None or n in selected]
        if anchored and call.get("path_initial_model_for_weight_conversion") is not None:
            raise ConfigError(_NO_CONVERSION)
        if anchored and not call.get("safe_serialization", True):
            raise ConfigError(
                "`safe_serialization` is False, but an anchored adapter is resumed from "
                "safetensors. Leave it out."
            )
        state_dict = further.pop("state_dict", None)
        if state_dict is None:
            _initialise(model, anchored)
            state_dict = model.state_dict()
        plain, configs = without_anchors(state_dict), {}
        for adapter in anchored:
            configs[adapter], factors = plain_adapter(model, adapter, state_dict)
            plain.update(factors)
        with _described(model, configs):
            save(**call, state_dict=plain, **further)
        if call.get("is_main_process", True):
            for adapter in anchored:
                # PEFT gives an adapter with a name of its own a subfolder
                folder = Path(save_directory, adapter if adapter != "default" else "")
                save_anchor(model, adapter, state_dict, folder)

    def load_adapter(
        self,
        model_id: str,
        adapter_name: str,
        is_trainable: bool = False,
        *args: Any,
        full: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint of an anchored adapter, exactly; anything else as PEFT does.

        ``full`` is as for :func:`balora.anchored.save.load_checkpoint`.
        """
        model: Any = self
        if adapter_name not in anchored_names(model):
            return super().load_adapter(  # type: ignore[misc]
                model_id, adapter_name, is_trainable, *args, **kwargs
            )
        folder = Path(model_id, kwargs.get("subfolder") or "")
        result = load_checkpoint(model, adapter_name, folder, full)
        if not is_trainable:
            model.eval()  # as PEFT does
        return result


def _initialise(model: Any, adapters: Sequence[str]) -> None:
    base = model.get_base_model()
    places = [
        (name, layer, adapter)
        for name, layer in base.named_modules()
        for adapter in anchored_adapters(layer)
        if adapter in adapters and not layer.lora_variant[adapter].is_initialised
    ]
    start_layers(base, places)


@contextmanager
def _described(model: Any, configs: dict[str, PeftConfig]) -> Iterator[None]:
    """Give adapters other settings for as long as PEFT writes them."""
    original = dict(model.peft_config)
    model.peft_config.update(configs)
    try:
        yield
    finally:
        model.peft_config.update(original)


def is_anchored_model(model: PeftModel) -> bool:
    """Return whether :func:`balora.anchored.anchor_adapter` has been given ``model``."""
    return isinstance(model, _AnchoredModel)


@lru_cache
def anchored_model_class(cls: Any) -> Any:
    """Return the subclass of a ``PeftModel`` that knows about anchored adapters."""
    return type(f"Anchored{cls.__name__}", (_AnchoredModel, cls), {"__doc__": cls.__doc__})


@lru_cache
def anchored_tuner_class(cls: Any) -> Any:
    """Return the subclass of a ``LoraModel`` that knows about anchored adapters."""
    return type(cls.__name__, (_AnchoredTuner, cls), {"__doc__": cls.__doc__})


__all__ = [
    "BASE_UNTOUCHED",
    "anchored_model_class",
    "anchored_names",
    "anchored_tuner_class",
    "is_anchored_model",
]
