"""MT-Bench: open questions in eight categories, the first turn of each, rated by a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from balora.cache import default_cache
from balora.data.layouts import texts_problem
from balora.errors import ConfigError, DataError
from balora.evaluation.bench.benchmark import Problem, Verdict
from balora.evaluation.bench.config import BenchConfig, BenchmarkData
from balora.evaluation.bench.judge import Judge, Rating
from balora.evaluation.bench.rows import read_rows
from balora.evaluation.bench.server import Server
from balora.state import read_json_lines

_PUBLISHED = BenchmarkData(dataset_name="HuggingFaceH4/mt_bench_prompts", dataset_split="train")
_WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose answers are judged beside a reference."""
_IDS, _TURNS = ("question_id", "prompt_id"), ("turns", "prompt")
"""Columns, in FastChat's file and on the hub."""


class MtBench:
    """MT-Bench's 80 questions; the ``reference`` in some of their rows is another set, not read."""

    name = "mt_bench"
    max_new_tokens = 1024
    cot_suffix = ""
    asks_a_server = True

    def __init__(self, config: BenchConfig) -> None:
        self.config = config
        cache = Path(config.judge_cache) if config.judge_cache else default_cache() / "judge"
        self.judge_model = Judge(Server(str(config.judge_model), "`judge_model`"), cache)
        self.served: set[str] = set()

    def check(self) -> None:
        """Refuse a judge that cannot be asked.

        Raises:
            ConfigError: As `Server.check`.
        """
        self.judge_model.server.check()

    def problems(self) -> list[Problem]:
        """Return the first turns, and the references of math, reasoning and coding.

        Raises:
            DataError: If a question lacks its reference.
        """
        data = self.config.data_of(self.name)
        references = _references(data.references)  # first: it is a file, and the rows may be far
        rows = read_rows(
            data, self.name, published=_PUBLISHED, columns=_missing, problem=_row_problem
        )
        return [_problem(row, references) for row in rows]

    def judge(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Ask the judge for every answer, several at once.

        Raises:
            BaloraError: If it fails for good; what it has said is kept.
        """
        with ThreadPoolExecutor(self.config.judge_workers) as pool:
            asked = [
                pool.submit(self.judge_model.rate, one.instruction, text, one.row["reference"])
                for one, text in zip(problems, texts, strict=True)
            ]
            try:
                with tqdm(asked, desc="Judging mt_bench", leave=False) as bar:
                    ratings = [future.result() for future in bar]
            finally:
                pool.shutdown(cancel_futures=True)
        self.served |= {rating.model for rating in ratings}
        return [_verdict(one, rating) for one, rating in zip(problems, ratings, strict=True)]

    def facts(self) -> Mapping[str, Any]:
        """Return the judge as its server calls it."""
        return {"judge": ", ".join(sorted(self.served)) or self.config.judge_model}


def _verdict(problem: Problem, rating: Rating) -> Verdict:
    category = problem.row["category"]
    scores = {
        "mt_bench": rating.rating,
        f"mt_bench_{category}": rating.rating,
        "unrated": float(rating.rating is None),
    }
    shown = {
        "category": category,
        "rating": rating.rating,
        "status": "rated" if rating.rating is not None else "the judge gave no rating",
        "judgment": rating.text,
        "judge_model": rating.model,
        "attempt": rating.attempt,
    }
    return Verdict(scores, shown)


def _of(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next(row[name] for name in names if name in row)


def _missing(columns: list[str]) -> str | None:
    for names in (_IDS, _TURNS, ("category",)):
        if not set(names) & set(columns):
            return " or ".join(f"`{name}`" for name in names)
    return None


def _row_problem(row: Mapping[str, Any]) -> str | None:
    turns = _of(row, _TURNS)
    if not isinstance(turns, list) or not turns:
        return "it has no list of turns"
    return texts_problem({"the first turn": turns[0], "category": row["category"]})


def _problem(row: Mapping[str, Any], references: Mapping[str, str]) -> Problem:
    name, category = str(_of(row, _IDS)), row["category"]
    reference = references.get(name) if category in _WITH_REFERENCE else None
    if category in _WITH_REFERENCE and reference is None:
        raise DataError(
            f"question {name} of mt_bench ({category}) has no reference in "
            "`mt_bench.references`; name the file that has GPT-4's answer to it."
        )
    return Problem(name, _of(row, _TURNS)[0], {"category": category, "reference": reference})


def _references(file: str | None) -> dict[str, str]:
    """Return the first turns of the reference answers, as FastChat publishes them, by question."""
    fix = (
        "Name FastChat's file of GPT-4's answers, data/mt_bench/reference_answer/gpt-4.jsonl, with "
        "`--mt_bench.references`."
    )
    if file is None:
        raise ConfigError(
            "`mt_bench.references` is missing: answers to math, reasoning and coding are judged "
            f"beside a reference. {fix}"
        )
    try:
        return {
            str(row["question_id"]): row["choices"][0]["turns"][0]
            for row in read_json_lines(Path(file), fix)
        }
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"`{file}` has a row without a reference answer. {fix}") from error
