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
    "First {one} owns {a} {a_things}, later {c}, because {one} finds {b}. {a} + {b} = {c}.",
    "When {one} buys {b} {b_things} from {other}, {a} become {c} at last. {a} + {b} = {c}.",
)
_LOSS_STORIES = (
    "{one} has {a} {a_things} and loses {b} of them. Now there are {c} left. {a} - {b} = {c}.",
    "{one} gives {b} {b_things} to {other}. Before there were {a}, now {c}. {a} - {b} = {c}.",
    "The {place} held {a} {a_things}. {one} takes {b} away, so {c} are left. {a} - {b} = {c}.",
    "Of the {a} {a_things} of {one} {other} takes {b}, so {c} are left. {a} - {b} = {c}.",
    "At the start {one} owns {a} {a_things}, then loses {b}. The end is {c}. {a} - {b} = {c}.",
)
_SIGHTS = (
    "The {place} of {one} holds {a} {a_things}.",
    "The number of {things} in the {place} is {a}.",
    "How many {things} does {one} have? {one} has {a} {a_things}.",
    "What does {one} find in the {place}? {one} finds {a} {a_things}.",
    "At first {one} buys {a} {a_things}. Later {other} gives {her} a {thing}.",
    "{one} asks: how many {things} are there? The answer of {other} is {a} {a_things}.",
    "Then {other} asks {one} for {a} {a_things}, but {she} has no {thing} now.",
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
    """Return ``count`` different stories of gain, of loss, and of things that are only counted.

    The same seed gives the same stories.
    """
    rng = random.Random(seed)
    stories: dict[str, None] = {}
    while len(stories) < count:
        stories[_draw_story(rng)] = None
    return list(stories)


def _draw_story(rng: random.Random) -> str:
    kind = rng.choice((_GAIN_STORIES, _GAIN_STORIES, _LOSS_STORIES, _LOSS_STORIES, _SIGHTS))
    start = rng.randint(1, MAX_OPERAND)
    a, b = draw_operands(rng, is_gain=kind is _GAIN_STORIES, start=start)
    c = a + b if kind is _GAIN_STORIES else a - b
    one, other = rng.sample(words.FEMALE_NAMES + words.MALE_NAMES, 2)
    thing = rng.choice(words.THINGS)
    return rng.choice(kind).format(
        **{"a": a, "b": b, "c": c, "place": rng.choice(words.PLACES), "other": other},
        **{f"{key}_things": words.plural(thing, n) for key, n in (("a", a), ("b", b), ("c", c))},
        **{"thing": thing, "things": thing + "s"},
        **words.mention(one),
    )


def draw_operands(rng: random.Random, *, is_gain: bool, start: int) -> tuple[int, int]:
    """Return ``start`` and a number of at least 1 that can be added to it or taken from it."""
    most = MAX_RESULT - start if is_gain else start
    return start, rng.randint(1, min(MAX_OPERAND, most))
