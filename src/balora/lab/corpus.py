"""The pre-training text: documents composed of the world's sentences, some of them held out.

Sentences are divided before anything is composed, so a held-out sentence occurs in no document of
the training text, while its fact or its sum does, in other words.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from balora.lab.numbers import counting_sentences, story_sentences, sum_sentences
from balora.lab.world import Person, Statement, build_world

T = TypeVar("T")


class Repeats(NamedTuple):
    """How often one pass through the sentences says those of each kind."""

    statements: int = 1
    counts: int = 1
    sums: int = 1
    stories: int = 1


# a fact takes few words and a sum fewer: without repeats the stories drown both
TRAIN_REPEATS = Repeats(statements=3, counts=2, sums=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusSettings:
    """How large the world is and how much of its text is kept back."""

    seed: int = 0
    """Draws the world, the stories, the held-out sentences and the documents."""
    num_people: int = 200
    """People of the world, each with a home, a profession, a pet and a hobby."""
    num_stories: int = 4000
    """Different stories about numbers."""
    held_out_fraction: float = 0.04
    """Part of the sentences of every kind that is never trained on."""


@dataclass(frozen=True)
class Sentences:
    """The sentences that documents are composed of."""

    statements: list[Statement]
    counts: list[str]
    sums: list[str]
    stories: list[str]


@dataclass(frozen=True)
class Corpus:
    """The two disjoint sets of sentences, and the documents made from them."""

    train: Sentences
    held_out: Sentences
    seed: int

    def train_lines(self, num_passes: int) -> list[str]:
        """Return ``num_passes`` passes through the training sentences, composed anew each time."""
        rng = random.Random(f"train {self.seed}")
        passes = (compose_lines(self.train, rng, TRAIN_REPEATS) for _ in range(num_passes))
        return list(itertools.chain.from_iterable(passes))

    def held_out_text(self) -> str:
        """Return one pass through the held-out sentences, a line for a few that belong together."""
        lines = compose_lines(self.held_out, random.Random(f"held out {self.seed}"), Repeats())
        return "\n".join(lines) + "\n"


def build_corpus(settings: CorpusSettings) -> Corpus:
    """Build the world and divide its sentences; the same settings give the same corpus.

    Raises:
        ValueError: If ``held_out_fraction`` is not between 0 and 1, both excluded.
    """
    if not 0 < settings.held_out_fraction < 1:
        raise ValueError(
            "`held_out_fraction` must be greater than 0 and less than 1, got "
            f"{settings.held_out_fraction}."
        )
    world = build_world(seed=settings.seed, num_people=settings.num_people)
    rng = random.Random(f"split {settings.seed}")
    fraction = settings.held_out_fraction
    statements = _split(world.statements(), fraction, rng)
    counts = _split(counting_sentences(), fraction, rng)
    sums = _split(sum_sentences(), fraction, rng)
    stories = _split(story_sentences(seed=settings.seed, count=settings.num_stories), fraction, rng)
    train, held_out = zip(statements, counts, sums, stories, strict=True)
    return Corpus(Sentences(*train), Sentences(*held_out), settings.seed)


def compose_lines(sentences: Sentences, rng: random.Random, repeats: Repeats) -> list[str]:
    """Return one pass through the sentences in random order; a line holds up to three of a kind."""
    lines = []
    for _ in range(repeats.statements):
        lines += _portraits(sentences.statements, rng)
    for name, size in (("counts", 1), ("sums", 3), ("stories", 1)):
        kind = getattr(sentences, name)
        for _ in range(getattr(repeats, name)):
            lines += [" ".join(group) for group in _groups(rng.sample(kind, len(kind)), size)]
    rng.shuffle(lines)
    return lines


def _portraits(statements: list[Statement], rng: random.Random) -> list[str]:
    """Return lines of up to three statements about one person, the name first, then pronouns."""
    by_person: dict[Person, list[Statement]] = defaultdict(list)
    for statement in statements:
        by_person[statement.fact.person].append(statement)
    lines = []
    for told in by_person.values():
        for first, *rest in _groups(rng.sample(told, len(told)), 3):
            followers = [statement.render(with_name=rng.random() < 0.5) for statement in rest]
            lines.append(" ".join([first.render(), *followers]))
    return lines


def _split(items: list[T], fraction: float, rng: random.Random) -> tuple[list[T], list[T]]:
    """Return the two parts of a shuffled list, the second of at least one item."""
    shuffled = rng.sample(items, len(items))
    size = max(1, round(fraction * len(items)))
    return shuffled[size:], shuffled[:size]


def _groups(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
