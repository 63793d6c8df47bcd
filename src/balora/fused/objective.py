"""The whole objective of a micro-step, with the numbers of the plain one and without its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from balora.config import BALoraConfig
from balora.fused.block import TokenCoefficients, TokenSettings
from balora.fused.checks import check_terms
from balora.fused.spectral import HeadFactor
from balora.fused.tokens import CHUNK_BYTES, token_terms
from balora.models.head import LMHead
from balora.objective import (
    Coefficients,
    Counterfactual,
    LossTerms,
    Normalizer,
    Objective,
    coefficients_at,
    spectral_rows,
)
from balora.regularizers import nlg


class FusedObjective:
    """:func:`balora.objective.nlg_objective` for a frozen head, without the logits.

    Keeps the factor of the head that the SVD term needs, and makes it anew when the head is
    replaced; between :meth:`prepare` and :meth:`release` it is that of the head given there.

    Args:
        config: Coefficients, temperature, top-K, and the settings of the SVD term.
        chunk_bytes: Memory for logits; see :func:`~balora.fused.token_terms`.
    """

    def __init__(self, config: BALoraConfig, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.config = config
        self.chunk_bytes = chunk_bytes
        self._factor: HeadFactor | None = None
        self._is_held = False

    def prepare(self, head: LMHead) -> None:
        """Make the factor that the SVD term of every following call takes, where the term is on.

        A head that is split over processes is gathered anew in each step, so that nothing of the
        gathered one tells that it is still the same.

        Args:
            head: Whole and frozen, and to stay as it is.
        """
        if self.config.svd_coef and not head.is_trained:
            self._make_factor(head)
            self._is_held = True

    def release(self) -> None:
        """Look at the head of every call again."""
        self._is_held = False

    def _make_factor(self, head: LMHead) -> HeadFactor:
        if self._factor is None or not self._factor.is_of(head):
            self._factor = HeadFactor(head)
        return self._factor

    def __call__(
        self,
        hidden: Tensor,
        reference_hidden: Tensor | None,
        targets: Tensor,
        *,
        head: LMHead,
        normalizer: Normalizer | None = None,
        coefficients: Coefficients | None = None,
    ) -> Objective:
        """Compute every term that is on, from the hidden states of the valid tokens.

        Args:
            hidden: Student hidden states, shape ``(M, D)``.
            reference_hidden: The pre-trained model's at the same tokens, shape ``(M, D)``, held
                constant; ``None`` where the consistency is off.
            targets: The tokens to predict, shape ``(M,)``.
            head: The frozen output layer.
            normalizer: What the sums are divided by; ``None`` means these tokens.
            coefficients: A term whose coefficient is 0 is not computed; ``None`` takes those of
                the configuration at the start of its schedule.

        Returns:
            The loss, the only one with a gradient, that of ``hidden``; the unweighted terms,
            normalised; the counts for the log. With ``M == 0`` zeros, the loss in the graph.

        Raises:
            ValueError: For inputs that do not fit together and a head that is trained.
            NonFiniteError: If an input or a term is NaN or infinite.
        """
        normalizer = normalizer or Normalizer(len(targets))
        coefficients = coefficients or coefficients_at(self.config, 0.0)
        tokens = token_terms(
            hidden,
            reference_hidden,
            targets,
            head=head,
            settings=self._token_settings(coefficients),
            chunk_bytes=self.chunk_bytes,
        )
        loss = normalizer.token_mean(tokens.loss)
        assert tokens.task is not None  # its coefficient is 1
        regularizers = (tokens.consistency, tokens.diversity)
        terms = LossTerms(
            normalizer.token_mean(tokens.task),
            *(None if term is None else normalizer.token_mean(term) for term in regularizers),
        )
        counts = tokens.counts
        if coefficients.svd:
            rows = spectral_rows(hidden, self.config)
            counts = counts._replace(num_svd_rows=len(rows))
            svd = normalizer.step_mean(self._svd_term(rows, head))
            check_terms({"svd": svd})
            loss = loss + coefficients.svd * svd
            terms = terms._replace(svd=svd.detach())
        return Objective(loss, terms, counts)

    def replay(
        self,
        hidden: Tensor,
        reference_hidden: Tensor | None,
        targets: Tensor,
        *,
        head: LMHead,
        normalizer: Normalizer,
        counterfactual: Counterfactual | None = None,
    ) -> Tensor:
        """Return :func:`balora.objective.replay_loss` for a frozen head, without the logits.

        Args:
            hidden: Student hidden states at the scored tokens, shape ``(M, D)``.
            reference_hidden: The pre-trained model's, held constant; ``None`` for cross-entropy.
            targets: The tokens of the texts, shape ``(M,)``.
            head: The frozen output layer, of both models.
            normalizer: Of the scored tokens of the optimizer step.
            counterfactual: Of balanced replay.

        Raises:
            ValueError: For inputs that do not fit together and a head that is trained.
            NonFiniteError: If an input or the term is NaN or infinite.
        """
        is_kl = reference_hidden is not None
        coefficients = TokenCoefficients(task=float(not is_kl), consistency=float(is_kl))
        tokens = token_terms(
            hidden,
            reference_hidden,
            targets,
            head=head,
            settings=TokenSettings(coefficients),
            counterfactual=counterfactual,
            chunk_bytes=self.chunk_bytes,
        )
        return normalizer.token_mean(tokens.loss)

    def _token_settings(self, coefficients: Coefficients) -> TokenSettings:
        return TokenSettings(
            TokenCoefficients(1.0, coefficients.consistency, coefficients.diversity),
            self.config.temperature,
            self.config.entropy_top_k,
        )

    def _svd_term(self, rows: Tensor, head: LMHead) -> Tensor:
        factor = self._factor if self._is_held else None
        factor = factor or self._make_factor(head)
        term = nlg.spectrum_loss(
            factor.singular_values(rows),
            k=self.config.svd_k,
            variance_coef=self.config.svd_variance_coef,
            denominator=self.config.svd_denominator,
            max_rank=min(len(head.weight), head.max_rank),
        )
        return term.to(torch.promote_types(rows.dtype, torch.float32))
