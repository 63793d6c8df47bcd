r"""The training objective: the shift, the mask and the normaliser live here.

.. math::
    \mathcal{L} = \mathcal{L}_{task} + c_1 \mathcal{L}_{CR} + c_2 \mathcal{L}_{DR}
                  + c_3 \mathcal{L}_{SVDR} + c_4 \mathcal{L}_{replay}

(BA-LoRA, arXiv 2408.04556, Eq. 13 for causal language models, Eq. 9 for classification). What is a
sum over tokens or examples is divided by their number in the optimizer step, so it does not depend
on how the step is cut into micro-batches or processes. What depends on which rows it sees together
(the SVD term, and for classification also the covariance) sees the rows of one micro-step of all
processes and is averaged over the micro-steps.

Shapes: ``B`` sequences, ``S`` positions, ``M`` valid tokens (labels that are not ignored, after
the shift) or examples, ``D`` hidden size, ``V`` vocabulary, ``C`` classes (1 for regression),
``F`` features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from balora.config import BALoraConfig
from balora.distributed import gather_rows
from balora.errors import NonFiniteError
from balora.models.head import LMHead
from balora.regularizers import nlg, nlu
from balora.regularizers.checks import at_least_float32, attached_zero
from balora.regularizers.spectral import evenly_spaced_rows

NO_REFERENCE = (
    "the consistency term is on, but `reference_hidden` is None. Pass the pre-trained model's "
    "hidden states at the same tokens, or set `consistency_coef: 0`."
)


_REPLAY_ROWS = 1024
"""Rows of a chunk of the replay term of a trained head."""


class Coefficients(NamedTuple):
    """The multipliers of the terms at one moment of the run. At 0 a term is off."""

    consistency: float
    diversity: float
    svd: float


class LossTerms(NamedTuple):
    """The unweighted terms of one micro-step. A term that is switched off is ``None``, never 0."""

    task: Tensor
    consistency: Tensor | None = None
    diversity: Tensor | None = None
    svd: Tensor | None = None

    def total(self, coefficients: Coefficients) -> Tensor:
        """Return the weighted sum that is differentiated, shape ``()``."""
        total = self.task
        for term, coefficient in zip(self[1:], coefficients, strict=True):
            if term is not None:
                total = total + coefficient * term
        return total


class TokenCounts(NamedTuple):
    """Sums over the valid tokens of one micro-step, without a graph, tensors of shape ``()``."""

    num_tokens: Tensor
    entropy: Tensor
    num_correct: Tensor
    num_svd_rows: int | None = None
    """Rows that the SVD term saw, of all processes; ``None`` while it is off."""


class ExampleCounts(NamedTuple):
    """Sums over the examples of one micro-step, without a graph, tensors of shape ``()``."""

    num_examples: Tensor
    num_correct: Tensor | None
    """``None`` for regression."""
    num_svd_rows: int | None = None
    """Rows that the SVD term saw, of all processes; ``None`` while it is off."""


class Objective(NamedTuple):
    """The objective of one micro-step."""

    loss: Tensor
    """The weighted sum that is differentiated, shape ``()``."""
    terms: LossTerms
    counts: TokenCounts | ExampleCounts


@dataclass(frozen=True)
class Normalizer:
    """What the sums of one micro-step are divided by."""

    num_tokens: Tensor | int
    """Valid tokens, or examples, of the optimizer step: all its micro-steps, all processes."""
    num_processes: int = 1
    """Processes whose gradients are averaged."""
    num_micro_steps: int = 1
    """Micro-steps of this optimizer step (the last group of an epoch may be shorter)."""

    def token_mean(self, token_sum: Tensor) -> Tensor:
        """Return this micro-step's share of the mean over the items of the optimizer step."""
        # a step without any token is a zero, not 0 / 0; DDP averages, hence the factor
        count = torch.as_tensor(self.num_tokens, device=token_sum.device).clamp(min=1)
        return token_sum * self.num_processes / count

    def step_mean(self, term: Tensor) -> Tensor:
        """Return this micro-step's share of the mean over the micro-steps."""
        return term / self.num_micro_steps


def coefficients_at(config: BALoraConfig, progress: float) -> Coefficients:
    r"""Return the coefficients at ``progress`` of the run, from 0 to 1.

    ``constant`` leaves them as they are. ``iclr2026`` multiplies the consistency by
    :math:`0.1 + 0.9 (1 + \cos \pi t) / 2`, the other two by 0 until t = 0.2 and then by a line
    that reaches 1 at t = 0.25.
    """
    start = Coefficients(config.consistency_coef, config.diversity_coef, config.svd_coef)
    if config.schedule == "constant":
        return start
    progress = min(max(progress, 0.0), 1.0)
    cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
    ramp = min(max((progress - 0.2) / 0.05, 0.0), 1.0)
    return Coefficients(start.consistency * cosine, start.diversity * ramp, start.svd * ramp)


