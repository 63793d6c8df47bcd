"""The objective for causal language models with the logits of one chunk of rows at a time.

The same numbers as :func:`balora.objective.nlg_objective`, in about the time of three matrix
products and in memory that does not grow with ``M`` beyond a chunk: the token terms by chunks
(:mod:`~balora.fused.tokens`), the SVD term from the hidden states alone
(:mod:`~balora.fused.spectral`). The head is frozen.
"""

from __future__ import annotations

from balora.fused.block import TokenCoefficients, TokenSettings
from balora.fused.objective import FusedObjective
from balora.fused.spectral import HeadFactor
from balora.fused.tokens import TokenTerms, token_terms

__all__ = [
    "FusedObjective",
    "HeadFactor",
    "TokenCoefficients",
    "TokenSettings",
    "TokenTerms",
    "token_terms",
]
