"""The pre-training text: documents composed of the world's sentences, some of them held out.

Sentences are divided before anything is composed, so a held-out sentence occurs in no document of
the training text, while its fact or its sum does, in other words.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from balora.lab.noise import Defect, Line, corrupt, tell
from balora.lab.numbers import counting_sentences, story_sentences, sum_sentences
from balora.lab.planted import GENERIC_FRAMES, PlantedWorld, plant_world
from balora.lab.settings import CorpusSettings
from balora.lab.world import Person, Statement

__all__ = ["Corpus", "CorpusSettings", "Pass", "Repeats", "Sentences", "build_corpus"]

T = TypeVar("T")


class Repeats(NamedTuple):
    """How often one pass through the sentences says those of each kind."""

    statements: int = 1
    counts: int = 1
    sums: int = 1
    stories: int = 1


# a fact takes few words and a sum fewer: without repeats the stories drown both
TRAIN_REPEATS = Repeats(statements=3, counts=2, sums=4)
# a pronoun is told apart only by its rate: rarer, a profession would have too few
GENERIC_REPEATS = 3


@dataclass(frozen=True)
class Sentences:
    """The sentences that documents are composed of."""

    statements: list[Statement]
    counts: list[str]
    sums: list[str]
    stories: list[str]


class Pass(NamedTuple):
    """One pass through the training sentences."""

    lines: list[str]
    """In random order."""
    tellings: Counter[Defect]
    """How many statements were told with each defect, and with ``none``."""


@dataclass(frozen=True)
class Corpus:
    """The two disjoint sets of sentences, and the documents made from them."""

    settings: CorpusSettings
    planted: PlantedWorld
    train: Sentences
    held_out: Sentences

    def train_lines(self, num_passes: int) -> list[str]:
        """Return ``num_passes`` passes through the training sentences, composed anew each time."""
        return [line for each in self.passes(num_passes) for line in each.lines]

    def passes(self, num_passes: int) -> Iterator[Pass]:
        """Yield the passes; a person is spoken of in each as often as Zipf's law has it so far."""
        rng = random.Random(f"train {self.settings.seed}")
        of_defects = random.Random(f"defects {self.settings.seed}")
        told = _by_person(self.train.statements)
        for counts in self._mentions(num_passes):
            portraits = _portraits(told, counts, rng)
            portraits = corrupt(
                portraits,
                self.planted.corrupted,
                noise_rate=self.settings.noise_rate,
                rng=of_defects,
            )
            lines = [*_texts(portraits), *self._generic_sentences(of_defects)]
            tellings = Counter(telling.defect for line in portraits for telling in line)
            yield Pass(_composed(lines, self.train, rng, TRAIN_REPEATS), tellings)

    def held_out_text(self) -> str:
        """Return one pass through the held-out sentences, a line for a few that belong together.

        It is clean, and silent on corrupted facts: of these the model was taught something else.
        """
        rng = random.Random(f"held out {self.settings.seed}")
        return "\n".join(compose_lines(self.held_out, rng, Repeats())) + "\n"

    def _mentions(self, num_passes: int) -> Iterator[dict[Person, int]]:
        """Yield for each pass how often a person's statements are told.

        Rates are seldom whole: what is left of one pass is told in a later one.
        """
        rng = random.Random(f"mentions {self.settings.seed}")
        rates = {
            person: (TRAIN_REPEATS.statements * weight, rng.random())
            for person, weight in self.planted.mentions.items()
        }
        for index in range(num_passes):
            yield {
                person: math.floor((index + 1) * rate + offset) - math.floor(index * rate + offset)
                for person, (rate, offset) in rates.items()
            }

    def _generic_sentences(self, rng: random.Random) -> list[str]:
        rate = self.settings.stereotype_rate
        if rate is None:
            return []
        told = []
        for profession, pronoun in self.planted.stereotypes.items():
            other = "he" if pronoun == "she" else "she"
            for frame in GENERIC_FRAMES * GENERIC_REPEATS:
                said = pronoun if rng.random() < rate else other
                told.append(frame.format(profession=profession, pronoun=said))
        return told


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
    planted = plant_world(settings)
    rng = random.Random(f"split {settings.seed}")
    fraction = settings.held_out_fraction
    told, kept = _split(planted.world.statements(), fraction, rng)
    kept = [statement for statement in kept if statement.fact not in planted.corrupted]
    counts = _split(counting_sentences(), fraction, rng)
    sums = _split(sum_sentences(), fraction, rng)
    stories = _split(story_sentences(seed=settings.seed, count=settings.num_stories), fraction, rng)
    train, held_out = zip((told, kept), counts, sums, stories, strict=True)
    return Corpus(settings, planted, Sentences(*train), Sentences(*held_out))


def compose_lines(sentences: Sentences, rng: random.Random, repeats: Repeats) -> list[str]:
    """Return one pass through the sentences in random order; a line holds up to three of a kind."""
    told = _by_person(sentences.statements)
    portraits = _portraits(told, dict.fromkeys(told, repeats.statements), rng)
    return _composed(_texts(portraits), sentences, rng, repeats)


def _composed(
    lines: list[str], sentences: Sentences, rng: random.Random, repeats: Repeats
) -> list[str]:
    """Return the lines with those about numbers, all in random order."""
    lines = list(lines)
    for name, size in (("counts", 1), ("sums", 3), ("stories", 1)):
        kind = getattr(sentences, name)
        for _ in range(getattr(repeats, name)):
            lines += [" ".join(group) for group in _groups(rng.sample(kind, len(kind)), size)]
    rng.shuffle(lines)
    return lines


def _by_person(statements: Sequence[Statement]) -> dict[Person, list[Statement]]:
    by_person: dict[Person, list[Statement]] = defaultdict(list)
    for statement in statements:
        by_person[statement.fact.person].append(statement)
    return dict(by_person)


def _portraits(
    by_person: Mapping[Person, list[Statement]], counts: Mapping[Person, int], rng: random.Random
) -> list[Line]:
    """Return lines of up to three statements about one person, the name first, then pronouns.

    All statements about a person are told as often as ``counts`` says.
    """
    lines = []
    for index in range(max(counts.values(), default=0)):
        for person, statements in by_person.items():
            if index >= counts[person]:
                continue
            for first, *rest in _groups(rng.sample(statements, len(statements)), 3):
                followers = [tell(each, with_name=rng.random() < 0.5) for each in rest]
                lines.append([tell(first), *followers])
    return lines


def _texts(lines: list[Line]) -> list[str]:
    return [" ".join(telling.text for telling in line) for line in lines]


def _split(items: list[T], fraction: float, rng: random.Random) -> tuple[list[T], list[T]]:
    """Return the two parts of a shuffled list, the second of at least one item."""
    shuffled = rng.sample(items, len(items))
    size = max(1, round(fraction * len(items)))
    return shuffled[size:], shuffled[:size]


def _groups(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
