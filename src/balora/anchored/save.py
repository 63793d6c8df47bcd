"""What of an anchored adapter is on disk: a plain LoRA for everybody, the anchor for resuming.

``adapter_model.safetensors`` holds the update as a LoRA of rank 2r for the untouched base model;
``anchor.safetensors`` beside it A, B and their start, exactly. Both are functions of one state
dict, which may have been gathered from several processes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from balora.anchored.layer import (
    ANCHOR_BUFFERS,
    clear_anchor,
    configured_scaling,
    difference,
    is_anchored,
    state_keys,
)
from balora.anchored.plain import Update, uniform, uniform_config
from balora.anchored.residual import is_residual, start_layers
from balora.errors import ConfigError
from balora.state import read_tensors

ANCHOR_FILE = "anchor.safetensors"
"""A, B, A0 and B0 of every layer, exactly; written beside ``adapter_model.safetensors``."""

ADAPTER_FILE = "adapter_model.safetensors"
"""PEFT's own name for the weights of an adapter."""

_FILE_KEYS = ("lora_A.weight", "lora_B.weight", "anchor_A", "anchor_B")
"""What follows the name of a layer in :data:`ANCHOR_FILE`."""


def plain_adapter(
    model: Any, adapter: str, state_dict: dict[str, Tensor]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return the settings and the A and B of the plain LoRA, under the keys of ``state_dict``.

    Args:
        model: The anchored model.
        adapter: Which of its adapters.
        state_dict: Of the whole model, or empty on a process that does not write.

    Raises:
        ConfigError: If ``state_dict`` has A and B but no start, and neither has the model.
    """
    updates = {
        name: Update(*difference(*matrices), configured_scaling(layer, adapter))
        for name, layer, matrices in _layers(model, adapter, state_dict)
    }
    if not updates:
        return model.peft_config[adapter], {}
    plain, keys = uniform(updates), state_keys(adapter)
    factors = {
        f"{name}.{key}": factor.detach()
        for name, pair in plain.factors.items()
        for key, factor in zip(keys[:2], pair, strict=True)
    }
    return uniform_config(model.peft_config[adapter], plain.rank, plain.alpha), factors


def save_anchor(model: Any, adapter: str, state_dict: dict[str, Tensor], folder: Path) -> None:
    """Write A, B and their start of every layer."""
    tensors = {
        f"{name}.{key}": matrix.detach().contiguous()
        for name, _, matrices in _layers(model, adapter, state_dict)
        for key, matrix in zip(_FILE_KEYS, matrices, strict=True)
    }
    save_file(tensors, folder / ANCHOR_FILE)


def without_anchors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state_dict`` without the starts, which a plain LoRA does not have."""
    return {
        key: value
        for key, value in state_dict.items()
        if not any(f".{name}." in key for name in ANCHOR_BUFFERS)
    }


def _layers(
    model: Any, adapter: str, state_dict: dict[str, Tensor]
) -> list[tuple[str, Any, list[Tensor]]]:
    """Return name, layer and A, B, A0, B0 of every anchored layer that ``state_dict`` has."""
    layers, keys = [], state_keys(adapter)
    for name, layer in model.named_modules():
        if not is_anchored(layer, adapter) or f"{name}.{keys[0]}" not in state_dict:
            continue
        matrices = [state_dict[f"{name}.{key}"] for key in keys[:2]]
        for buffer, key in zip(ANCHOR_BUFFERS, keys[2:], strict=True):
            if f"{name}.{key}" not in state_dict and not layer.lora_variant[adapter].is_initialised:
                raise ConfigError(
                    f"`state_dict` has A and B of the anchored adapter `{adapter}` but not their "
                    "start. Call `balora.anchored.initialise(model)` before it is taken."
                )
            own = getattr(layer, buffer)[adapter]
            matrices.append(state_dict.get(f"{name}.{key}", own))
        layers.append((name, layer, matrices))
    return layers


def load_checkpoint(
    model: Any,
    adapter: str,
    folder: Path,
    full: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Any:
    """Set A, B, their start and what else was trained to what a checkpoint holds.

    Args:
        model: With the adapter.
        adapter: Its name.
        folder: Of the checkpoint.
        full: As for :func:`balora.anchored.residual.start_layers`.

    Raises:
        ConfigError: If ``folder`` holds no checkpoint of this method, or one of other shapes.
    """
    if not (folder / ANCHOR_FILE).is_file():
        raise ConfigError(
            f"`{folder}` has no {ANCHOR_FILE}, which resuming needs: it is an exported "
            "adapter or another method's checkpoint. Resume from a checkpoint of this method."
        )
    fix = "Resume from an earlier checkpoint, or start from the beginning."
    anchor = _in_peft_keys(read_tensors(folder / ANCHOR_FILE, fix))
    saved = read_tensors(folder / ADAPTER_FILE, fix)
    _check_shapes(model, adapter, anchor, folder)
    for layer in model.modules():
        if is_anchored(layer, adapter):
            # where and as A and B are: a difference of two dtypes would not be zero where it should
            clear_anchor(layer, adapter)
    # what is not a LoRA matrix (a classification head, say) comes from PEFT's own file
    rest = {key: value for key, value in saved.items() if "lora_" not in key}
    result = set_peft_model_state_dict(model, {**rest, **anchor}, adapter)
    base = model.get_base_model()
    places = [(name, m, adapter) for name, m in base.named_modules() if is_anchored(m, adapter)]
    start_layers(base, [place for place in places if is_residual(place[1], adapter)], full)
    return result


def _in_peft_keys(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of :data:`ANCHOR_FILE` under the names that PEFT gives them."""
    renamed = dict(zip(_FILE_KEYS[2:], ANCHOR_BUFFERS, strict=True))
    parts = {key: key.rpartition(".") for key in tensors}
    return {
        f"{parts[key][0]}.{renamed.get(parts[key][2], parts[key][2])}": value
        for key, value in tensors.items()
    }


def _check_shapes(model: Any, adapter: str, anchor: dict[str, Tensor], folder: Path) -> None:
    own = get_peft_model_state_dict(model, adapter_name=adapter)
    expected = {key: tuple(value.shape) for key, value in own.items() if "lora_" in key}
    found = {key: tuple(value.shape) for key, value in anchor.items()}
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
    "load_checkpoint",
    "plain_adapter",
    "save_anchor",
    "without_anchors",
]
