"""What both trainers do around the objective: its start, its normaliser, its coefficients."""

from __future__ import annotations

from copy import copy
from typing import Any, TypeVar

from torch import Tensor
from transformers import TrainingArguments

from balora.anchored import anchor_adapter
from balora.config import BALoraConfig
from balora.objective import Coefficients, Normalizer, coefficients_at
from balora.trainers.memory import ReportMemory

Arguments = TypeVar("Arguments", bound=TrainingArguments)


class ObjectiveMixin:
    """The part of a trainer that does not depend on what its model predicts."""

    balora_config: BALoraConfig

    def _anchor(self) -> None:
        """Make the adapter an anchored one where it starts from PiSSA, and report its memory."""
        trainer: Any = self
        if self.balora_config.adapter_init == "pissa":
            anchor_adapter(trainer.model, self.balora_config)
        # first, so that its line comes before the progress bar
        trainer.callback_handler.callbacks.insert(0, ReportMemory())

    def _coefficients(self) -> Coefficients:
        """Return the coefficients of the step that is being trained."""
        state: Any = self.state  # type: ignore[attr-defined]
        return coefficients_at(self.balora_config, state.global_step / max(state.max_steps, 1))

    def _normalizer(self, num_items_in_batch: Tensor | int) -> Normalizer:
        """Return what the sums of a micro-step of the training loop are divided by.

        Args:
            num_items_in_batch: The items of the optimizer step, of all processes unless they are
                not averaged.
        """
        trainer: Any = self
        # without averaging, the count is this process's own
        is_global = trainer.args.average_tokens_across_devices
        return Normalizer(
            num_items_in_batch,
            trainer.accelerator.num_processes if is_global else 1,
            trainer.current_gradient_accumulation_steps,
        )


def own_arguments(args: Arguments) -> Arguments:
    """Return arguments that may be changed without the caller's changing too."""
    own = copy(args)
    if own.ddp_broadcast_buffers is None:
        own.ddp_broadcast_buffers = False  # the anchors never change
    return own


def default_output_dir(model: Any) -> str:
    """Return the folder of a run that was given none: the model's name with ``-BALoRA``."""
    name = model if isinstance(model, str) else model.config.name_or_path or "model"
    return f"{name.rstrip('/').split('/')[-1]}-BALoRA"
