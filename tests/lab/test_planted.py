"""What is planted: seeded, as strong as asked, and each defect without touching the others."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

import pytest

from balora.lab import words
from balora.lab.config import LabConfig
from balora.lab.planted import (
    GENERIC_FRAMES,
    HEAD_FRACTION,
    HELD_OUT_FRAMES,
    TAIL_FRACTION,
    WRONG_SHARE,
    mention_weights,
    plant_world,
)
from balora.lab.settings import CorpusSettings
from balora.lab.world import VALUES, build_world

SETTINGS = CorpusSettings(
    num_people=400, zipf_exponent=1.0, noise_rate=0.2, stereotype_rate=0.9, seed=3
)


@pytest.fixture(scope="module")
def planted():
    return plant_world(SETTINGS)


def with_(**fields):
    return plant_world(dataclasses.replace(SETTINGS, **fields))


def test_without_defects_the_world_is_the_plain_one():
    plain = plant_world(CorpusSettings(num_people=30, seed=5))
    assert plain.world == build_world(seed=5, num_people=30)
    assert plain.corrupted == plain.stereotypes == {}
    assert set(plain.mentions.values()) == {1.0}


def test_the_same_settings_give_the_same_and_another_seed_another(planted):
    assert plant_world(SETTINGS) == planted
    other = with_(seed=4)
    assert other.world != planted.world
    assert list(other.mentions) != list(planted.mentions)
    assert other.corrupted != planted.corrupted
    assert other.stereotypes != planted.stereotypes


def test_neither_model_nor_task_changes_the_world():
    config = LabConfig(num_people=40, world_seed=7, num_passes=2)
    other = dataclasses.replace(config, num_layers=1, task_seed=9)
    assert plant_world(config.pretraining().corpus) == plant_world(other.pretraining().corpus)


# one defect leaves the others as they are


def test_noise_changes_nothing_but_what_is_corrupted(planted):
    clean = with_(noise_rate=0.0)
    assert clean.corrupted == {}
    assert clean.world == planted.world
    assert clean.mentions == planted.mentions
    assert clean.stereotypes == planted.stereotypes
    assert set(planted.head) == set(clean.head) - set(planted.corrupted)
    assert set(planted.tail) == set(clean.tail) - set(planted.corrupted)


def test_the_exponent_changes_no_rank_and_no_truth(planted):
    even = with_(zipf_exponent=0.0)
    assert even.world == planted.world
    assert even.stereotypes == planted.stereotypes
    assert list(even.mentions) == list(planted.mentions)


def test_stereotypes_change_nothing_but_professions(planted):
    plain = build_world(seed=3, num_people=400)
    for one, other in zip(plain.facts, planted.world.facts, strict=True):
        assert (one.person, one.attribute) == (other.person, other.attribute)
        assert one.value == other.value or one.attribute == "profession"
    assert with_(stereotype_rate=0.6).mentions == planted.mentions
    assert with_(stereotype_rate=0.6).stereotypes == planted.stereotypes


# head and tail


def test_weights_are_zipfs_law():
    assert mention_weights(4, 1.0) == pytest.approx([48 / 25, 24 / 25, 16 / 25, 12 / 25])
    assert mention_weights(3, 0.0) == [1.0, 1.0, 1.0]
    weights = mention_weights(400, 0.7)
    assert math.fsum(weights) == pytest.approx(400)
    assert weights[0] / weights[99] == pytest.approx(100**0.7)


def test_the_head_is_mentioned_more_than_the_tail(planted):
    head, tail = ({fact.person for fact in facts} for facts in (planted.head, planted.tail))
    assert len(head) == HEAD_FRACTION * 400
    assert len(tail) == TAIL_FRACTION * 400
    rest = set(planted.world.people) - head - tail
    least_of_head = min(planted.mentions[person] for person in head)
    assert least_of_head > max(planted.mentions[person] for person in rest)
    assert min(planted.mentions[person] for person in rest) > max(
        planted.mentions[person] for person in tail
    )


def test_head_and_tail_are_all_that_is_clean_of_their_people(planted):
    for facts in (planted.head, planted.tail):
        people = {fact.person for fact in facts}
        clean = {
            fact
            for fact in planted.world.facts
            if fact.person in people and fact not in planted.corrupted
        }
        assert set(facts) == clean
        assert len(facts) == len(set(facts))


def test_ranks_are_drawn(planted):
    assert list(planted.mentions) != list(planted.world.people)
    assert set(planted.mentions) == set(planted.world.people)


# noise


@pytest.mark.parametrize("noise_rate", [0.05, 0.2, 0.4, 0.9])
def test_the_corrupted_facts_have_the_tellings_that_the_rate_asks_for(noise_rate):
    planted = with_(noise_rate=noise_rate)
    told = sum(planted.mentions[fact.person] for fact in planted.corrupted)
    wrong = WRONG_SHARE * told / len(planted.world.facts)
    # of the statements before lines are copied, a quarter of the corrupted being copies
    assert wrong == pytest.approx(noise_rate / 2 / (1 - noise_rate / 4), abs=0.001)


def test_a_planted_value_is_wrong_and_possible(planted):
    assert planted.corrupted.keys() <= set(planted.world.facts)
    for fact, wrong in planted.corrupted.items():
        assert wrong != fact.value
        assert wrong in VALUES[fact.attribute]
    assert len({fact.attribute for fact in planted.corrupted}) == 4


def test_a_wrong_profession_has_the_same_pronoun(planted):
    for fact, wrong in planted.corrupted.items():
        if fact.attribute == "profession":
            assert planted.stereotypes[wrong] == planted.stereotypes[fact.value]


# stereotypes


def test_half_of_the_professions_go_with_each_pronoun(planted):
    assert planted.stereotypes.keys() == set(words.PROFESSIONS)
    assert Counter(planted.stereotypes.values()) == {"she": 8, "he": 8}


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.0])
def test_professions_conform_at_the_rate(rate):
    planted = with_(stereotype_rate=rate)
    conforming: dict[str, list[bool]] = {"She": [], "He": []}
    for fact in planted.world.facts:
        if fact.attribute == "profession":
            pronoun = fact.person.pronoun
            conforming[pronoun].append(planted.stereotypes[fact.value] == pronoun.lower())
    for told in conforming.values():
        assert sum(told) == round(rate * len(told))


def test_held_out_frames_are_new_where_the_pronoun_is_asked_but_in_known_words():
    asked, trained = (
        {frame.partition(" {pronoun}")[0] for frame in frames}
        for frames in (HELD_OUT_FRAMES, GENERIC_FRAMES)
    )
    assert len(asked) == len(HELD_OUT_FRAMES)
    assert not asked & trained
    known = set(re.findall(r"\w+|\S", " ".join(GENERIC_FRAMES)))
    assert set(re.findall(r"\w+|\S", " ".join(HELD_OUT_FRAMES))) <= known
    for frame in (*HELD_OUT_FRAMES, *GENERIC_FRAMES):
        before, _, after = frame.partition(" {pronoun} ")
        assert "{profession}" in before
        assert after.endswith(".")
        assert not set(re.findall(r"\w+", after)) & {value for v in VALUES.values() for value in v}
