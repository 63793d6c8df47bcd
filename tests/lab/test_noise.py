"""Corrupted statements: what a label says is what the text shows, in the numbers asked for."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from balora.lab.noise import Telling, corrupt, tell
from balora.lab.world import Statement, build_world

WORLD = build_world(seed=0, num_people=100)
# every seventh fact: 14% of all tellings
CORRUPTED = {fact: "elsewhere" for fact in WORLD.facts[::7]}


def lines():
    told = [
        tell(statement, with_name=index % 3 == 0)
        for index, statement in enumerate(WORLD.statements() * 2)
    ]
    return [told[start : start + 3] for start in range(0, len(told), 3)]


def corrupted(noise_rate=0.2, *, seed=0):
    return corrupt(lines(), CORRUPTED, noise_rate=noise_rate, rng=random.Random(seed))


def counts(told) -> Counter[str]:
    return Counter(telling.defect for line in told for telling in line)


def test_no_noise_changes_nothing():
    assert corrupted(0) == lines()


@pytest.mark.parametrize("noise_rate", [0.05, 0.2, 0.4])
def test_copied_and_scrambled_are_a_quarter_each(noise_rate):
    number = counts(corrupted(noise_rate))
    total = sum(number.values())
    for defect in ("copied", "scrambled"):
        assert number[defect] / total == pytest.approx(noise_rate / 4, abs=0.002)


def test_a_corrupted_fact_is_told_wrongly_in_most_of_its_tellings_and_no_other_is():
    wrong = Counter()
    for line in corrupted():
        for telling in line[: 0 if line[0].defect == "copied" else None]:
            true = Statement(telling.statement.fact, telling.statement.template)
            wrong[telling.defect == "wrong"] += telling.statement.fact.value == "elsewhere"
            assert (telling.defect == "wrong") == (true.fact.value == "elsewhere")
    num_tellings = sum(fact in CORRUPTED for line in lines() for fact in map(fact_of, line))
    assert wrong[True] / num_tellings == pytest.approx(0.7, abs=0.03)


def fact_of(telling: Telling):
    return telling.statement.fact


def test_the_label_says_what_the_text_shows():
    told = corrupted(0.4)
    unspoilt = [[t.text for t in line] for line in told if {t.defect for t in line} == {"none"}]
    for line in told:
        assert len({t.defect == "copied" for t in line}) == 1
        if line[0].defect == "copied":
            assert [t.text for t in line] in unspoilt
        for telling in line:
            told_plainly = telling.statement.render(with_name=telling.with_name)
            if telling.defect == "scrambled":
                assert telling.text != told_plainly
                assert telling.text.endswith(".")
                assert sorted(telling.text[:-1].split()) == sorted(told_plainly[:-1].split())
            else:
                assert telling.text == told_plainly


def test_a_wrong_sentence_keeps_its_wording_and_its_person():
    for before, after in zip(lines(), corrupted(), strict=False):
        for one, other in zip(before, after, strict=True):
            assert one.statement.template == other.statement.template
            assert one.statement.fact.person == other.statement.fact.person
            assert one.with_name == other.with_name


def test_the_same_seed_corrupts_the_same():
    assert corrupted(seed=1) == corrupted(seed=1) != corrupted(seed=2)


def test_where_nothing_is_unspoilt_nothing_is_copied_or_scrambled():
    fact = WORLD.facts[0]
    told = [[tell(Statement(fact, 0))] for _ in range(10)]
    everything_wrong = [[t._replace(defect="wrong") for t in line] for line in told]
    result = corrupt(everything_wrong, {}, noise_rate=0.9, rng=random.Random(0))
    assert result == everything_wrong
    assert corrupt([], {}, noise_rate=0.9, rng=random.Random(0)) == []
