"""One micro-step inside the model's own forward: both passes, then the objective.

Calling the model's body outside the wrapper that DDP or accelerate puts around it gives gradients
that are not synchronised, and no error. So the forward of the base model gets one more keyword
argument, in the way trl gives it its fused head: without it nothing changes, with it the forward
returns the terms of the objective instead of logits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from balora.anchored import reference_mode
from balora.config import BALoraConfig
from balora.head import check_head, head_of
from balora.objective import (
    Coefficients,
    LossTerms,
    Normalizer,
    TokenCounts,
    next_token_targets,
    nlg_terms,
)
from balora.trainers.packing import check_packing, is_packed


@dataclass(frozen=True)
class ObjectiveStep:
    """What the forward needs to know to return the objective of one micro-step."""

    coefficients: Coefficients
    normalizer: Normalizer


class ObjectiveOutput(NamedTuple):
    """What the forward returns for an :class:`ObjectiveStep`."""

    loss: Tensor
    terms: LossTerms
    counts: TokenCounts


def add_objective(model: PreTrainedModel, config: BALoraConfig) -> None:
    """Let ``model(..., labels=labels, objective_step=step)`` return an :class:`ObjectiveOutput`.

    Args:
        model: The base model, inside any PEFT wrapper; patched in place.
        config: The objective.
    """
    original_forward = model.forward
    checked = False

    # the original signature stays: `generate` validates its arguments against it
    @functools.wraps(type(model).forward)
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
        return _objective(self, config, objective_step, args, kwargs)

    model.forward = MethodType(forward, model)


def _objective(
    model: Any,
    config: BALoraConfig,
    step: ObjectiveStep,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ObjectiveOutput:
    labels: Tensor = kwargs.pop("labels")
    kwargs["use_cache"] = False
    mask, targets = next_token_targets(labels)
    hidden = model.base_model(*args, **kwargs).last_hidden_state[mask]
    reference_hidden = None
    if step.coefficients.consistency:
        with reference_mode(model):
            reference_hidden = model.base_model(*args, **kwargs).last_hidden_state[mask]
    terms, counts = nlg_terms(
        hidden,
        reference_hidden,
        targets,
        head=head_of(model),
        config=config,
        normalizer=step.normalizer,
        coefficients=step.coefficients,
    )
    return ObjectiveOutput(terms.total(step.coefficients), terms, counts)
