"""An instrument measures metrics of a model beside the pre-trained one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.evaluation.metrics import measured_by
from balora.models.limits import max_positions

if TYPE_CHECKING:
    from balora.evaluation.batches import Row

Metrics: TypeAlias = dict[str, float | None]
"""By the name of the metric; None where there is nothing to measure it on."""


class Models(NamedTuple):
    """Two models on one device, and what makes tokens of texts for both."""

    tuned: PreTrainedModel
    """The fine-tuned causal language model, or the pre-trained one itself."""
    base: PreTrainedModel
    """The pre-trained model."""
    tokenizer: PreTrainedTokenizerBase
    """Of both."""


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure on, and how; the defaults suit small models."""

    batch_size: int = 16
    """Examples at once."""
    max_new_tokens: int = 256
    """Longest answer to generate."""
    max_length: int | None = None
    """Longest sequence; None takes the model's own limit."""
    examples: Sequence[tuple[str, str]] = ()
    """Held-out prompts and completions."""
    retention_text: str | None = None
    """Plain text that the model should still model well; None where there is none."""
    encoded: dict[tuple[int, int], list[Row]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """The examples as tokens, by tokenizer and limit: made once for all models measured on them."""

    def limit(self, model: PreTrainedModel) -> int:
        """Return the longest sequence in tokens."""
        return self.max_length or max_positions(model)


@dataclass(frozen=True)
class Instrument:
    """What measures some metrics."""

    name: str
    """As the registry of metrics names it."""
    measure: Callable[[Models, MeasureOptions], Metrics]
    """Returns all of its metrics; the models' mode and torch's generators stay as they are."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of its metrics, in the order of the registry."""
        return measured_by(self.name)
