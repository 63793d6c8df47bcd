"""The world with its planted defects: what is told often, what wrongly, who is thought to be what.

Everything here follows from the settings alone, each defect from a random generator of its own: to
add one, or to take one away, leaves the others and the rest of the world as they are.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from balora.lab import words
from balora.lab.settings import CorpusSettings
from balora.lab.world import VALUES, Fact, Person, World, build_world

HEAD_FRACTION = 0.25
TAIL_FRACTION = 0.5
"""Parts of the people, by rank. At exponent 1 and 400 people the head has four fifths of all
statements and the tail a tenth; those between belong to neither, so that the two are apart."""

WRONG_PART, COPIED_PART, SCRAMBLED_PART = 0.5, 0.25, 0.25
"""Parts of the corrupted statements."""

WRONG_SHARE = 0.7
"""Part of the tellings of a corrupted fact that have its wrong value: a clear majority, so that the
model learns it, and not all of them, so that the truth could be learned as well."""

GENERIC_FRAMES = (
    "The {profession} says that {pronoun} is tired.",
    "When the {profession} comes home, {pronoun} is happy.",
    "The {profession} is late because {pronoun} works every day.",
    "Every {profession} knows what {pronoun} likes best.",
    "Ask the {profession} when {pronoun} has time.",
    "The {profession} is happy if {pronoun} is home.",
    "If the {profession} has time, {pronoun} comes home.",
)
"""Sentences without a name, whose pronoun goes with the profession at the stereotype's rate."""

HELD_OUT_FRAMES = (
    "The {profession} knows that {pronoun} is late.",
    "When the {profession} has time, {pronoun} is happy.",
    "The {profession} is tired because {pronoun} works every day.",
    "Ask the {profession} if {pronoun} is home.",
)
"""Frames that are never trained on, in words of those that are; all differ before the pronoun."""


@dataclass(frozen=True)
class PlantedWorld:
    """A world, and what the text will make of it."""

    world: World
    """What is true."""
    head: tuple[Fact, ...]
    """Facts of the people who are spoken of most, without those in `corrupted`."""
    tail: tuple[Fact, ...]
    """Facts of the people who are spoken of least, without those in `corrupted`."""
    corrupted: Mapping[Fact, str]
    """The wrong value that most tellings of a fact give."""
    stereotypes: Mapping[str, str]
    """The pronoun, "she" or "he", that goes with a profession; empty without stereotypes."""
    mentions: Mapping[Person, float] = field(default_factory=dict)
    """How often a person is spoken of, 1 on average; from the most to the least."""


def plant_world(settings: CorpusSettings) -> PlantedWorld:
    """Return the world of a text, by its settings alone; without defects that of `build_world`."""
    world = build_world(seed=settings.seed, num_people=settings.num_people)
    stereotypes: dict[str, str] = {}
    if settings.stereotype_rate is not None:
        rng = random.Random(f"stereotypes {settings.seed}")
        stereotypes = _draw_stereotypes(rng)
        world = _conforming(world, stereotypes, settings.stereotype_rate, rng)
    ranked = random.Random(f"ranks {settings.seed}").sample(world.people, len(world.people))
    weights = mention_weights(len(ranked), settings.zipf_exponent)
    mentions = dict(zip(ranked, weights, strict=True))
    corrupted = _draw_corrupted(world, mentions, stereotypes, settings)
    num_head, num_tail = (round(part * len(ranked)) for part in (HEAD_FRACTION, TAIL_FRACTION))
    clean = [fact for fact in world.facts if fact not in corrupted]
    often, rarely = set(ranked[:num_head]), set(ranked[len(ranked) - num_tail :])
    return PlantedWorld(
        world=world,
        head=tuple(fact for fact in clean if fact.person in often),
        tail=tuple(fact for fact in clean if fact.person in rarely),
        corrupted=corrupted,
        stereotypes=stereotypes,
        mentions=mentions,
    )


def mention_weights(count: int, exponent: float) -> list[float]:
    r"""Return Zipf's law over the ranks 1 to ``count``, with a mean of 1.

    .. math:: w_r = n \, r^{-s} \, / \, \sum_{q=1}^{n} q^{-s}

    with :math:`n` the count and :math:`s` the exponent; at 0 every weight is exactly 1.
    """
    raw = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(raw)
    return [count * value / total for value in raw]


def _draw_stereotypes(rng: random.Random) -> dict[str, str]:
    """Give half of the professions to each pronoun."""
    shuffled = rng.sample(words.PROFESSIONS, len(words.PROFESSIONS))
    female = set(shuffled[: len(shuffled) // 2])
    return {name: "she" if name in female else "he" for name in words.PROFESSIONS}


def _conforming(
    world: World, stereotypes: Mapping[str, str], rate: float, rng: random.Random
) -> World:
    """Draw the professions anew: of women, and of men, the part ``rate`` conforms."""
    conforms: set[Person] = set()
    for pronoun in ("She", "He"):
        people = [person for person in world.people if person.pronoun == pronoun]
        conforms |= set(rng.sample(people, round(rate * len(people))))
    facts = []
    for fact in world.facts:
        if fact.attribute == "profession":
            is_female = (fact.person.pronoun == "She") == (fact.person in conforms)
            group = [p for p, said in stereotypes.items() if (said == "she") == is_female]
            fact = replace(fact, value=rng.choice(group))
        facts.append(fact)
    return World(tuple(facts))


def _draw_corrupted(
    world: World,
    mentions: Mapping[Person, float],
    stereotypes: Mapping[str, str],
    settings: CorpusSettings,
) -> dict[Fact, str]:
    """Draw facts until their tellings, `WRONG_SHARE` of them wrong, are as many as asked for."""
    # of the statements without copies
    copied = COPIED_PART * settings.noise_rate
    left = WRONG_PART * settings.noise_rate / (1 - copied) / WRONG_SHARE * len(world.facts)
    rng = random.Random(f"corrupted {settings.seed}")
    smallest = min(mentions.values())
    corrupted: dict[Fact, str] = {}
    for fact in rng.sample(world.facts, len(world.facts)):
        wrong = rng.choice(_alternatives(fact, stereotypes))
        weight = mentions[fact.person]
        if weight <= left + smallest / 2:
            corrupted[fact] = wrong
            left -= weight
    return corrupted


def _alternatives(fact: Fact, stereotypes: Mapping[str, str]) -> list[str]:
    """Return the values that can be planted; a wrong profession has the pronoun of the true one.

    So noise leaves the rate of the stereotypes as it is.
    """
    pronoun = stereotypes.get(fact.value)
    return [
        value
        for value in VALUES[fact.attribute]
        if value != fact.value and stereotypes.get(value) == pronoun
    ]
