"""One micro-step inside the model's own forward: both passes, then the objective.

Calling the model's body outside the wrapper that DDP or accelerate puts around it gives gradients
that are not synchronised, and no error. So the forward of the base model gets one more keyword
argument, in the way trl gives it its fused head: without it nothing changes, with it the forward
returns the terms of the objective instead of logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, wraps
from types import MethodType
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from balora.anchored import reference_mode
from balora.config import BALoraConfig
from balora.errors import NonFiniteError
from balora.fused import FusedObjective
from balora.models.head import check_head, head_of
from balora.objective import (
    Coefficients,
    Normalizer,
    Objective,
    next_token_targets,
    nlg_objective,
)
from balora.trainers.packing import check_packing, is_packed


@dataclass(frozen=True)
class ObjectiveStep:
    """What the forward needs to know to return the objective of one micro-step."""

    coefficients: Coefficients
    normalizer: Normalizer


def add_objective(model: PreTrainedModel, config: BALoraConfig) -> None:
    """Let ``model(..., labels=labels, objective_step=step)`` return an :class:`Objective`.

    Args:
        model: The base model, inside any PEFT wrapper; patched in place.
        config: The objective.
    """
    original_forward = model.forward
    fused = FusedObjective(config)
    checked = False

    # the original signature stays: `generate` validates its arguments against it
    @wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, objective_step: ObjectiveStep | None = None, **kwargs: Any
    ) -> Any:
        nonlocal checked
        if objective_step is None:
            return original_forward(*args, **kwargs)
        if not checked:  # once, on real tokens, when the model is where it will be trained
            with reference_mode(self):
                check_head(self, kwargs["input_ids"][:1, :4])
                if is_packed(kwargs):
                    check_packing(self, kwargs["input_ids"][:1, :4])
            checked = True
        return _objective(self, fused, objective_step, args, kwargs)

    model.forward = MethodType(forward, model)


def _objective(
    model: Any,
    fused: FusedObjective,
    step: ObjectiveStep,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Objective:
    labels: Tensor = kwargs.pop("labels")
    kwargs["use_cache"] = False
    mask, targets = next_token_targets(labels)
    hidden = model.base_model(*args, **kwargs).last_hidden_state[mask]
    reference_hidden = None
    if step.coefficients.consistency:
        with reference_mode(model):
            reference_hidden = model.base_model(*args, **kwargs).last_hidden_state[mask]
    head = head_of(model)
    # full fine-tuning trains the head, which needs a gradient of its own
    objective = partial(_plain_objective, config=fused.config) if head.is_trained else fused
    return objective(
        hidden,
        reference_hidden,
        targets,
        head=head,
        normalizer=step.normalizer,
        coefficients=step.coefficients,
    )


def _plain_objective(*inputs: Any, **settings: Any) -> Objective:
    """Return the plain objective, refusing NaN and infinity as the fused one does."""
    objective = nlg_objective(*inputs, **settings)
    if not objective.loss.isfinite():
        raise NonFiniteError(
            "the loss is NaN or infinite, so the model has diverged or overflowed. Lower the "
            "learning rate, or train in bfloat16 or float32 where it is float16."
        )
    return objective
