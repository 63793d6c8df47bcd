"""The regularizers of BA-LoRA as pure functions of tensors; torch and nothing else.

:mod:`~balora.regularizers.nlg` holds the three terms for causal language models and
:mod:`~balora.regularizers.nlu` the three for sequence classification. Their functions have the
same names, so import the module: ``from balora.regularizers import nlg``.
:mod:`~balora.regularizers.spectral` is the differentiable spectrum under both SVD terms.
"""

from __future__ import annotations

from balora.regularizers import nlg, nlu, spectral

__all__ = ["nlg", "nlu", "spectral"]
