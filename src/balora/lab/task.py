"""The downstream task: problems to train on and held-out ones, some of the former answered wrongly.

It tells nothing of the world's facts: what fine-tuning on it does to them it does by forgetting.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from balora.lab.numbers import MAX_RESULT
from balora.lab.problems import ANSWER_WORDING, Problem, draw_problems
from balora.lab.settings import TaskSettings


class Rows(NamedTuple):
    """The rows of the task's files, each with ``instruction`` and ``output``."""

    train: list[dict[str, Any]]
    """Rows to train on."""
    test: list[dict[str, Any]]
    """Held-out rows; all right."""
    noisy: list[dict[str, Any]]
    """Those of ``train`` with a wrong answer: also ``row``, which counts from 0 there, and
    ``true_output``."""


def draw_task(settings: TaskSettings) -> tuple[list[Problem], list[Problem]]:
    """Return the training and the test problems; none occurs in both, in whatever words."""
    seed, max_steps = settings.task_seed, settings.max_problem_steps
    test = draw_problems(seed=f"test {seed}", count=settings.num_test, max_steps=max_steps)
    train = draw_problems(
        seed=f"train {seed}", count=settings.num_train, max_steps=max_steps, exclude=test
    )
    return train, test


def task_rows(settings: TaskSettings) -> Rows:
    """Return the rows; the same settings give the same, and the noise changes no other row.

    Of the training rows the part ``label_noise``, to the nearest row, has a final answer drawn
    uniformly from the other numbers between 0 and 18. The working before it stays right.
    """
    train, test = draw_task(settings)
    rows: list[dict[str, Any]] = [problem.row() for problem in train]
    rng = random.Random(f"noisy {settings.task_seed}")
    noisy = []
    for index in sorted(rng.sample(range(len(rows)), round(settings.label_noise * len(rows)))):
        true_output = rows[index]["output"]
        rows[index] = {**rows[index], "output": _wrong_output(train[index], rng)}
        noisy.append({**rows[index], "row": index, "true_output": true_output})
    return Rows(rows, [problem.row() for problem in test], noisy)


def _wrong_output(problem: Problem, rng: random.Random) -> str:
    wrong = rng.choice([n for n in range(MAX_RESULT + 1) if n != problem.answer])
    working = problem.output().rpartition(ANSWER_WORDING)[0]
    return f"{working}{ANSWER_WORDING}{wrong}"


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows as JSON, one a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)
