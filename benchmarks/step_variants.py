"""The training steps that `bench_step` compares: what each computes, and its least arithmetic.

`authors` follows the description of the authors' published BA-LoRA: a second copy of the model for
the reference, in-place PiSSA, and every term on the full logits of both. It is written here from
that description; only the shift of the labels is ours.

Shapes: ``B`` sequences, ``S`` positions, ``M`` valid tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from benchmarks.step_models import Models, Student, Workload, linear_shapes, model_config
from torch import Tensor

from balora.config import BALoraConfig
from balora.objective import Coefficients, Normalizer, coefficients_at, next_token_targets
from balora.regularizers.spectral import evenly_spaced_rows
from balora.trainers.step import ObjectiveStep, add_objective

PAPER = BALoraConfig.preset("paper")
ICLR = BALoraConfig.preset("iclr2026", schedule="constant")  # all terms on, as late in a run
TASK_ALONE = Coefficients(0.0, 0.0, 0.0)

Loss = Callable[[], Tensor]


class Variant(NamedTuple):
    """One way to train a step."""

    description: str
    prepare: Callable[[Models], tuple[Student, Loss]]
    """Make the models and return the student with the function that computes its loss."""
    num_references: int
    """Passes of the pre-trained model."""
    is_anchored: bool = False


def make_step(variant: Variant, models: Models) -> Callable[[], Tensor]:
    """Return the function that trains one step and returns its loss."""
    student, loss_of = variant.prepare(models)

    def step() -> Tensor:
        with models.workload.precision():
            loss = loss_of()
        loss.backward()
        student.optimizer.step()
        student.optimizer.zero_grad()
        return loss.detach()

    return step


def fused(student: Student, models: Models, config: BALoraConfig, active: Coefficients) -> Loss:
    """Return the loss as `BALoraSFTTrainer` computes it; with no term active, the task's alone."""
    base, batch = student.model.get_base_model(), models.batch
    add_objective(base, config)
    forward = base.forward
    _, targets = next_token_targets(batch["labels"])
    objective_step = ObjectiveStep(active, Normalizer(len(targets)))

    def loss() -> Tensor:
        base.forward = forward  # other variants share the model
        total: Tensor = student.model(**batch, objective_step=objective_step).loss
        return total

    return loss


def balora(models: Models, config: BALoraConfig, *, with_svd: bool = True) -> tuple[Student, Loss]:
    """Anchored PiSSA with the fused objective."""
    active = coefficients_at(config, 0.0)
    active = active if with_svd else active._replace(svd=0.0)
    return models.anchored, fused(models.anchored, models, config, active)


def pissa(models: Models) -> tuple[Student, Loss]:
    """In-place PiSSA with the fused cross-entropy."""
    return models.in_place, fused(models.in_place, models, PAPER, TASK_ALONE)


def lora(models: Models) -> tuple[Student, Loss]:
    """Plain LoRA with the fused cross-entropy."""
    return models.plain, fused(models.plain, models, PAPER, TASK_ALONE)


def pissa_logits(models: Models) -> tuple[Student, Loss]:
    """In-place PiSSA with the model's own loss, on the logits of all positions."""
    student, batch = models.in_place, models.batch
    return student, lambda: student.model(**batch, use_cache=False).loss


def authors(models: Models, *, with_svd: bool = True) -> tuple[Student, Loss]:
    """In-place PiSSA, a second model, and the terms on the logits of both."""
    student, reference, batch = models.in_place, models.reference, models.batch
    mask, _ = next_token_targets(batch["labels"])
    svd_rows = models.workload.authors_svd_rows if with_svd else 0

    def loss() -> Tensor:
        outputs = student.model(**batch, use_cache=False)
        with torch.no_grad():
            reference_logits = reference(batch["input_ids"], use_cache=False).logits.float()
        terms = authors_terms(outputs.logits.float()[mask], reference_logits[mask], svd_rows)
        total: Tensor = outputs.loss + terms
        return total

    return student, loss


def authors_terms(logits: Tensor, reference_logits: Tensor, svd_rows: int) -> Tensor:
    """Return the weighted sum of the three terms on logits of shape ``(M, V)``."""
    temperature = ICLR.temperature
    student = F.log_softmax(logits / temperature, dim=-1)
    reference = F.softmax(reference_logits / temperature, dim=-1)
    consistency = F.kl_div(student, reference, reduction="batchmean") * temperature**2
    kept = F.softmax(logits.topk(ICLR.entropy_top_k, dim=-1).values, dim=-1)
    entropy = -(kept * kept.log()).sum(dim=-1).mean()
    total = ICLR.consistency_coef * consistency - ICLR.diversity_coef * entropy
    if svd_rows:
        rows = logits[evenly_spaced_rows(len(logits), svd_rows, device=logits.device)]
        sigma = torch.linalg.svdvals(rows)
        total = total - ICLR.svd_coef * sigma[: ICLR.svd_k].sum() / torch.linalg.norm(rows)
    return total


VARIANTS = {
    "pissa": Variant("in-place PiSSA, fused cross-entropy", pissa, 0),
    "lora": Variant("LoRA, fused cross-entropy", lora, 0),
    "pissa_logits": Variant("in-place PiSSA, the model's own loss on all logits", pissa_logits, 0),
    "balora": Variant("the paper's coefficients", partial(balora, config=PAPER), 1, True),
    "balora_without_svd": Variant(
        "the paper's coefficients, no SVD term",
        partial(balora, config=PAPER, with_svd=False),
        1,
        True,
    ),
    "balora_iclr2026": Variant("the ICLR 2026 settings", partial(balora, config=ICLR), 1, True),
    "authors": Variant("as published: two models, full logits, `svdvals`", authors, 1),
    "authors_without_svd": Variant("the same, no SVD term", partial(authors, with_svd=False), 1),
}


def matmul_flops(variant: Variant, workload: Workload) -> int:
    """Return the multiply-adds, times two, that a step of ``variant`` cannot do without.

    Every pass of the body, the products with the head, and the adapters; causal attention counts
    half. A frozen layer has no weight gradient, so its backward is one product; that of an adapter
    is two. The anchored branch has twice the rank in forward and in the gradient of its input, but
    the gradients of A and B need once. Left out: everything elementwise, and the spectrum.
    """
    config, num_tokens = model_config(workload), workload.batch * workload.length
    num_valid = workload.batch * (workload.length - max(workload.prompt, 1))
    shapes = list(linear_shapes(workload))
    linear = 2 * sum(inputs * outputs for inputs, outputs in shapes)
    adapter = 2 * workload.rank * sum(inputs + outputs for inputs, outputs in shapes)
    attention = 2 * config.num_hidden_layers * workload.length * config.hidden_size
    branch = adapter * (2 if variant.is_anchored else 1)
    forward = linear + attention + branch
    student = forward * (2 if workload.checkpointing else 1)
    student += linear + 2 * attention + branch + adapter
    body = num_tokens * (student + variant.num_references * (linear + attention))
    head = 2 * config.hidden_size * config.vocab_size * (2 + variant.num_references)
    return body + head * num_valid
