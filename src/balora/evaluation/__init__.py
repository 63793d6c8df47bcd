"""Instruments that say what fine-tuning did to a model; each can be used alone.

The public names load what they need when they are first used: the registry of metrics, which
recipes are checked against, needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balora.evaluation.answers import extract_answer
    from balora.evaluation.instrument import Instrument, MeasureOptions, Models
    from balora.evaluation.instruments import measure
    from balora.evaluation.retention import text_loss
    from balora.evaluation.table import format_table

_HOMES = {
    "Instrument": "instrument",
    "MeasureOptions": "instrument",
    "Models": "instrument",
    "extract_answer": "answers",
    "format_table": "table",
    "measure": "instruments",
    "text_loss": "retention",
}

__all__ = [
    "Instrument",
    "MeasureOptions",
    "Models",
    "extract_answer",
    "format_table",
    "measure",
    "text_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'balora.evaluation' has no attribute {name!r}")
    return getattr(import_module(f"balora.evaluation.{_HOMES[name]}"), name)
