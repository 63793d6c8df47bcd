"""What judged the answers to a benchmark, in words; loads no torch, since reports say it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Facts = Mapping[str, Mapping[str, Any]]
"""By benchmark, what judged it: versions of scorers, the kind of sandbox, the name of the judge."""


def judged_by(models: Iterable[Facts]) -> list[str]:
    """Return a line for each benchmark that says what judged it, and whether that was one thing.

    Args:
        models: Of each model, or of each run, that was asked.
    """
    counts: dict[str, Counter[str]] = {}
    for facts in models:
        for benchmark, own in facts.items():
            if not own:  # a row of the time before any was recorded
                continue
            words = ", ".join(f"{name} {value}" for name, value in own.items())
            counts.setdefault(benchmark, Counter())[words] += 1
    return [_line(benchmark, found) for benchmark, found in counts.items()]


def _line(benchmark: str, found: Counter[str]) -> str:
    if len(found) == 1:
        return f"{benchmark} is judged with {next(iter(found))}."
    parts = ", ".join(f"{n} of {found.total()} with {words}" for words, n in found.items())
    return f"{benchmark} is not judged alike, so its scores cannot be compared: {parts}."
