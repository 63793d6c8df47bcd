"""MATH: problems of competitions, whose answer is a formula."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tqdm.auto import tqdm

from balora.data.layouts import texts_problem
from balora.evaluation.bench.benchmark import Problem, Verdict
from balora.evaluation.bench.config import BenchConfig, BenchmarkData
from balora.evaluation.bench.gsm8k import STEP_BY_STEP
from balora.evaluation.bench.markers import final_answer, last_boxed
from balora.evaluation.bench.math_answers import (
    MathVerify,
    check_math_verify,
    math_verify_version,
    paper_answer,
    paper_equal,
)
from balora.evaluation.bench.rows import read_rows

_PUBLISHED = BenchmarkData(dataset_name="EleutherAI/hendrycks_math", dataset_split="test")
_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


class Math:
    """MATH, as published: ``problem``, and ``answer`` or a ``solution`` with the answer boxed."""

    name = "math"
    max_new_tokens = 2048
    cot_suffix = STEP_BY_STEP
    asks_a_server = False

    def __init__(self, config: BenchConfig) -> None:
        self.config = config

    @property
    def uses_library(self) -> bool:
        """True when math-verify judges beside the authors' rule."""
        return self.config.math_scorer == "math_verify"

    def check(self) -> None:
        """Refuse to go on without math-verify, if it is to judge.

        Raises:
            ConfigError: If it is not installed.
        """
        if self.uses_library:
            check_math_verify()

    def problems(self) -> list[Problem]:
        """Return the problems, with subject and level where the data have them."""
        rows = read_rows(
            self.config.data_of(self.name),
            self.name,
            published=_PUBLISHED,
            configs=_SUBJECTS,
            columns=_missing,
            problem=_row_problem,
        )
        return [
            Problem(str(number), row["problem"], {"gold": _gold(row), **_kind(row)})
            for number, row in enumerate(rows)
        ]

    def judge(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Judge by math-verify what follows the marker, and by the authors' rule."""
        with ExitStack() as stack:
            library = stack.enter_context(MathVerify()) if self.uses_library else None
            bar = stack.enter_context(tqdm(problems, desc="Judging math", leave=False))
            return list(self._verdicts(zip(bar, texts, strict=True), library))

    def facts(self) -> Mapping[str, Any]:
        """Return the version of math-verify."""
        return {"math_verify": math_verify_version()} if self.uses_library else {}

    def _verdicts(self, pairs: Any, library: MathVerify | None) -> Iterator[Verdict]:
        for problem, text in pairs:
            gold, answer = problem.row["gold"], final_answer(text)
            own = paper_answer(text)
            scores = {"math_paper": float(own is not None and paper_equal(gold, own))}
            status = "wrong"
            if library is not None:
                is_equal = False if answer is None else library.equal(gold, answer)
                status = "not judged: it took too long" if is_equal is None else status
                scores = {"math": float(bool(is_equal)), **scores}
            if next(iter(scores.values())):
                status = "right"
            elif answer is None:
                status = "no answer: no marker is followed by anything"
            scores["unanswered"] = float(answer is None)
            yield Verdict(scores, {**problem.row, "answer": answer, "status": status})


def _missing(columns: list[str]) -> str | None:
    if "problem" not in columns:
        return "`problem`"
    return None if {"answer", "solution"} & set(columns) else "`answer` or `solution`"


def _gold(row: Mapping[str, Any]) -> str | None:
    answer = row.get("answer")
    return answer if answer is not None else last_boxed(row["solution"])


def _kind(row: Mapping[str, Any]) -> dict[str, Any]:
    kind = {"subject": row.get("subject", row.get("type")), "level": row.get("level")}
    return {name: value for name, value in kind.items() if value is not None}


def _row_problem(row: Mapping[str, Any]) -> str | None:
    source = "answer" if row.get("answer") is not None else "solution"
    if problem := texts_problem({name: row.get(name) for name in ("problem", source)}):
        return problem
    return None if _gold(row) else "`solution` has no answer in \\boxed{}"
