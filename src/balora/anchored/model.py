"""Anchored PiSSA on a whole PEFT model: attach, initialise, save, resume.

``save_pretrained`` and ``load_adapter`` are the two public methods that transformers' Trainer calls
to write a checkpoint, to resume from it and to load the best one, so these two are overridden on
the model. What is saved is always a plain LoRA of rank 2r for the untouched base model, and beside
it the exact A, B and their anchor, which resuming reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from balora.anchored.layer import (
    attach,
    check_layer,
    difference_factors,
    initialise_layer,
    is_anchored,
    is_initialised,
    set_anchor,
)
from balora.config import BALoraConfig
from balora.errors import ConfigError

ANCHOR_FILE = "anchor.safetensors"
"""A, B, A0 and B0 of every layer, exactly; written beside ``adapter_model.safetensors``."""

ADAPTER_FILE = "adapter_model.safetensors"
"""PEFT's own name for the weights of an adapter."""

_NEUTRAL = {
    "lora_dropout": 0.0,
    "bias": "none",
    "init_lora_weights": True,
    "use_dora": False,
    "lora_bias": False,
    "target_parameters": None,
    "layer_replication": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "alora_invocation_tokens": None,
    "velora_config": None,
    "monteclora_config": None,
    "kasa_config": None,
    "megatron_config": None,
}
"""Settings of ``LoraConfig`` that another initialisation or another layer would act on."""


def anchor_adapter(model: PeftModel, config: BALoraConfig) -> PeftModel:
    """Turn the one LoRA adapter of ``model`` into an anchored PiSSA adapter, in place.

    The singular vectors are computed by :func:`initialise`, by the first forward pass or never,
    where a checkpoint is loaded first.

    Args:
        model: From ``peft.get_peft_model`` with a plain ``LoraConfig``.
        config: The ``pissa_*`` fields say how the singular vectors are found.

    Returns:
        ``model`` itself.

    Raises:
        ConfigError: If the adapter's settings do not go with anchored PiSSA (each is named), or if
            it is anchored already.
    """
    adapter = only_adapter(model)
    if isinstance(model, _AnchoredMixin):
        raise ConfigError(
            "the adapter is anchored already, and anchoring it again would drop its start. Use the "
            "model as it is, or pass the base model and a `LoraConfig`."
        )
    check_adapter(model, anchored=True)
    for _, layer in lora_layers(model):
        attach(layer, adapter, config)
    cls: Any = type(model)
    model.__class__ = _anchored_class(cls)
    return model


def check_adapter(model: PeftModel, *, anchored: bool) -> None:
    """Refuse settings of the adapter that cannot work, before anything is computed.

    Raises:
        ConfigError: For a setting that does not go with PiSSA, or a rank above a matrix.
    """
    adapter = only_adapter(model)
    peft_config = model.peft_config[adapter]
    if anchored:
        problems = [
            f"`{name}` is {getattr(peft_config, name)!r}, which does not go with the PiSSA start: "
            f"leave it at {neutral!r}"
            for name, neutral in _NEUTRAL.items()
            if (getattr(peft_config, name, neutral) or None) != (neutral or None)
        ]
        if problems:
            raise ConfigError("; ".join(problems) + ".")
    for name, layer in lora_layers(model):
        check_layer(name, layer, adapter, anchored=anchored)


def only_adapter(model: PeftModel) -> str:
    """Return the name of the model's single LoRA adapter.

    Raises:
        ConfigError: If there are several, or if it is not a LoRA.
    """
    names = list(model.peft_config)
    if len(names) != 1 or not isinstance(model.peft_config[names[0]], LoraConfig):
        raise ConfigError(
            f"the model carries the adapters {names}, but balora trains exactly one LoRA adapter. "
            "Pass the base model and a `LoraConfig`."
        )
    return str(names[0])


def lora_layers(model: PeftModel) -> list[tuple[str, Any]]:
    """Return the LoRA layers with the names they have in the base model."""
    base = model.get_base_model()
    return [(name, m) for name, m in base.named_modules() if isinstance(m, LoraLayer)]


def initialise(model: PeftModel) -> None:
    """Compute the singular vectors of every anchored layer that has none yet."""
    adapter = only_adapter(model)
    layers = [m for _, m in lora_layers(model) if is_anchored(m) and not is_initialised(m)]
    for layer in tqdm(layers, desc="PiSSA start", unit="layer", disable=len(layers) < 2):
        initialise_layer(layer, adapter)


class _AnchoredMixin:
    """The two public methods of ``PeftModel`` that know about the anchor."""

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Write a plain LoRA of rank 2r as PEFT does, and ``anchor.safetensors`` beside it."""
        initialise(self)
        state_dict = kwargs.pop("state_dict", None) or self.state_dict()  # type: ignore[attr-defined]
        with _plain_lora_config(self):
            kwargs["state_dict"] = _plain_lora_state(self, state_dict)
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            adapter = only_adapter(self)
            # PEFT gives an adapter with a name of its own a subfolder
            folder = Path(save_directory, adapter if adapter != "default" else "")
            save_file(_anchor_state(self), folder / ANCHOR_FILE)

    def load_adapter(
        self, model_id: str, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint of this very adapter, exactly; anything else as PEFT does."""
        if adapter_name not in self.peft_config:  # type: ignore[attr-defined]
            return super().load_adapter(model_id, adapter_name, *args, **kwargs)  # type: ignore[misc]
        return _load_checkpoint(self, Path(model_id))


