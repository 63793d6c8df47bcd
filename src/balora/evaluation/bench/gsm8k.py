"""GSM8K: problems of school arithmetic, whose answer is one number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from balora.data.layouts import texts_problem
from balora.evaluation.bench.benchmark import Problem, Verdict
from balora.evaluation.bench.config import BenchConfig, BenchmarkData
from balora.evaluation.bench.markers import final_answer
from balora.evaluation.bench.numbers import last_number, the_number
from balora.evaluation.bench.rows import missing_column, read_rows

STEP_BY_STEP = " Let's think step by step."
"""What the authors' prompt lets the answer begin with."""

_PUBLISHED = BenchmarkData(dataset_name="openai/gsm8k", dataset_split="test")
_MOST_DIGITS = 300
_PAPER_NUMBER = re.compile(r"[\-+]?\d*[\.,/]?\d+")


class Gsm8k:
    """GSM8K, as published: ``question``, and ``answer`` with the number after ``####``."""

    name = "gsm8k"
    max_new_tokens = 1024
    cot_suffix = STEP_BY_STEP
    asks_a_server = False

    def __init__(self, config: BenchConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Nothing is needed."""

    def problems(self) -> list[Problem]:
        """Return the problems; the gold answer is that number."""
        rows = read_rows(
            self.config.data_of(self.name),
            self.name,
            published=_PUBLISHED,
            configs=("main",),
            columns=missing_column("question", "answer"),
            problem=_row_problem,
        )
        return [
            Problem(str(number), row["question"], {"gold": _gold(row["answer"])})
            for number, row in enumerate(rows)
        ]

    def judge(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Compare what follows the marker, as exact numbers; beside it two other rules.

        ``gsm8k_paper`` is the authors', which rounds; ``gsm8k_flexible`` takes the last number of
        the text, wherever it stands.
        """
        return [_verdict(p.row["gold"], text) for p, text in zip(problems, texts, strict=True)]

    def facts(self) -> Mapping[str, Any]:
        """Return nothing: the rules are the package's own."""
        return {}


def _gold(answer: str) -> str | None:
    after = final_answer(answer)
    number = None if after is None else the_number(after)
    return None if number is None else str(number)


def _row_problem(row: Mapping[str, Any]) -> str | None:
    if problem := texts_problem({name: row[name] for name in ("question", "answer")}):
        return problem
    if _gold(row["answer"]) is None:
        return "`answer` has no number after `####`"
    return None


def _verdict(gold: str, text: str) -> Verdict:
    wanted, answer = Fraction(gold), final_answer(text)
    number = None if answer is None else the_number(answer)
    if answer is None:
        status = "no answer: no marker is followed by anything"
    elif number is None:
        status = "wrong: no single number after the marker"
    else:
        status = "right" if number == wanted else "wrong"
    scores = {
        "gsm8k": float(number == wanted),
        "gsm8k_paper": float(paper_number(text) == wanted),
        "gsm8k_flexible": float(last_number(text) == wanted),
        "unanswered": float(answer is None),
    }
    return Verdict(scores, {"answer": answer, "gold": gold, "status": status})


def paper_number(text: str) -> int | None:
    """Return what the authors' script takes for the answer: rounded, with one separator at most."""
    parts = text.split("The answer is: ")
    found = _PAPER_NUMBER.search(parts[-1].strip()) if len(parts) > 1 else None
    if found is None or len(found[0]) > _MOST_DIGITS:
        return None
    above, slash, below = found[0].replace(",", "").partition("/")
    if not slash:
        return round(float(above))
    if not above.strip("+-"):
        return None
    return round(float(above)) if int(below) == 0 else round(int(above) / int(below))
