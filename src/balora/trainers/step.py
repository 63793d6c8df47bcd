"""One micro-step inside the model's own forward: both passes, then the objective.

Calling the model's body outside the wrapper that DDP or accelerate puts around it gives gradients
that are not synchronised, and no error. So the forward of the base model gets one more keyword
argument, in the way trl gives it its fused head: without it nothing changes, with it the forward
returns the terms of the objective instead of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from balora.anchored import reference_mode
from balora.config import BALoraConfig
from balora.distributed import rank_and_world
from balora.errors import NonFiniteError
from balora.fused import FusedObjective
from balora.models.head import LMHead, check_head, in_head, let_compute_in_head
from balora.objective import (
    Coefficients,
    Counterfactual,
    LossTerms,
    Normalizer,
    Objective,
    TokenCounts,
    next_token_targets,
    nlg_objective,
    replay_loss,
)
from balora.trainers.packing import check_packing, is_packed


@dataclass(frozen=True)
class ReplayPart:
    """The texts of one micro-step: a second batch, with a normaliser of its own."""

    inputs: dict[str, Tensor]
    """``input_ids`` and ``attention_mask``, shape ``(b, S)``."""
    labels: Tensor
    """The tokens that are scored, -100 elsewhere, shape ``(b, S)``."""
    normalizer: Normalizer
    """Of the scored tokens of the optimizer step."""
    needs_reference: bool = True
    """False for the cross-entropy."""
    reference_hidden: Tensor | None = None
    """The pre-trained model's hidden states at the ``M`` scored tokens, shape ``(M, D)``; ``None``
    computes them anew, with the adapters off."""
    reference_head: LMHead | None = None
    """The pre-trained model's head, where the model's own is trained."""
    swap: Tensor | None = None
    """Of balanced replay: the two tokens of each pair, shape ``(2, P)``."""
    counterfactual_hidden: Tensor | None = None
    """The pre-trained model's hidden states in the texts with the pairs swapped, ``(M, D)``."""
    keep: Callable[[Tensor, Tensor | None], None] | None = None
    """Takes both hidden states where they are computed anew."""


@dataclass(frozen=True)
class ObjectiveStep:
    """What the forward needs to know to return the objective of one micro-step."""

    coefficients: Coefficients
    normalizer: Normalizer
    replay_coefficient: float = 0.0
    """At 0 the step does not replay."""
    replay: ReplayPart | None = None
    """``None`` in a step that replays means that this micro-step has no text."""


class StepResult(NamedTuple):
    """The objective of one micro-step, with the replay term."""

    loss: Tensor
    """The weighted sum that is differentiated, shape ``()``."""
    terms: LossTerms
    counts: TokenCounts
    replay: Tensor | None = None
    """The unweighted replay term, without a graph; ``None`` in a step that does not replay."""


def add_objective(model: PreTrainedModel, config: BALoraConfig) -> FusedObjective:
    """Let ``model(..., labels=labels, objective_step=step)`` return a :class:`StepResult`.

    Args:
        model: The base model, inside any PEFT wrapper; patched in place.
        config: The objective.

    Returns:
        What computes it where the head is frozen.
    """
    original_forward = model.forward
    fused = FusedObjective(config)
    let_compute_in_head(model)
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
                ids = kwargs["input_ids"][:1, :4]
                check_head(self, ids, multiply=partial(in_head, self, _multiply))
                if is_packed(kwargs):
                    check_packing(self, ids)
            checked = True
        return _objective(self, fused, objective_step, args, kwargs)

    model.forward = MethodType(forward, model)
    return fused


def _multiply(head: LMHead, hidden: Tensor) -> Tensor:
    return head(hidden)


