"""When a run ends, and what it may replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from balora.config.fields import field_problems
from balora.config.parts import Count, refuse
from balora.config.rules import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppingConfig:
    """When a run ends before its last step."""

    early_stopping_patience: Count | None = None
    """Stop when this many evaluations in a row have not improved the metric; null never stops."""

    early_stopping_threshold: Annotated[float, Interval(ge=0)] = 0.0
    """How much the metric must improve by to count; needs `early_stopping_patience`."""

    def __post_init__(self) -> None:
        refuse("run", field_problems(self, self._threshold_problems))

    def _threshold_problems(self) -> list[str]:
        if self.early_stopping_patience is not None or not self.early_stopping_threshold:
            return []
        return [
            f"`early_stopping_threshold` is {self.early_stopping_threshold}, so "
            "`early_stopping_patience` must be set too"
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What the command does with an existing output, and whether it trains at all."""

    overwrite: bool = False
    """Replace what is in `output_dir`; without it an output that is not empty is refused."""

    dry_run: bool = False
    """Check the recipe, the data and the model, say what would be done, and stop."""

    def __post_init__(self) -> None:
        refuse("run", field_problems(self))
