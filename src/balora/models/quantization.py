"""Quantised bases: what ``from_pretrained`` is told, and what their weights are.

The one place that knows bitsandbytes and torchao. Neither is imported before a base is quantised.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    TorchAoConfig,
)
from transformers.pytorch_utils import Conv1D

from balora.config.quantization import Quantization
from balora.errors import ConfigError
from balora.models.names import name_of_dtype
from balora.models.source import ModelSource

_LIBRARIES = {"load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes", "torchao": "torchao"}
_WEIGHTS = {"Params4bit": "load_in_4bit", "Int8Params": "load_in_8bit"}
"""Classes of bitsandbytes' weights, with the field that makes them."""
_PACKS = "support_avx512bf16_for_cpu"
"""Attribute of a 4-bit layer by which bitsandbytes packs it for a CPU."""
_IN_A_LAYER = re.compile(r"\.\d+\.")


def check_can_quantise(source: ModelSource, config: PretrainedConfig) -> None:
    """Refuse to quantise without the library, or what is quantised already.

    Raises:
        ConfigError: Naming the field.
    """
    quantization = source.quantization
    if quantization.scheme is None:
        return
    asked, library = quantization.setting, _LIBRARIES[quantization.scheme]
    kind = quantised_checkpoint(config)
    if kind is not None:
        raise ConfigError(
            f"{asked}, but {source.words} is quantised already ({kind}). Leave "
            f"`{quantization.scheme}` out, or name the model that it was made from."
        )
    if source.options.get("quantization_config") is not None:
        raise ConfigError(
            f"{asked}, but `model_init_kwargs` has a `quantization_config` of its own. Keep one."
        )
    if find_spec(library) is None:
        raise ConfigError(
            f"{asked}, which needs {library}, and that is not installed: `pip install "
            "'balora[quantization]'`."
        )


def quantised_checkpoint(config: PretrainedConfig) -> str | None:
    """Return the method that the weights of a checkpoint are quantised by, None where they are."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    kind = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(kind, "value", kind))


def quantization_config(auto: Any, source: ModelSource, config: PretrainedConfig) -> Any:
    """Return the ``quantization_config`` that a base is loaded with.

    Args:
        auto: transformers' class that loads it.
        source: The model, with a scheme.
        config: Of the model, with its number of classes.
    """
    arguments = _arguments(auto, source, config)
    if source.quantization.torchao:
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), **arguments)
    if source.quantization.load_in_8bit:
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_no_cast)
    return BitsAndBytesConfig(**arguments)


def quantization_of(model: Any) -> Quantization:
    """Return how a model was quantised when it was loaded; of a quantised checkpoint, nothing."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or quantizer.pre_quantized:
        return Quantization()
    settings = quantizer.quantization_config
    if isinstance(settings, BitsAndBytesConfig):
        return Quantization.of(
            {
                "load_in_4bit": settings.load_in_4bit,
                "load_in_8bit": settings.load_in_8bit,
                "bnb_4bit_quant_type": settings.bnb_4bit_quant_type,
                "bnb_4bit_compute_dtype": name_of_dtype(settings.bnb_4bit_compute_dtype),
                "use_bnb_nested_quant": settings.bnb_4bit_use_double_quant,
            }
        )
    is_int8 = type(getattr(settings, "quant_type", None)).__name__ == "Int8WeightOnlyConfig"
    return Quantization(torchao="int8_weight_only" if is_int8 else None)


def as_code(auto: Any, source: ModelSource, config: PretrainedConfig) -> tuple[str, str] | None:
    """Return the imports and the expression that make the same ``quantization_config`` elsewhere.

    Args:
        auto: As for :func:`quantization_config`.
        source: The model; ``None`` is returned where it has no scheme.
        config: As for :func:`quantization_config`.
    """
    if source.quantization.scheme is None:
        return None
    arguments = _arguments(auto, source, config)
    spelled = [f"{name}={value!r}" for name, value in arguments.items()]
    if not source.quantization.torchao:
        imports = "from transformers import BitsAndBytesConfig"
        return imports, f"BitsAndBytesConfig({', '.join(spelled)})"
    imports = (
        "from torchao.quantization import Int8WeightOnlyConfig\n"
        "from transformers import TorchAoConfig"
    )
    return imports, f"TorchAoConfig({', '.join(['Int8WeightOnlyConfig()', *spelled])})"


def _arguments(auto: Any, source: ModelSource, config: PretrainedConfig) -> dict[str, Any]:
    quantization, kept = source.quantization, kept_modules(auto, config)
    if quantization.torchao:
        return {} if kept is None else {"modules_to_not_convert": kept}
    arguments: dict[str, Any] = {str(quantization.scheme): True}
    if quantization.load_in_4bit:
        dtype = quantization.bnb_4bit_compute_dtype or source.dtype
        dtype = (config.dtype or "float32") if dtype == "auto" else dtype
        arguments["bnb_4bit_quant_type"] = quantization.bnb_4bit_quant_type
        arguments["bnb_4bit_compute_dtype"] = name_of_dtype(dtype)
        if quantization.use_bnb_nested_quant:
            arguments["bnb_4bit_use_double_quant"] = True
    return arguments if kept is None else {**arguments, "llm_int8_skip_modules": kept}


def auto_class(*, is_classifier: bool) -> Any:
    """Return transformers' class that loads a base of one kind."""
    return AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM


