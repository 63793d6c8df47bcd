"""Instruments that say what fine-tuning did to a model; each can be used alone."""

from balora.evaluation.answers import extract_answer
from balora.evaluation.inheritance import Inheritance, MeasureOptions, measure, text_loss
from balora.evaluation.table import format_table

__all__ = [
    "Inheritance",
    "MeasureOptions",
    "extract_answer",
    "format_table",
    "measure",
    "text_loss",
]
