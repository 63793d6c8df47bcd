"""Answer a benchmark and judge the answers: the same for every benchmark and every back end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balora import __version__
from balora.evaluation.bench.benchmark import Benchmark, Problem
from balora.evaluation.bench.config import BenchConfig
from balora.evaluation.bench.prompts import Prompter
from balora.evaluation.bench.store import AnswerStore, Key
from balora.evaluation.generation import Generator, Sampling


@dataclass(frozen=True)
class Score:
    """The mean of a metric over the problems of a benchmark."""

    value: float | None
    """None where no problem has one."""
    standard_error: float | None
    """Of the mean, by the spread over the problems; of a share p it is sqrt(p (1 - p) / n)."""
    n: int
    """Problems that have a value."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        """Return the mean of the problems' values."""
        n = len(values)
        if not n:
            return cls(None, None, 0)
        mean = sum(values) / n
        variance = sum((value - mean) ** 2 for value in values) / n
        return cls(mean, math.sqrt(variance / n), n)


@dataclass(frozen=True)
class Measured:
    """What a model is worth on the benchmarks."""

    scores: dict[str, Score]
    """By the name of the metric."""
    facts: dict[str, dict[str, Any]]
    """By benchmark, what judged it: versions, the sandbox, the judge."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as `--json` writes it."""
        scores = {name: vars(score) for name, score in self.scores.items()}
        return {"figures": scores, "facts": self.facts}


@dataclass(frozen=True)
class Sheet:
    """One benchmark as one model is asked it: problems, prompts, and where the answers go."""

    benchmark: Benchmark
    problems: tuple[Problem, ...]
    prompts: Mapping[str, str]
    """By the problem's id."""
    sampling: Sampling
    store: AnswerStore

    def missing(self) -> list[str]:
        """Return the problems that lack an answer.

        Raises:
            ConfigError: As `AnswerStore.missing`.
        """
        return self.store.missing(self.prompts, self.sampling.num_samples)

    def answer(self, generator: Callable[[], Generator]) -> None:
        """Have the missing answers written, one row after the other.

        Args:
            generator: Returns what writes them; asked only if one is missing.
        """
        missing = self.missing()
        if not missing:
            return
        writer = generator()
        self.store.begin()
        prompts = [self.prompts[name] for name in missing]
        for number, texts in writer.generate(prompts, self.sampling):
            self.store.add(missing[number], prompts[number], texts)

    def judge(self) -> dict[str, Score]:
        """Judge all answers, write the rows with their verdicts, and return the scores.

        Every metric has the benchmark's name before it, unless it begins with that.
        """
        samples = range(self.sampling.num_samples)
        keys: list[Key] = [(one.id, number) for one in self.problems for number in samples]
        problems = [one for one in self.problems for _ in samples]
        texts = [self.store.rows[key]["text"] for key in keys]
        verdicts = self.benchmark.judge(problems, texts)
        rows: dict[Key, dict[str, Any]] = {}
        values: dict[str, dict[str, list[float]]] = {}
        for key, verdict in zip(keys, verdicts, strict=True):
            rows[key] = {
                **{name: self.store.rows[key][name] for name in ("id", "sample", "prompt", "text")},
                **verdict.shown,
                "scores": dict(verdict.scores),
            }
            for name, value in verdict.scores.items():
                of_metric = values.setdefault(_qualified(name, self.benchmark.name), {})
                if value is not None:
                    of_metric.setdefault(key[0], []).append(value)
        scores = {
            name: Score.of([sum(of) / len(of) for of in by_problem.values()])
            for name, by_problem in values.items()
        }
        self.store.finish(
            rows,
            {
                "figures": {name: vars(score) for name, score in scores.items()},
                "judged_by": judge_of(self.benchmark),
            },
        )
        return scores


def judge_of(benchmark: Benchmark) -> dict[str, Any]:
    """Return what judges a benchmark here, as JSON holds it: its own facts, and our version.

    Rules of our own are a part of every verdict: what counts as the answer, as the program.
    """
    return {**benchmark.facts(), "balora": __version__}


def _qualified(metric: str, benchmark: str) -> str:
    return metric if metric.startswith(benchmark) else f"{benchmark}/{metric}"


def make_sheet(
    benchmark: Benchmark,
    problems: Sequence[Problem],
    prompter: Prompter,
    config: BenchConfig,
    *,
    folder: Path,
    model: Mapping[str, Any],
) -> Sheet:
    """Return a benchmark laid out for one model.

    Args:
        benchmark: What is asked.
        problems: Those that are asked.
        prompter: Lays them out.
        config: How answers are written.
        folder: Of the model's answers.
        model: What tells the model from others, as JSON holds it.

    Raises:
        ConfigError: If answers are there that were written with other settings.
    """
    suffix = benchmark.cot_suffix if config.cot_suffix is None else config.cot_suffix
    suffix = suffix if benchmark.cot_suffix and suffix.strip() != "none" else ""
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens or benchmark.max_new_tokens,
        stop=prompter.stop,
        temperature=config.temperature,
        top_p=config.top_p,
        num_samples=config.num_samples,
        seed=config.seed,
    )
    settings = {
        **model,
        "backend": config.backend,
        "prompt_template": prompter.template,
        "cot_suffix": suffix,
        "eval_batch_size": config.eval_batch_size,
        **vars(sampling),
    }
    prompts = {one.id: prompter.prompt(one.instruction, suffix) for one in problems}
    store = AnswerStore(folder, benchmark.name, settings, overwrite=config.overwrite)
    sheet = Sheet(benchmark, tuple(problems), prompts, sampling, store)
    sheet.missing()  # refuses other prompts now, before a model is loaded
    return sheet
