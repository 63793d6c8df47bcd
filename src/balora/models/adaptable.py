"""Which layers of a model an adapter can be put on, found before a weight is loaded.

The adapter is put on a model without weights, as PEFT will put it on the real one. What PEFT cannot
adapt there is named, with layers of this very model that work.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from balora.errors import ConfigError
from balora.models.source import ModelSource

SETTING = "`lora_target_modules`"

Shapes = dict[str, tuple[int, ...]]


def check_adaptable(config: PretrainedConfig, lora: LoraConfig, source: ModelSource) -> None:
    """Refuse layers that cannot be adapted, and a rank above one of them.

    Args:
        config: Of the model.
        lora: As it will be put on the model.
        source: The model in the words of the user.

    Raises:
        ConfigError: Naming `lora_target_modules` or `lora_r`, the layer, and what works.
    """
    probe = _Probe(config, lora)
    asked = probe.given if isinstance(probe.given, str) else sorted(probe.given)
    if not probe.matches(probe.given):
        raise ConfigError(
            f"{SETTING} {asked!r} match no linear layer of {source.words}. Use `all-linear` or "
            f"{probe.advice()}."
        )
    shapes = probe.shapes(probe.given)
    if shapes is None:
        # without any by name it is the experts of a mixture, which lie together in one parameter
        unfit = ", ".join(f"`{name}`" for name in probe.unfit()) or "the experts of its mixture"
        raise ConfigError(
            f"{SETTING} {asked!r} takes in layers of {source.words} that cannot be adapted: "
            f"{unfit}. Set {probe.advice()}."
        )
    if probe.head in shapes:
        raise ConfigError(
            f"{SETTING} {asked!r} takes in the output layer `{probe.head}`, but the regularizers "
            f"compare its logits with the pre-trained ones. Set {probe.advice()}."
        )
    small = {name: shape for name, shape in shapes.items() if min(shape) < lora.r}
    if small:
        name, shape = min(small.items(), key=lambda item: min(item[1]))
        names = probe.workable(lora.r)
        way = f", or set {_listed(names)}" if names else ""
        raise ConfigError(
            f"`lora_r` is {lora.r}, but `{name}` has shape {shape} and so only {min(shape)} "
            f"singular values. Lower the rank to {min(shape)}{way}."
        )


class _Probe:
    """Puts an adapter of rank 1 on models without weights, of one config."""

    def __init__(self, config: PretrainedConfig, lora: LoraConfig) -> None:
        self.config, self.lora, self.given = config, lora, lora.target_modules
        model = self._model()
        linear = {
            name: tuple(module.weight.shape)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
        self.modules = [name for name, _ in model.named_modules()]
        output = model.get_output_embeddings() if self.is_causal else None
        self.head = next((n for n, m in model.named_modules() if m is output), None)
        body = f"{model.base_model_prefix}."
        self.linear = {name: shape for name, shape in linear.items() if name.startswith(body)}

    @property
    def is_causal(self) -> bool:
        return bool(self.lora.task_type == TaskType.CAUSAL_LM)

    def _model(self) -> PreTrainedModel:
        auto = AutoModelForCausalLM if self.is_causal else AutoModelForSequenceClassification
        with torch.device("meta"):
            return auto.from_config(deepcopy(self.config))

    def matches(self, targets: Any) -> bool:
        """Say whether any module is meant; `all-linear` always means some."""
        if targets == "all-linear":
            return True
        own = self._lora(targets)
        return any(check_target_module_exists(own, name) for name in self.modules)

    def _lora(self, targets: Any) -> LoraConfig:
        own = deepcopy(self.lora)
        own.target_modules, own.r = targets, 1
        own.init_lora_weights = True  # another start would compute with weights that are not there
        return own

    def shapes(self, targets: Any) -> Shapes | None:
        """Return the weights that would be adapted by the layers' names, None where one cannot."""
        own = self._lora(targets)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(self._model(), own, low_cpu_mem_usage=True)
        except (ValueError, NotImplementedError, AttributeError):
            return None
        if own.target_parameters:  # PEFT has found experts
            return None
        layers = [(n, m) for n, m in model.get_base_model().named_modules()]
        return {
            name: tuple(module.get_base_layer().weight.shape)
            for name, module in layers
            if isinstance(module, LoraLayer)
        }

    def unfit(self) -> list[str]:
        """Return the endings that are asked for and cannot be adapted."""
        own = self._lora(self.given)
        asked = self.linear
        if self.given != "all-linear":
            asked = {n: () for n in self.modules if n and check_target_module_exists(own, n)}
        return [name for name in _endings(asked) if self.shapes([name]) is None]

    def workable(self, rank: int) -> list[str]:
        """Return the endings of linear layers in the body that an adapter of a rank fits."""
        found = []
        for name in _endings(self.linear):
            shapes = self.shapes([name])
            if shapes and all(min(shape) >= rank for shape in shapes.values()):
                found.append(name)
        return found

    def advice(self) -> str:
        """Return the setting that works: layers that the rank fits, else such that can be adapted.

        Without any such layer the model cannot be adapted at all.
        """
        names = self.workable(self.lora.r) or self.workable(1)
        return _listed(names) if names else "`method: full`"


def _listed(names: list[str]) -> str:
    return f"{SETTING[:-1]}: [{', '.join(names)}]`"


def _endings(names: Iterable[str]) -> list[str]:
    """Return the last parts of module names, each once; two parts where the last is a number."""
    endings = (
        ".".join(name.split(".")[-2:]) if re.search(r"\.\d+$", name) else name.split(".")[-1]
        for name in names
    )
    return list(dict.fromkeys(endings))
