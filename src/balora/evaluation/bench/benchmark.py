"""What a benchmark is: fixed problems, and what an answer that a model wrote is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark."""

    id: str
    """What tells it from the others of its benchmark."""
    instruction: str
    """What the model is asked, before the template of the run is laid around it."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """What judging needs of the data: the gold answer, the tests, the category."""


@dataclass(frozen=True)
class Verdict:
    """What one answer is worth, and why."""

    scores: Mapping[str, float | None]
    """By the name of a metric, such as ``{"gsm8k": 1.0, "gsm8k_paper": 0.0}``; the score of a
    benchmark is the mean over its problems. None is left out of the mean."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What a reader of the rows sees beside them: ``answer``, ``gold``, ``status``, ..."""


class Benchmark(Protocol):
    """Problems, and the judge of their answers. Made with a `BenchConfig`; holds no model."""

    name: str
    """As `benchmarks` names it."""
    max_new_tokens: int
    """Longest answer, unless the user sets another."""
    asks_a_server: bool
    """Whether a model of a server judges, which costs money and may be away for a while."""
    cot_suffix: str
    """What the answer begins with, unless the user sets another; often empty."""

    def check(self) -> None:
        """Refuse what judging lacks here, before a model is loaded.

        Raises:
            ConfigError: Such as for a package, a sandbox or a judge that is not there.
        """

    def problems(self) -> list[Problem]:
        """Return the problems, all of them, in their order.

        Raises:
            DataError: If the data cannot be read, or lack a column.
        """

    def judge(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Return a verdict for each answer; a problem with several answers is there several times.

        Answers are judged after all of them were written, so that this may take processes of its
        own; progress is its own to show.
        """

    def facts(self) -> Mapping[str, Any]:
        """Return what judged: versions of scorers, the kind of sandbox, the name of the judge."""