def _objective(
    model: Any,
    fused: FusedObjective,
    step: ObjectiveStep,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> StepResult:
    labels: Tensor = kwargs.pop("labels")
    kwargs["use_cache"] = False
    mask, targets = next_token_targets(labels)
    hidden = model.base_model(*args, **kwargs).last_hidden_state[mask]
    reference_hidden = None
    if step.coefficients.consistency:
        with reference_mode(model):
            reference_hidden = model.base_model(*args, **kwargs).last_hidden_state[mask]

    def of_tokens(head: LMHead, hidden: Tensor) -> Objective:
        # full fine-tuning trains the head, which needs a gradient of its own
        objective = partial(_plain_objective, config=fused.config) if head.is_trained else fused
        computed: Objective = objective(
            hidden,
            reference_hidden,
            targets,
            head=head,
            normalizer=step.normalizer,
            coefficients=step.coefficients,
        )
        return computed

    result = StepResult(*in_head(model, of_tokens, hidden))
    return _with_replay(result, model, fused, step) if step.replay_coefficient else result


def _with_replay(
    of_task: StepResult, model: Any, fused: FusedObjective, step: ObjectiveStep
) -> StepResult:
    """Add the replay term; in a micro-step without a text it is 0."""
    if step.replay is None:
        return of_task._replace(replay=torch.zeros_like(of_task.terms.task).detach())
    replay = _replay_loss(model, fused, step.replay)
    if not replay.isfinite():
        raise NonFiniteError(
            "the replay loss is NaN or infinite, so the model has diverged or overflowed. Lower "
            "the learning rate, or train in bfloat16 or float32 where it is float16."
        )
    return of_task._replace(
        loss=of_task.loss + step.replay_coefficient * replay, replay=replay.detach()
    )


def _replay_loss(model: Any, fused: FusedObjective, part: ReplayPart) -> Tensor:
    mask, targets = next_token_targets(part.labels)
    hidden = hidden_states(model, part.inputs, mask)
    reference_hidden = part.reference_hidden
    counterfactual_hidden = part.counterfactual_hidden
    if part.needs_reference and reference_hidden is None:
        with reference_mode(model):
            reference_hidden, counterfactual_hidden = reference_states(
                model, part.inputs, part.labels, part.swap
            )
        if part.keep is not None:
            part.keep(reference_hidden, counterfactual_hidden)
    counterfactual = None
    if part.swap is not None and counterfactual_hidden is not None:
        counterfactual = Counterfactual(counterfactual_hidden, part.swap)

    def of_texts(head: LMHead, hidden: Tensor) -> Tensor:
        plain = partial(replay_loss, reference_head=part.reference_head)
        loss = plain if head.is_trained else fused.replay
        return loss(
            hidden,
            reference_hidden,
            targets,
            head=head,
            normalizer=part.normalizer,
            counterfactual=counterfactual,
        )

    loss: Tensor = in_head(model, of_texts, hidden)
    return loss


def reference_states(
    model: Any, inputs: dict[str, Tensor], labels: Tensor, swap: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the hidden states at the scored tokens, ``(M, D)``, of texts and of their swap.

    Args:
        model: In :func:`balora.anchored.reference_mode`.
        inputs: As in :class:`ReplayPart`.
        labels: As in :class:`ReplayPart`.
        swap: The two tokens of each pair, shape ``(2, P)``; ``None``: there is no second one.
    """
    mask, _ = next_token_targets(labels)
    hidden = hidden_states(model, inputs, mask)
    if swap is None:
        return hidden, None
    # several processes make the same passes: together they gather weights that are split
    if rank_and_world()[1] == 1 and not torch.isin(inputs["input_ids"], swap).any():
        return hidden, hidden  # the text is its own swap
    return hidden, hidden_states(model, swap_tokens(inputs, swap), mask)


def swap_tokens(inputs: dict[str, Tensor], swap: Tensor) -> dict[str, Tensor]:
    """Return a batch with the tokens of every pair swapped, ``input_ids`` of any shape."""
    ids = inputs["input_ids"]
    swapped = ids.clone()
    for token, partner in torch.cat([swap, swap.flip(0)], dim=1).T:
        swapped[ids == token] = partner
    return {**inputs, "input_ids": swapped}


def hidden_states(model: Any, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Return the last hidden states at the positions of a mask, shape ``(M, D)``."""
    output = model.base_model(**inputs, use_cache=False)
    rows: Tensor = output.last_hidden_state[mask]
    return rows


def _plain_objective(*inputs: Any, **settings: Any) -> Objective:
    """Return the plain objective, refusing NaN and infinity as the fused one does."""
    objective = nlg_objective(*inputs, **settings)
    if not objective.loss.isfinite():
        raise NonFiniteError(
            "the loss is NaN or infinite, so the model has diverged or overflowed. Lower the "
            "learning rate, or train in bfloat16 or float32 where it is float16."
        )
    return objective
