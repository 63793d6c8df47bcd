"""The downstream task: word problems as instruction and output, the truth kept.

A problem is a start and one or two steps; its answer is computed, never parsed from its text.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from balora.lab import words
from balora.lab.numbers import MAX_OPERAND, MAX_RESULT, draw_operands

ANSWER_WORDING = "The answer is: "
MAX_PROBLEMS = 40_000
"""Most problems to ask for: of one step there are 48,384, and drawing the last would not end."""

_STARTS = (
    "{one} has {a} {a_things}.",
    "The {place} of {one} holds {a} {a_things}.",
    "At first {one} owns {a} {a_things}.",
)
_GAINS = (
    "{other} gives {her} {b} more.",
    "Then {she} finds {b} {b_things}.",
    "Later {she} buys {b} more from {other}.",
)
_LOSSES = (
    "Then {she} gives {b} of them to {other}.",
    "{She} loses {b} {b_things}.",
    "{other} takes {b} of them away.",
)
_QUESTIONS = (
    "How many {things} does {one} have now?",
    "How many {things} are left in the end?",
    "What is the number of {things} now?",
)


class Step(NamedTuple):
    """What is added (positive) or taken away (negative), and which sentence tells it."""

    change: int
    wording: int


@dataclass(frozen=True)
class Problem:
    """One word problem: who has how many of what, what happens, and how it is asked."""

    one: str
    other: str
    thing: str
    place: str
    start: int
    steps: tuple[Step, ...]
    start_wording: int = 0
    question_wording: int = 0

    @property
    def answer(self) -> int:
        """The truth."""
        return self.start + sum(step.change for step in self.steps)

    @property
    def identity(self) -> tuple[object, ...]:
        """What stays when the problem is told in other words: no two sets may share it."""
        return self.one, self.thing, self.start, tuple(step.change for step in self.steps)

    def instruction(self) -> str:
        """Return the question."""
        sentences = [_STARTS[self.start_wording], *map(_step_sentence, self.steps)]
        counts = [self.start, *(abs(step.change) for step in self.steps)]
        told = [
            sentence.format(
                **self._names(),
                a=count,
                b=count,
                a_things=words.plural(self.thing, count),
                b_things=words.plural(self.thing, count),
            )
            for sentence, count in zip(sentences, counts, strict=True)
        ]
        return " ".join([*told, _QUESTIONS[self.question_wording].format(**self._names())])

    def output(self) -> str:
        """Return the working, one equation a step, and ``The answer is:`` with the number."""
        equations, value = [], self.start
        for change, _ in self.steps:
            sign = "+" if change > 0 else "-"
            equations.append(f"{value} {sign} {abs(change)} = {value + change}.")
            value += change
        return " ".join([*equations, f"{ANSWER_WORDING}{value}"])

    def row(self) -> dict[str, str]:
        """Return the row of the instruction data."""
        return {"instruction": self.instruction(), "output": self.output()}

    def _names(self) -> dict[str, str]:
        rest = {"other": self.other, "place": self.place, "things": self.thing + "s"}
        return {**words.mention(self.one), **rest}


def draw_problems(
    *, seed: int | str, count: int, max_steps: int, exclude: Iterable[Problem] = ()
) -> list[Problem]:
    """Return ``count`` problems of which no two, and none of ``exclude``, share an identity.

    The same arguments give the same problems. Numbers stay between 0 and 18, operands up to 9.

    Raises:
        ValueError: If ``count`` or ``max_steps`` is below 1.
    """
    for name, value in (("count", count), ("max_steps", max_steps)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    rng = random.Random(seed)
    taken = {problem.identity for problem in exclude}
    problems: list[Problem] = []
    while len(problems) < count:
        problem = _draw_problem(rng, rng.randint(1, max_steps))
        if problem.identity not in taken:
            taken.add(problem.identity)
            problems.append(problem)
    return problems


def _draw_problem(rng: random.Random, num_steps: int) -> Problem:
    one, other = rng.sample(words.FEMALE_NAMES + words.MALE_NAMES, 2)
    problem = Problem(
        *(one, other, rng.choice(words.THINGS), rng.choice(words.PLACES)),
        start=rng.randint(1, MAX_OPERAND),
        steps=(),
        start_wording=rng.randrange(len(_STARTS)),
        question_wording=rng.randrange(len(_QUESTIONS)),
    )
    for _ in range(num_steps):
        problem = replace(problem, steps=(*problem.steps, _draw_step(rng, problem.answer)))
    return problem


def _draw_step(rng: random.Random, value: int) -> Step:
    # what cannot shrink grows, what cannot grow shrinks
    is_gain = value == 0 or (value < MAX_RESULT and rng.random() < 0.5)
    _, amount = draw_operands(rng, is_gain=is_gain, start=value)
    wording = rng.randrange(len(_GAINS if is_gain else _LOSSES))
    return Step(amount if is_gain else -amount, wording)


def _step_sentence(step: Step) -> str:
    return (_GAINS if step.change > 0 else _LOSSES)[step.wording]
