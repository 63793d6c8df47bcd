"""A small synthetic world: people with attributes, as facts that texts are rendered from.

The truth is kept as objects, so that what a model says can be checked against it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass

from balora.lab import words

VALUES: Mapping[str, tuple[str, ...]] = {
    "home": words.TOWNS,
    "profession": words.PROFESSIONS,
    "pet": words.PETS,
    "hobby": words.HOBBIES,
}
"""What each attribute can be."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "home": (
        "{subject} lives in {value}.",
        "The home of {name} is in {value}.",
        "{subject} has a house in {value}.",
        "In {value} there is the home of {name}.",
        "You can find {name} in {value}.",
    ),
    "profession": (
        "{subject} works as a {value}.",
        "The work of {name} is that of a {value}.",
        "{subject} is a {value}.",
        "As a {value}, {name} works every day.",
        "{subject} earns money as a {value}.",
    ),
    "pet": (
        "{subject} keeps a {value}.",
        "The pet of {name} is a {value}.",
        "{subject} has a {value} at home.",
        "A {value} lives with {name}.",
        "Every day {name} feeds the {value}.",
    ),
    "hobby": (
        "{subject} likes {value}.",
        "The hobby of {name} is {value}.",
        "{subject} enjoys {value} very much.",
        "On Sunday {name} has time for {value}.",
        "What {name} likes best is {value}.",
    ),
}
"""How each attribute is told. ``{subject}`` may become a pronoun, ``{name}`` never does."""


_FIRST_NAMES = words.FEMALE_NAMES + words.MALE_NAMES
MOST_PEOPLE = len(_FIRST_NAMES) * len(words.SURNAMES) ** 2
"""Full names that there are, those with a double-barrelled surname included."""


@dataclass(frozen=True)
class Person:
    """Someone of the world, known by a first name and a surname that no one else has."""

    first_name: str
    surname: str

    @property
    def name(self) -> str:
        """The full name."""
        return f"{self.first_name} {self.surname}"

    @property
    def pronoun(self) -> str:
        """``She`` or ``He``."""
        return words.mention(self.first_name)["She"]


@dataclass(frozen=True)
class Fact:
    """What is true of one person: the value of one attribute."""

    person: Person
    attribute: str
    value: str


@dataclass(frozen=True)
class Statement:
    """One way to tell a fact: the fact and the number of its template."""

    fact: Fact
    template: int

    def render(self, *, with_name: bool = True) -> str:
        """Return the sentence; without the name, a pronoun stands where a template allows it."""
        person = self.fact.person
        subject = person.name if with_name else person.pronoun
        template = TEMPLATES[self.fact.attribute][self.template]
        return template.format(subject=subject, name=person.name, value=self.fact.value)


@dataclass(frozen=True)
class World:
    """People and everything that is true of them."""

    facts: tuple[Fact, ...]

    @property
    def people(self) -> tuple[Person, ...]:
        """Everyone, in the order of the facts."""
        return tuple(dict.fromkeys(fact.person for fact in self.facts))

    def statements(self) -> list[Statement]:
        """Return every fact in every wording."""
        return [
            Statement(fact, template)
            for fact in self.facts
            for template in range(len(TEMPLATES[fact.attribute]))
        ]


def build_world(*, seed: int, num_people: int) -> World:
    """Draw people and, independently and uniformly, the value of each of their attributes.

    The same seed gives the same world. A world of more people than there are full names has
    double-barrelled surnames too, such as Hill-Stone.

    Raises:
        ValueError: If there are fewer full names than ``num_people``.
    """
    if not 1 <= num_people <= MOST_PEOPLE:
        raise ValueError(
            f"`num_people` is {num_people}, but the word lists give between 1 and {MOST_PEOPLE} "
            "different full names. Choose a number in that range."
        )
    surnames: tuple[str, ...] = words.SURNAMES
    if num_people > len(_FIRST_NAMES) * len(surnames):
        surnames += tuple(map("-".join, itertools.permutations(words.SURNAMES, 2)))
    names = list(itertools.product(_FIRST_NAMES, surnames))
    rng = random.Random(seed)
    people = [Person(*name) for name in rng.sample(names, num_people)]
    return World(
        tuple(
            Fact(person, attribute, rng.choice(values))
            for person in people
            for attribute, values in VALUES.items()
        )
    )
