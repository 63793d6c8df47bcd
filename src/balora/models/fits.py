"""Whether an adapter and a base model belong together: one check for every command.

The adapter is made anew on the base's config, without weights, as PEFT would make it to load the
saved tensors into: a layer that one of the two lacks, or a shape that differs, is found whatever
was adapted. What an adapter does not touch (a vocabulary, say) shows in the record of the base
that training leaves beside the adapter.
"""

from __future__ import annotations

import re
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from balora.errors import ConfigError
from balora.models.adapter import Adapter, Shapes, read_adapter
from balora.models.load import check_is_causal, load_config
from balora.models.record import check_recorded_base
from balora.models.source import ModelSource, check_is_not_run, name_the_base, read_recipe

_PREFIX = "base_model.model."
_HEAD = re.compile(r"base_model\.model\.(score|classifier|classification_head|logits_proj)\.")
"""The head of a sequence classification model, whose last layer has one output for each class."""

_ALL_LINEAR = "all-linear"
_EXPERTS = re.compile(r"\.experts\.\d+\.")
"""Experts one by one, as older versions of transformers named them; PEFT converts them."""


def check_adapter_fits(folder: Path, base: ModelSource, *, num_labels: int | None = None) -> None:
    """Refuse a base that the adapter in ``folder`` was not trained on.

    Fewer layers, more layers, other shapes, another head, a base that is an adapter or the run
    itself. Reads the config of the base and the shapes of the adapter; no weight is loaded.

    Args:
        folder: With the adapter.
        base: The pre-trained model that the user names.
        num_labels: Outputs of the head of a classifier; None takes the saved head's.

    Raises:
        ConfigError: Naming the setting of the base, or the file of an adapter that is damaged.
    """
    check_is_not_run(folder, base)
    adapter = read_adapter(folder)
    config = load_config(base)
    check_recorded_base(folder, base, config)
    if adapter.is_classifier:
        config.num_labels = num_labels or num_labels_of(adapter)
        _check_classes(adapter, config.num_labels)
    else:
        check_is_causal(config, base)
    if adapter.config.is_prompt_learning or any(map(_EXPERTS.search, adapter.shapes)):
        return
    expected = _shapes_on(config, adapter)
    _check_ranks(adapter, expected)
    problem = _difference(adapter, expected)
    if problem is not None:
        raise ConfigError(
            f"the adapter in `{folder}` does not fit {base.words}: {problem}. "
            f"{name_the_base(folder)}"
        )


def num_labels_of(adapter: Adapter) -> int:
    """Return the outputs of the head that the adapter of a classifier brings.

    Raises:
        ConfigError: If it brings none.
    """
    heads = sorted(
        key
        for key, shape in adapter.shapes.items()
        if _HEAD.match(key) and key.endswith(".weight") and len(shape) == 2
    )
    if not heads:
        raise ConfigError(
            f"the adapter in `{adapter.folder}` is a classifier's, but holds no head. Name the "
            "folder that `balora train` wrote."
        )
    return adapter.shapes[heads[-1]][0]


def _check_classes(adapter: Adapter, num_labels: int) -> None:
    if num_labels_of(adapter) != num_labels:
        raise ConfigError(
            f"the head in `{adapter.folder}` has {num_labels_of(adapter)} outputs, but its recipe "
            f"or `class_names` has {num_labels} classes. Restore the recipe of the run."
        )


def _shapes_on(config: PretrainedConfig, adapter: Adapter) -> Shapes:
    """Return the names and shapes of the tensors that the adapter has on a model of ``config``."""
    auto = AutoModelForSequenceClassification if adapter.is_classifier else AutoModelForCausalLM
    own: PeftConfig = deepcopy(adapter.config)
    if read_recipe(adapter.folder).get("lora_target_modules") == _ALL_LINEAR:
        own.target_modules = _ALL_LINEAR  # PEFT saves the names that it stood for
    if hasattr(own, "init_lora_weights"):
        own.init_lora_weights = True  # another start would compute with weights that are not there
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # PEFT's hints on settings: loading gives them again
        model = auto.from_config(config)
        model = get_peft_model(model, own, low_cpu_mem_usage=True)
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: tuple(value.shape) for key, value in state.items()}


def _check_ranks(adapter: Adapter, expected: Shapes) -> None:
    """Refuse an adapter whose config says another rank than its tensors have."""
    for key, shape in expected.items():
        found = adapter.shapes.get(key, shape)
        axis = 0 if ".lora_A." in key else 1 if ".lora_B." in key else None
        if axis is None or len(found) != 2 or found[axis] == shape[axis]:
            continue
        raise ConfigError(
            f"`{adapter.folder}` contradicts itself: adapter_config.json gives "
            f"`{_layer_of(key)}` the rank {shape[axis]}, and its tensors have {found[axis]}. "
            "Restore the file that belongs to the weights."
        )


def _difference(adapter: Adapter, expected: Shapes) -> str | None:
    """Say in what the saved tensors differ from those that the base asks for, None where not."""
    found = adapter.shapes
    for key in sorted(expected.keys() & found.keys()):
        if expected[key] != found[key]:
            return (
                f"`{_layer_of(key)}` has shape {_shape_of(key, found)} there, and the model has "
                f"{_shape_of(key, expected)}"
            )
    for key in sorted(expected.keys() - found.keys()):
        return f"the model has `{_layer_of(key)}`, and the adapter has nothing for it"
    # PEFT saves a whole embedding beside an adapter that touches it
    beyond = sorted(key for key in found.keys() - expected.keys() if "embed" not in key)
    for key in beyond:
        return f"it adapts `{_layer_of(key)}`, and the model has no such layer"
    return None


def _layer_of(key: str) -> str:
    return re.sub(r"\.(lora_.*|weight|bias)$", "", key.removeprefix(_PREFIX))


def _shape_of(key: str, shapes: Shapes) -> tuple[Any, ...]:
    """Return the shape of the weight matrix that a pair of factors adapts, else the tensor's."""
    down, up = (re.sub(r"\.lora_[AB]\.", f".lora_{factor}.", key) for factor in "AB")
    if ".lora_" in key and down in shapes and up in shapes:
        return shapes[up][0], shapes[down][1]
    return shapes[key]
