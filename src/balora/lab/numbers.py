"""Sentences about numbers: counting, sums, and stories told to their end.

They are what the base model learns its words and numbers from. They are worded unlike the problems
of :mod:`balora.lab.problems`, never ask for an answer and never follow the instruction format.
"""

from __future__ import annotations

import random

from balora.lab import words

MAX_OPERAND = 9
MAX_RESULT = 18

_ADDITION = (
    "{a} + {b} = {c}.",
    "{a} plus {b} is {c}.",
    "{a} and {b} make {c}.",
)
_SUBTRACTION = (
    "{a} - {b} = {c}.",
    "{a} minus {b} is {c}.",
    "If you take {b} away from {a}, {c} remain.",
)
_GAIN_STORIES = (
    "{one} has {a} {a_things} and gets {b} more. Now there are {c} {c_things}. {a} + {b} = {c}.",
    "{other} gives {b} {b_things} to {one}, who had {a}. So {one} has {c}. {a} + {b} = {c}.",
    "The {place} held {a} {a_things}. {one} puts in {b} more, which makes {c}. {a} + {b} = {c}.",
)
_LOSS_STORIES = (
    "{one} has {a} {a_things} and loses {b} of them. Now there are {c} left. {a} - {b} = {c}.",
    "{one} gives {b} {b_things} to {other}. Before there were {a}, now {c}. {a} - {b} = {c}.",
    "The {place} held {a} {a_things}. {one} takes {b} away, so {c} are left. {a} - {b} = {c}.",
)


def counting_sentences() -> list[str]:
    """Return counts up and down and neighbours, all numbers up to :data:`MAX_RESULT`."""
    up = [", ".join(map(str, range(start, start + 6))) for start in range(MAX_RESULT - 4)]
    down = [", ".join(map(str, range(start, start - 6, -1))) for start in range(5, MAX_RESULT + 1)]
    after = [f"After {n} comes {n + 1}" for n in range(MAX_RESULT)]
    before = [f"Before {n + 1} comes {n}" for n in range(MAX_RESULT)]
    return [sentence + "." for sentence in up + down + after + before]


def sum_sentences() -> list[str]:
    """Return every addition and subtraction in every wording.

    One number goes up to :data:`MAX_RESULT`, the other up to :data:`MAX_OPERAND`; no result
    leaves the range from 0 to :data:`MAX_RESULT`.
    """
    operands = [(a, b) for a in range(MAX_RESULT + 1) for b in range(MAX_OPERAND + 1)]
    return [
        template.format(a=a, b=b, c=c)
        for templates, sign in ((_ADDITION, 1), (_SUBTRACTION, -1))
        for template in templates
        for a, b in operands
        if 0 <= (c := a + sign * b) <= MAX_RESULT
    ]


def story_sentences(*, seed: int, count: int) -> list[str]:
    """Return ``count`` different stories of gain and loss; the same seed gives the same ones."""
    rng = random.Random(seed)
    stories: dict[str, None] = {}
    while len(stories) < count:
        stories[_draw_story(rng)] = None
    return list(stories)


def _draw_story(rng: random.Random) -> str:
    is_gain = rng.random() < 0.5
    a, b = draw_operands(rng, is_gain=is_gain, start=rng.randint(1, MAX_OPERAND))
    c = a + b if is_gain else a - b
    one, other = rng.sample(words.FEMALE_NAMES + words.MALE_NAMES, 2)
    thing = rng.choice(words.THINGS)
    named = {key: words.plural(thing, n) for key, n in zip("abc", (a, b, c), strict=True)}
    return rng.choice(_GAIN_STORIES if is_gain else _LOSS_STORIES).format(
        **{"one": one, "other": other, "place": rng.choice(words.PLACES), "a": a, "b": b, "c": c},
        **{f"{key}_things": word for key, word in named.items()},
    )


def draw_operands(rng: random.Random, *, is_gain: bool, start: int) -> tuple[int, int]:
    """Return ``start`` and a number of at least 1 that can be added to it or taken from it."""
    most = MAX_RESULT - start if is_gain else start
    return start, rng.randint(1, min(MAX_OPERAND, most))
