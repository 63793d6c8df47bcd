r"""How much memory a run will need, computed from the shapes of its model: no weight is read.

Everything but the activations is counted exactly. Those are an estimate of what the backward pass
of one micro-step of :math:`T` tokens keeps: the outputs of all linear layers, :math:`4 d` numbers a
layer for its norms and sums, and :math:`2 r` for each adapted layer,

.. math:: T \, b \left( \sum_{linear} O + 4 d L + 2 r N \right)

with :math:`b` bytes a number. With gradient checkpointing it is :math:`d` numbers for each of the
:math:`L` layers, and all of the above for one layer, which is computed anew. The attention scores
are not kept (sdpa and flash attention), and logits come in chunks of a fixed size.

Shapes: ``d`` hidden size, ``O`` output features, ``r`` rank, ``N`` adapted layers.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.config.quantization import Quantization
from balora.fused.tokens import CHUNK_BYTES
from balora.models.adapter import inner_model
from balora.trainers.memory import memory_report, readable

_IN_A_LAYER = re.compile(r"^(.*?\.\d+)\.")
_BLOCK, _BLOCK_OF_BLOCKS = 64, 256
"""Numbers that share a scale in 4-bit weights, and scales that do when they are quantised too."""

_STATES = {"sgd": 0, "adafactor": 0, "lion": 1, "adagrad": 1, "rmsprop": 1}
"""Numbers that an optimizer keeps for each trained one, by the beginning of its name; else 2."""


class Tokens(NamedTuple):
    """A micro-step: how many rows of how many tokens."""

    rows: int
    length: int


class MemoryPlan(NamedTuple):
    """Bytes of one process in training, by what they are for."""

    weights: int
    """The base, quantised where the recipe says so; with full fine-tuning, what is trained too."""
    adapter: int
    """What is trained beside the base: A and B, and a classifier's head."""
    anchor: int
    """The frozen start of the adapter."""
    gradients: int
    optimizer: int
    factor: int
    """The head's Gram factor of the SVD term, float64."""
    activations: int
    """Estimated, with the chunks of logits."""

    def lines(self, tokens: Tokens) -> list[str]:
        """Return one line for each part that there is, and their sum."""
        about = {
            "activations": f"of {tokens.rows} x {tokens.length} tokens, estimated",
            "factor": "of the output layer, for the SVD term",
            "anchor": "the frozen start of the adapter",
        }
        found = [
            f"{name:<12} {readable(value):>8}  {about.get(name, '')}".rstrip()
            for name, value in self._asdict().items()
            if value
        ]
        return [*found, f"{'together':<12} {readable(sum(self)):>8}"]


def memory_plan(
    trainer: Any, quantization: Quantization, tokens: Tokens, *, optimizer: str
) -> MemoryPlan:
    """Return what a trainer will need, whose model may be blank.

    Args:
        trainer: Of either kind, built and not trained.
        quantization: How the base will be quantised; its layers are not while they are blank.
        tokens: Of a micro-step at most.
        optimizer: Its name, as in ``optim``.
    """
    model, args = trainer.model, trainer.args
    report = memory_report(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    is_full = not any(isinstance(m, LoraLayer) for m in model.modules())
    num_states = next((n for name, n in _STATES.items() if optimizer.startswith(name)), 2)
    num_bytes = 1 if "8bit" in optimizer else 4
    saved = sum(_saved_by(model, quantization).values())
    return MemoryPlan(
        weights=report.frozen - saved + (report.trained if is_full else 0),
        adapter=0 if is_full else report.trained,
        anchor=report.anchor,
        gradients=report.trained,
        optimizer=sum(p.numel() for p in trained) * num_states * num_bytes,
        factor=_factor(trainer),
        activations=_activations(model, args, tokens),
    )


def _saved_by(model: nn.Module, quantization: Quantization) -> dict[str, int]:
    """Return the bytes that quantising saves of each matrix in a layer."""
    if quantization.scheme is None:
        return {}
    return {
        name: weight.numel() * weight.element_size() - _quantised_bytes(weight, quantization)
        for name, weight in _matrices(model)
    }


def _matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the weights of the base's linear layers inside of its numbered layers, by name."""
    return [
        (name, module.weight)
        for name, module in inner_model(model).named_modules()
        if type(module) in (nn.Linear, Conv1D) and _IN_A_LAYER.match(name) and ".lora_" not in name
    ]


def _quantised_bytes(weight: Tensor, quantization: Quantization) -> int:
    number = weight.numel()
    if not quantization.load_in_4bit:
        return number + 4 * len(weight)  # a scale for each row
    scales = number / _BLOCK
    each = 1 + 4 / _BLOCK_OF_BLOCKS if quantization.use_bnb_nested_quant else 4
    return round(number / 2 + scales * each)


def _factor(trainer: Any) -> int:
    """Return the bytes of R, with R' R = W' W of the output layer; 0 where no term needs it."""
    head = inner_model(trainer.model).get_output_embeddings()
    if not trainer.balora_config.svd_coef or head is None or head.weight.requires_grad:
        return 0
    size: int = head.weight.shape[1] + (getattr(head, "bias", None) is not None)
    return 8 * size**2


def _activations(model: Any, args: Any, tokens: Tokens) -> int:
    base = inner_model(model)
    layers: dict[str, int] = {}
    for name, module in base.named_modules():
        if found := _IN_A_LAYER.match(name):
            layers[found[1]] = layers.get(found[1], 0) + _outputs(name, module)
    width = base.config.get_text_config().hidden_size
    layers = {name: number + 4 * width for name, number in layers.items() if number}
    checkpoints = getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing
    kept = sum(layers.values())
    if checkpoints and layers:
        kept = width * len(layers) + max(layers.values())
    num_bytes = 2 if args.bf16 or args.fp16 else base.dtype.itemsize
    logits = CHUNK_BYTES if base.get_output_embeddings() is not None else 0
    return tokens.rows * tokens.length * num_bytes * kept + logits


def _outputs(name: str, module: Any) -> int:
    """Return the numbers for each token that one module of a layer adds to what is kept."""
    if isinstance(module, LoraLayer):
        return 2 * max(module.r.values(), default=0)
    if ".lora_" in name or type(module) not in (nn.Linear, Conv1D):
        return 0
    return int(module.weight.shape[0 if isinstance(module, nn.Linear) else 1])