@lru_cache
def _anchored_class(cls: Any) -> type[PeftModel]:
    return type(f"Anchored{cls.__name__}", (_AnchoredMixin, cls), {"__doc__": cls.__doc__})


@contextmanager
def _plain_lora_config(model: Any) -> Iterator[None]:
    """Describe the adapter as the plain LoRA of rank 2r for as long as PEFT writes it."""
    adapter = only_adapter(model)
    original = model.peft_config[adapter]
    model.peft_config[adapter] = plain_lora_config(model)
    try:
        yield
    finally:
        model.peft_config[adapter] = original


def plain_lora_config(model: PeftModel) -> LoraConfig:
    r"""Return the config of the rank-2r LoRA: every rank and every alpha doubled.

    With rsLoRA the scaling :math:`s = \alpha / \sqrt{r}` is written as a plain one,
    :math:`\alpha' = 2 r s`, layer by layer where a pattern makes them differ.
    """
    config = deepcopy(model.peft_config[only_adapter(model)])
    rslora, config.use_rslora = config.use_rslora, False
    if rslora and (config.rank_pattern or config.alpha_pattern):
        scalings = {name: (m.r, m.scaling) for name, m in lora_layers(model)}
        config.alpha_pattern = {
            name: rank[only_adapter(model)] * scaling[only_adapter(model)]
            for name, (rank, scaling) in scalings.items()
        }
    elif rslora:
        config.lora_alpha = config.lora_alpha * config.r**0.5
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: 2 * alpha for key, alpha in config.alpha_pattern.items()}
    config.init_lora_weights = True
    return config


def _plain_lora_state(model: Any, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state_dict`` with every A and B replaced by the rank-2r difference form."""
    adapter, plain = only_adapter(model), dict(state_dict)
    for name, layer in model.named_modules():
        if is_anchored(layer):
            down, up = difference_factors(layer, adapter)
            plain[f"{name}.lora_A.{adapter}.weight"] = down.detach()
            plain[f"{name}.lora_B.{adapter}.weight"] = up.detach()
    return plain


def _anchor_state(model: Any) -> dict[str, Tensor]:
    adapter, state = only_adapter(model), {}
    for name, layer in model.named_modules():
        if is_anchored(layer):
            state[f"{name}.lora_A.weight"] = layer.lora_A[adapter].weight
            state[f"{name}.lora_B.weight"] = layer.lora_B[adapter].weight
            state[f"{name}.anchor_A"], state[f"{name}.anchor_B"] = layer.anchor_A, layer.anchor_B
    return {key: value.detach().contiguous() for key, value in state.items()}


def _load_checkpoint(model: Any, folder: Path) -> Any:
    if not (folder / ANCHOR_FILE).is_file():
        raise ConfigError(
            f"`{folder}` has no {ANCHOR_FILE}, so training cannot go on from it: it is an exported "
            "adapter or another method's checkpoint. Resume from a checkpoint of this method."
        )
    anchor, saved = load_file(folder / ANCHOR_FILE), load_file(folder / ADAPTER_FILE)
    _check_shapes(model, anchor, folder)
    for name, layer in model.named_modules():
        if is_anchored(layer):
            # where and as A and B are: a difference of two dtypes would not be zero where it should
            like = layer.lora_A[only_adapter(model)].weight
            pair = (anchor.pop(f"{name}.anchor_{factor}").to(like) for factor in "AB")
            set_anchor(layer, *pair)
    # what is not a LoRA matrix (a classification head, say) comes from PEFT's own file
    rest = {key: value for key, value in saved.items() if "lora_" not in key}
    return set_peft_model_state_dict(model, {**rest, **anchor}, only_adapter(model))


def _check_shapes(model: Any, anchor: dict[str, Tensor], folder: Path) -> None:
    own = get_peft_model_state_dict(model, adapter_name=only_adapter(model))
    expected = {key: tuple(value.shape) for key, value in own.items() if "lora_" in key}
    found = {key: tuple(value.shape) for key, value in anchor.items() if "lora_" in key}
    if expected == found:
        return
    differing = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
    key = differing[0]
    raise ConfigError(
        f"`{folder}` does not fit the adapter: `{key}` is {found.get(key, 'missing')} there and "
        f"{expected.get(key, 'absent')} here. Resume with the `lora_r` and `lora_target_modules` "
        "the checkpoint was trained with."
    )


__all__ = [
    "ADAPTER_FILE",
    "ANCHOR_FILE",
    "anchor_adapter",
    "check_adapter",
    "initialise",
    "lora_layers",
    "only_adapter",
    "plain_lora_config",
]