def kept_modules(auto: Any, config: PretrainedConfig) -> list[str] | None:
    """Return the linear layers of a classifier that are not quantised: those outside of its layers.

    A head or a pooler may be new, and is trained in full then. ``None`` leaves it to transformers,
    which keeps the output layer of a language model.
    """
    if auto is not AutoModelForSequenceClassification:
        return None
    with torch.device("meta"):
        model = auto.from_config(deepcopy(config))
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    return [name for name in linear if not _IN_A_LAYER.search(name)]


def _says_no_cast(record: logging.LogRecord) -> bool:
    """Return whether a record is another one than that activations are rounded: every layer's."""
    return "inputs will be cast" not in record.getMessage()


def check_is_quantised(model: nn.Module, source: ModelSource) -> None:
    """Refuse a model of which nothing is quantised though that was asked for, blank or loaded.

    Raises:
        ConfigError: Naming the field.
    """
    scheme = source.quantization.scheme
    kinds = (nn.Linear,) if scheme == "torchao" else (nn.Linear, Conv1D)
    layers = [m for n, m in model.named_modules() if _IN_A_LAYER.search(n)]
    if scheme is not None and not any(isinstance(layer, kinds) for layer in layers):
        raise ConfigError(
            f"{source.quantization.setting}, but {source.words} has no layer that it quantises. "
            f"Leave `{scheme}` out{', or set `load_in_4bit: true`' if scheme == 'torchao' else ''}."
        )


def keep_unpacked(model: nn.Module) -> None:
    """Keep the 4-bit weights of a model on a CPU in the one form that has gradients.

    On a CPU with bfloat16 instructions bitsandbytes packs them anew, in place, in the first forward
    in eval mode without gradients: with rounded scales, and for kernels that no gradient passes. A
    reference pass would do that in the middle of a step.

    Raises:
        ConfigError: If the weights are packed already.
    """
    for name, module in model.named_modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
            state = getattr(module.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise ConfigError(
                    f"the 4-bit model has run without gradients on this CPU, and `{name}` is in a "
                    "form that cannot be trained. Load the model anew."
                )


def quantised_by(model: nn.Module) -> str | None:
    """Return the field by which weights of a model are quantised; None where none is."""
    found = (_scheme_of(p) for p in model.parameters())
    return next((scheme for scheme in found if scheme is not None), None)


def is_quantised(weight: Tensor) -> bool:
    """Say whether a weight is stored in fewer bits than it stands for."""
    return _scheme_of(weight) is not None


def _scheme_of(weight: Tensor) -> str | None:
    kind = type(weight)
    return "torchao" if kind.__module__.startswith("torchao.") else _WEIGHTS.get(kind.__name__)


@torch.no_grad()
def quantised(module: Any, matrix: Tensor) -> nn.Parameter:
    """Return a matrix quantised as the weight of a layer is.

    Args:
        module: A layer with a quantised weight.
        matrix: Shape ``(O, I)``.
    """
    weight: Any = module.weight
    scheme, device = _scheme_of(weight), weight.device
    made: nn.Parameter
    if scheme == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        rows, columns = matrix.shape
        layer = nn.Linear(columns, rows, bias=False, device="meta")
        layer.weight = nn.Parameter(matrix.to(weight.dtype), requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig())
        return layer.weight
    import bitsandbytes

    if scheme == "load_in_8bit":
        module.state.CB = module.state.SCB = None  # of the weight that was
        made = bitsandbytes.nn.Int8Params(matrix.half().cpu(), requires_grad=False).to(device)
        return made
    made = bitsandbytes.nn.Params4bit(
        matrix.to(weight.quant_state.dtype).cpu(),
        requires_grad=False,
        blocksize=weight.blocksize,
        compress_statistics=weight.compress_statistics,
        quant_type=weight.quant_type,
        quant_storage=weight.quant_storage,
    ).to(device)
    module.quant_state = getattr(made, "quant_state")  # noqa: B009
    return made


SCALES = (".absmax", ".absmax_scale", ".SCB", ".scale")
"""How the names of the scales of quantised weights end."""


def stored_tensors(model: nn.Module, *, buffers: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield every plain tensor that the weights of a model consist of, by name, each once.

    A quantised weight consists of its numbers and their scales.

    Args:
        model: Any model.
        buffers: Whether its buffers are yielded as well.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = [*module._parameters.items(), *(module._buffers.items() if buffers else ())]
        for name, tensor in own:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield from _parts(f"{path}.{name}" if path else name, tensor, module)


def _parts(name: str, tensor: Tensor, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    weight: Any = tensor
    scheme = _scheme_of(tensor)
    if scheme == "torchao":
        for part in weight.__tensor_flatten__()[0]:
            yield f"{name}.{part}", getattr(weight, part)
        return
    yield name, tensor
    scales: dict[str, Tensor | None] = {}
    if scheme == "load_in_8bit":  # the first forward moves them to the layer's state
        state = getattr(module, "state", None)
        scales["SCB"] = weight.SCB if weight.SCB is not None else getattr(state, "SCB", None)
    elif scheme == "load_in_4bit" and weight.quant_state is not None:
        scales["absmax"] = weight.quant_state.absmax
        scales["absmax_scale"] = getattr(weight.quant_state.state2, "absmax", None)
    yield from ((f"{name}.{part}", scale) for part, scale in scales.items() if scale is not None)
