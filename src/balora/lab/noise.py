"""Told statements, and how they are corrupted: wrong values, copied lines, scrambled words."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from balora.lab.planted import COPIED_PART, SCRAMBLED_PART, WRONG_SHARE
from balora.lab.world import Fact, Statement

Defect = Literal["none", "wrong", "copied", "scrambled"]


class Telling(NamedTuple):
    """A statement as it stands in the text."""

    statement: Statement
    """With the value that is told, which may be wrong."""
    with_name: bool
    """Whether the person is named, where the template leaves a choice."""
    text: str
    """The sentence."""
    defect: Defect = "none"
    """What is wrong with it."""


Line = list[Telling]


def tell(statement: Statement, *, with_name: bool = True) -> Telling:
    """Return a statement as a sentence of the text, unspoilt."""
    return Telling(statement, with_name, statement.render(with_name=with_name))


def corrupt(
    lines: list[Line], corrupted: Mapping[Fact, str], *, noise_rate: float, rng: random.Random
) -> list[Line]:
    """Return the lines with as many defects as asked for, the copied lines at the end.

    No telling has two defects. With N the number of tellings that comes out, copies included,
    ``noise_rate`` N of them are corrupted: half have a wrong value (on average, and as far as the
    tellings of the corrupted facts go), a quarter stands in copies of lines without a defect, a
    quarter has its words shuffled (both to within a line, and as far as there are unspoilt ones).

    Args:
        lines: Statements as they are told.
        corrupted: The wrong value by fact.
        noise_rate: From 0, which changes nothing, to less than 1.
        rng: Draws all of it.
    """
    if noise_rate == 0:
        return lines
    num_told = sum(map(len, lines))
    num_final = num_told / (1 - COPIED_PART * noise_rate)
    lines = [[_wrong(telling, corrupted, rng) for telling in line] for line in lines]
    lines = _scrambled(lines, round(SCRAMBLED_PART * noise_rate * num_final), rng)
    return lines + _copies(lines, round(num_final) - num_told, rng)


def _wrong(telling: Telling, corrupted: Mapping[Fact, str], rng: random.Random) -> Telling:
    fact = telling.statement.fact
    if fact not in corrupted or rng.random() >= WRONG_SHARE:
        return telling
    statement = replace(telling.statement, fact=replace(fact, value=corrupted[fact]))
    return tell(statement, with_name=telling.with_name)._replace(defect="wrong")


def _scrambled(lines: list[Line], count: int, rng: random.Random) -> list[Line]:
    """Shuffle the words of ``count`` unspoilt tellings."""
    places = [
        (row, column)
        for row, line in enumerate(lines)
        for column, telling in enumerate(line)
        if telling.defect == "none"
    ]
    lines = [list(line) for line in lines]
    for row, column in rng.sample(places, min(count, len(places))):
        telling = lines[row][column]
        lines[row][column] = telling._replace(text=_shuffled(telling.text, rng), defect="scrambled")
    return lines


def _shuffled(text: str, rng: random.Random) -> str:
    words = text.removesuffix(".").split()
    shuffled = words
    while shuffled == words:
        shuffled = rng.sample(words, len(words))
    return " ".join(shuffled) + "."


def _copies(lines: list[Line], count: int, rng: random.Random) -> list[Line]:
    """Return copies of unspoilt lines, until ``count`` tellings are copied."""
    unspoilt = [line for line in lines if all(telling.defect == "none" for telling in line)]
    copies: list[Line] = []
    for line in rng.sample(unspoilt, len(unspoilt)):
        if count <= 0:
            break
        copies.append([telling._replace(defect="copied") for telling in line])
        count -= len(line)
    return copies
