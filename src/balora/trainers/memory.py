"""What the weights of a run take up, and what the reference of the consistency term adds."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.anchored import ANCHOR_BUFFERS
from balora.trainers.sharding import shape_of

logger = logging.getLogger(__name__)


class MemoryReport(NamedTuple):
    """Bytes of the tensors that a model holds."""

    frozen: int
    """Parameters that are not trained, and buffers: the base model, once."""
    trained: int
    """Parameters that are trained; the optimizer comes on top."""
    anchor: int
    """The frozen start of the adapter: all that the reference pass costs beyond the model."""

    def __str__(self) -> str:
        reference = "without a second model"
        if self.anchor:
            cost = f"{readable(self.anchor)} for a frozen copy of the adapter's start"
            reference = f"at the cost of the anchor alone: {cost}"
        return (
            f"Weights: {readable(self.frozen)} frozen, {readable(self.trained)} trained. "
            f"The pre-trained model serves as its own reference, {reference}."
        )


def memory_report(model: nn.Module) -> MemoryReport:
    """Count the bytes of ``model``'s weights by what they are for; shared tensors count once."""
    buffers = dict(model.named_buffers())
    anchors = {name: b for name, b in buffers.items() if name.split(".")[-2] in ANCHOR_BUFFERS}
    others = [buffer for name, buffer in buffers.items() if name not in anchors]
    parameters = list(model.parameters())
    return MemoryReport(
        frozen=_bytes([p for p in parameters if not p.requires_grad] + others),
        trained=_bytes([p for p in parameters if p.requires_grad]),
        anchor=_bytes(list(anchors.values())),
    )


class ReportMemory(TrainerCallback):  # type: ignore[misc]
    """Log the report when training begins, once the anchor is there."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Called by the Trainer after it has loaded a checkpoint, where there is one."""
        if state.is_world_process_zero:
            logger.info("%s", memory_report(model))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(math.prod(shape_of(tensor)) * tensor.element_size() for tensor in tensors)


def readable(num_bytes: int) -> str:
    """Return ``num_bytes`` in the largest decimal unit that leaves 1 or more."""
    value, units = float(num_bytes), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while round(value) >= 1000 and (larger := next(units, None)):
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if round(value) >= 1000 else f"{value:.3g} {unit}"
