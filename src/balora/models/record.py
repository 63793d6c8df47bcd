"""What a run leaves of its base: sizes that an adapter need not show, and some of the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from balora.errors import ConfigError
from balora.files import write_json
from balora.models.quantization import SCALES, stored_tensors
from balora.models.source import ModelSource, name_the_base, read_recipe, trained_on
from balora.state import read_json

BASE_FILE = "base_model.json"
_NUM_WEIGHTS, _NUM_ENTRIES = 8, 8
_ROUNDING = 2.0**-7
"""Of bfloat16, relative."""
_IN_A_LAYER = re.compile(r"\.\d+\.")
_SIZES = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


def base_facts(config: PretrainedConfig) -> dict[str, Any]:
    """Return kind, depth, width and vocabulary of a model, as far as its config says them."""
    text = config.get_text_config()
    return {name: getattr(text, name) for name in _SIZES if getattr(text, name, None) is not None}


def base_record(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """Return the facts of a base before it is trained, with some entries of its layers' weights.

    A few layers and entries are enough: another model of the same sizes shares hardly any.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    return {**base_facts(model.config), "dtype": dtype, "weights": _sample(model)}


def write_base(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``base_model.json``, from :func:`base_record`, into the folder of a run."""
    write_json(folder / BASE_FILE, record)


def check_recorded_base(folder: Path, base: ModelSource, config: PretrainedConfig) -> None:
    """Refuse a base of other sizes than a run recorded; a folder without a record passes.

    Raises:
        ConfigError: Naming the setting of the base, and what differs.
    """
    if not (folder / BASE_FILE).is_file():
        return
    recorded = _read(folder)
    found = base_facts(config)
    for name in _SIZES:
        if name in recorded and name in found and recorded[name] != found[name]:
            raise ConfigError(
                f"`{folder}` was trained on a model with `{name}` {recorded[name]}, but "
                f"{base.words} has {found[name]}. {name_the_base(folder)}"
            )


def check_recorded_weights(folder: Path, base: ModelSource, model: PreTrainedModel) -> None:
    """Refuse a base with other weights than a run recorded, though of the same sizes.

    Where the base is loaded in another type than it was, entries may differ by rounding.

    Raises:
        ConfigError: Naming the setting of the base, and the first weight that differs.
    """
    recorded = _read(folder) if (folder / BASE_FILE).is_file() else {}
    is_same_type = recorded.get("dtype") == str(model.dtype).removeprefix("torch.")
    tolerance = 0.0 if is_same_type else _ROUNDING
    weights = dict(_layer_weights(model))
    for name, entries in recorded.get("weights", {}).items():
        found = _entries(weights[name]) if name in weights else entries
        if not np.allclose(found, entries, rtol=tolerance, atol=tolerance * np.abs(entries).max()):
            is_named = trained_on(read_recipe(folder)) == (base.name, base.revision)
            fix = "It has changed since; restore it." if is_named else name_the_base(folder)
            raise ConfigError(
                f"`{folder}` was trained on a model of the same sizes but with other weights than "
                f"{base.words}: `{name}` differs. {fix}"
            )


def _read(folder: Path) -> dict[str, Any]:
    fix = "Remove it, or take another checkpoint of the run."
    record: dict[str, Any] = read_json(folder / BASE_FILE, fix)
    return record


def _sample(model: nn.Module) -> dict[str, list[float]]:
    weights = _layer_weights(model)
    few = weights[:: max(1, len(weights) // _NUM_WEIGHTS)][:_NUM_WEIGHTS]
    return {name: _entries(weight) for name, weight in few}


def _layer_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the matrices of the layers by the names that the base has for them.

    Weights outside of the layers may be new, and a part of a shard has none of another part's, nor
    has a process that has loaded none. Of a
    quantised layer the scales are taken, which no rounding of a device changes.
    """
    found = []
    for name, weight in stored_tensors(model, buffers=False):
        own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        is_added = ".lora_" in name or ".modules_to_save." in name
        is_matrix = weight.dim() > 1 or name.endswith(SCALES)
        has_numbers = weight.numel() > 0 and not weight.is_meta
        if _IN_A_LAYER.search(name) and not is_added and is_matrix and has_numbers:
            if weight.is_floating_point():
                found.append((own, weight.detach()))
    return found


def _entries(weight: Tensor) -> list[float]:
    flat = weight.reshape(-1)
    return [float(value) for value in flat[:: max(1, len(flat) // _NUM_ENTRIES)][:_NUM_ENTRIES]]