def next_token_targets(labels: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """Pair each position with the token after it: the one place where labels are shifted.

    Args:
        labels: Token ids, ``ignore_index`` at prompt and padding, shape ``(B, S)``.
        ignore_index: Marks what does not count.

    Returns:
        A mask over hidden states of shape ``(B, S)``, true where the next token counts (the last
        position never does), and those M next tokens, shape ``(M,)``, in the mask's order.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=ignore_index)
    mask = following != ignore_index
    return mask, following[mask]


def nlg_objective(
    hidden: Tensor,
    reference_hidden: Tensor | None,
    targets: Tensor,
    *,
    head: Callable[[Tensor], Tensor],
    config: BALoraConfig,
    normalizer: Normalizer,
    coefficients: Coefficients,
) -> Objective:
    """Compute every term that is on, from the hidden states of the valid tokens.

    The readable reference implementation: it builds the ``(M, V)`` logits and leaves every
    gradient, also that of the head, to autograd. :class:`balora.fused.FusedObjective` returns the
    same numbers without them.

    Args:
        hidden: Student hidden states, shape ``(M, D)``.
        reference_hidden: The pre-trained model's at the same tokens, shape ``(M, D)``; needed
            while the consistency coefficient is not 0, held constant.
        targets: The tokens to predict, shape ``(M,)``.
        head: From hidden states to logits, ``(M, D)`` to ``(M, V)``. The SVD term of an
            :class:`~balora.models.head.LMHead` is taken before its soft cap; any other function is
            taken as it is.
        config: Temperature, top-K, and the settings of the SVD term.
        normalizer: What the sums are divided by.
        coefficients: A term whose coefficient is 0 is not computed.

    Returns:
        The loss, the unweighted terms, normalised, and the counts for the log. With ``M == 0``
        every term is a zero still attached to ``hidden``.

    Raises:
        ValueError: If the consistency is on and ``reference_hidden`` is missing.
    """
    logits = head(hidden)
    num_tokens = len(targets)
    task = normalizer.token_mean(F.cross_entropy(logits, targets, reduction="sum"))
    consistency = diversity = svd = None
    if coefficients.consistency:
        if reference_hidden is None:
            raise ValueError(NO_REFERENCE)
        with torch.no_grad():
            reference_logits = head(reference_hidden)
        mean = nlg.consistency_loss(logits, reference_logits, temperature=config.temperature)
        consistency = normalizer.token_mean(mean * num_tokens)
    if coefficients.diversity:
        mean = nlg.diversity_loss(logits, top_k=config.entropy_top_k)
        diversity = normalizer.token_mean(mean * num_tokens)
    counts = _token_counts(logits, targets)
    if coefficients.svd:
        rows = spectral_rows(hidden, config)
        svd = normalizer.step_mean(_svd_term(rows, head, config))
        counts = counts._replace(num_svd_rows=len(rows))
    terms = LossTerms(task, consistency, diversity, svd)
    return Objective(terms.total(coefficients), terms, counts)


def _svd_term(rows: Tensor, head: Callable[[Tensor], Tensor], config: BALoraConfig) -> Tensor:
    """Return the SVD term of the rows of all processes, on logits before any soft cap."""
    linear = head.linear if isinstance(head, LMHead) else head
    return nlg.svd_loss(
        linear(rows),
        k=config.svd_k,
        variance_coef=config.svd_variance_coef,
        denominator=config.svd_denominator,
        max_rank=head.max_rank if isinstance(head, LMHead) else rows.shape[1],
    )


def spectral_rows(hidden: Tensor, config: BALoraConfig) -> Tensor:
    """Return the rows that the SVD term sees: of all processes, at most ``svd_max_tokens``."""
    rows = gather_rows(hidden)
    return rows[evenly_spaced_rows(len(rows), config.svd_max_tokens, device=rows.device)]


class Counterfactual(NamedTuple):
    """What the reference says where the words of some pairs are swapped."""

    hidden: Tensor
    """Its hidden states in the counterfactual text, shape ``(M, D)``, held constant."""
    swap: Tensor
    """The two tokens of each of ``P`` pairs, shape ``(2, P)``."""


def replay_loss(
    hidden: Tensor,
    reference_hidden: Tensor | None,
    targets: Tensor,
    *,
    head: Callable[[Tensor], Tensor],
    reference_head: Callable[[Tensor], Tensor] | None = None,
    normalizer: Normalizer,
    counterfactual: Counterfactual | None = None,
) -> Tensor:
    r"""Return this micro-step's share of the replay term, Eq. 10 on whole texts.

    .. math:: \frac{1}{M} \sum_{i=1}^{M} \mathrm{KL}(q_i \,\|\, p_i)

    with :math:`q` the pre-trained model's distribution and :math:`p` the student's, over the
    vocabulary, at the ``M`` scored tokens of the texts of an optimizer step. Without a reference it
    is the mean of :math:`-\log p_{i, y_i}` (Bansal and Sanghavi, arXiv 2505.13811), which has the
    same expectation up to a constant where the pre-trained model wrote the texts.

    The readable implementation, by chunks that are computed again in the backward pass, so that it
    needs no more than one chunk's logits; every gradient, also that of a trained head, is
    autograd's. :meth:`balora.fused.FusedObjective.replay` has the same numbers for a frozen head.

    Args:
        hidden: Student hidden states at the scored tokens, shape ``(M, D)``.
        reference_hidden: The pre-trained model's, shape ``(M, D)``, held constant; ``None`` for
            the cross-entropy.
        targets: The tokens of the texts, shape ``(M,)``.
        head: From hidden states to the student's logits, ``(M, D)`` to ``(M, V)``.
        reference_head: The pre-trained model's, where ``head`` is trained; ``None``: the same one.
        normalizer: Of the scored tokens of the optimizer step.
        counterfactual: Of balanced replay: :math:`q` is then the mean of two distributions, see
            :func:`balora.regularizers.nlg.balanced_logits`.

    Returns:
        Shape ``()``, in nats, 0 or greater; with ``M == 0`` a zero still attached to ``hidden``.
    """
    total = attached_zero(hidden)
    part = partial(_replay_sum, head=head, reference_head=reference_head or head)
    others = (reference_hidden, counterfactual and counterfactual.hidden)
    for start in range(0, len(hidden), _REPLAY_ROWS):
        rows = slice(start, start + _REPLAY_ROWS)
        references = [other[rows] for other in others if other is not None]
        total = total + checkpoint(
            partial(part, swap=counterfactual and counterfactual.swap),
            hidden[rows],
            targets[rows],
            *references,
            use_reentrant=False,
        )
    return normalizer.token_mean(total)


def _replay_sum(
    hidden: Tensor,
    targets: Tensor,
    *references: Tensor,
    head: Callable[[Tensor], Tensor],
    reference_head: Callable[[Tensor], Tensor],
    swap: Tensor | None,
) -> Tensor:
    logits = head(hidden)
    if not references:
        return F.cross_entropy(logits, targets, reduction="sum")
    with torch.no_grad():
        logits_of = [reference_head(reference) for reference in references]
        reference_logits = logits_of[0]
        if swap is not None:
            reference_logits = nlg.balanced_logits(logits_of[0], logits_of[1], swap)
    return nlg.consistency_loss(logits, reference_logits) * len(targets)


@torch.no_grad()
def _token_counts(logits: Tensor, targets: Tensor) -> TokenCounts:
    log_probs = F.log_softmax(logits, dim=-1)
    return TokenCounts(
        num_tokens=torch.tensor(float(len(targets)), device=logits.device),
        entropy=-(log_probs.exp() * log_probs).sum(),
        num_correct=(logits.argmax(dim=-1) == targets).sum().float(),
    )


def nlu_objective(
    logits: Tensor,
    features: Tensor | None,
    targets: Tensor,
    reference: Tensor | None,
    *,
    config: BALoraConfig,
    normalizer: Normalizer,
    coefficients: Coefficients,
) -> Objective:
    r"""Compute every term of sequence classification that is on (Eq. 9).

    The task loss is the cross-entropy, for ``C == 1`` (regression) the squared error. The three
    regularizers act on the rows that ``config.space`` names. Task loss and consistency are means
    over the examples of the optimizer step. Diversity and SVD, and the consistency of a single
    column, which compares batch vectors, see the rows of one micro-step of all processes together
    and are averaged over the micro-steps; of fewer than two such rows they are 0.

    Args:
        logits: Student logits, shape ``(M, C)``.
        features: What the last linear layer of the head was given, shape ``(M, F)``; needed with
            ``space="features"`` only.
        targets: Class indices, or the numbers of a regression, shape ``(M,)``.
        reference: The model's rows of the same examples before the first step, shape ``(M, C)``
            or ``(M, F)``; needed while the consistency coefficient is not 0, held constant.
        config: The space, and the ``svd_k`` of the SVD term.
        normalizer: What the sums are divided by.
        coefficients: A term whose coefficient is 0 is not computed.

    Returns:
        The loss, the unweighted terms, normalised, and the counts for the log. With ``M == 0``
        every term is a zero still in the graph.

    Raises:
        ValueError: If the features or the reference are needed and missing, or of another shape.
        NonFiniteError: If the logits, the features or a term is NaN or infinite.
    """
    rows = _rows_of(config.space, logits, features)
    task = normalizer.token_mean(task_loss(logits, targets))
    counts = _example_counts(logits, targets)
    consistency = diversity = svd = None
    if coefficients.consistency:
        if reference is None:
            raise ValueError(
                "the consistency term is on, but `reference` is None. Pass the rows of the model "
                "before the first step, or set `consistency_coef: 0`."
            )
        consistency = _nlu_consistency(rows, reference, normalizer)
    if coefficients.diversity or coefficients.svd:
        together = gather_rows(rows)
        if coefficients.diversity:
            diversity = normalizer.step_mean(nlu.diversity_loss(together))
        if coefficients.svd:
            svd = normalizer.step_mean(_nlu_svd(together, config))
            counts = counts._replace(num_svd_rows=len(together))
    terms = LossTerms(task, consistency, diversity, svd)
    _check_finite(logits, rows, terms, config.space)
    return Objective(terms.total(coefficients), terms, counts)


def _rows_of(space: str, logits: Tensor, features: Tensor | None) -> Tensor:
    """Return the rows on which the terms act."""
    if space == "logits":
        return logits
    if features is None or len(features) != len(logits):
        found = "missing" if features is None else f"of shape {tuple(features.shape)}"
        raise ValueError(
            f"`space` is features, but `features` is {found}. Pass what the last linear layer of "
            f"the head was given for each of the {len(logits)} examples."
        )
    return features


def task_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over the examples of the cross-entropy or, for ``C == 1``, squared error.

    Args:
        logits: Shape ``(M, C)``; half precision is computed in float32.
        targets: Class indices, or the numbers of a regression, shape ``(M,)``.
    """
    logits = at_least_float32(logits)
    if logits.shape[1] == 1:
        return (logits[:, 0] - targets.to(logits.dtype)).square().sum()
    return F.cross_entropy(logits, targets, reduction="sum")


def _nlu_consistency(rows: Tensor, reference: Tensor, normalizer: Normalizer) -> Tensor:
    """Return the consistency term: a mean over examples, of a single column a batch term."""
    if rows.shape[1] > 1:
        return normalizer.token_mean(nlu.consistency_loss(rows, reference) * len(rows))
    together = gather_rows(rows)
    if len(together) < 2:  # one number has a sign, not a direction
        return attached_zero(together)
    return normalizer.step_mean(nlu.consistency_loss(together, gather_rows(reference)))


def _nlu_svd(rows: Tensor, config: BALoraConfig) -> Tensor:
    """Return the SVD term; of a single row it would be the constant -1."""
    return attached_zero(rows) if len(rows) < 2 else nlu.svd_loss(rows, k=config.svd_k)


def _check_finite(logits: Tensor, rows: Tensor, terms: LossTerms, space: str) -> None:
    """Refuse NaN and infinity with one look at the device, naming the first place.

    Raises:
        NonFiniteError: Naming the logits, the features or the term.
    """
    named = {"logits": logits, space: rows}
    named |= {f"{n} loss": term for n, term in terms._asdict().items() if term is not None}
    finite = torch.stack([tensor.detach().isfinite().all() for tensor in named.values()]).tolist()
    if not all(finite):
        raise NonFiniteError(
            f"NaN or infinity in the {list(named)[finite.index(False)]}. Look for NaN in the "
            "labels; if there is none the model has diverged or overflowed: lower the learning "
            "rate, or train in bfloat16 or float32 where it is float16."
        )


@torch.no_grad()
def _example_counts(logits: Tensor, targets: Tensor) -> ExampleCounts:
    num_examples = torch.tensor(float(len(targets)), device=logits.device)
    if logits.shape[1] == 1:
        return ExampleCounts(num_examples, None)
    return ExampleCounts(num_examples, (logits.argmax(dim=-1) == targets).sum().float())
