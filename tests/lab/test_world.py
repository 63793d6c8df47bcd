"""The world, its sentences and its corpus: seeded, true, and divided without overlap."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from balora.lab import words
from balora.lab.corpus import CorpusSettings, Repeats, build_corpus, compose_lines
from balora.lab.numbers import counting_sentences, story_sentences, sum_sentences
from balora.lab.world import TEMPLATES, VALUES, build_world

SMALL = CorpusSettings(num_people=20, num_stories=200)
EQUATION = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


def equations(text):
    return [(int(a), op, int(b), int(c)) for a, op, b, c in EQUATION.findall(text)]


def is_true(a, op, b, c):
    return (a + b if op == "+" else a - b) == c


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    assert build_world(seed=1, num_people=30) == build_world(seed=1, num_people=30)
    assert build_world(seed=1, num_people=30) != build_world(seed=2, num_people=30)


def test_everyone_has_one_value_of_every_attribute_and_a_name_of_their_own():
    world = build_world(seed=0, num_people=200)
    assert len({person.name for person in world.people}) == 200
    pairs = [(fact.person, fact.attribute) for fact in world.facts]
    assert sorted(attribute for _, attribute in set(pairs)) == sorted([*VALUES] * 200)
    assert len(pairs) == len(set(pairs))
    assert all(fact.value in VALUES[fact.attribute] for fact in world.facts)


def test_a_statement_tells_its_fact():
    world = build_world(seed=0, num_people=10)
    for statement in world.statements():
        text = statement.render()
        assert statement.fact.person.name in text
        assert statement.fact.value in text
        unnamed = statement.render(with_name=False)
        assert statement.fact.person.name in unnamed or unnamed.startswith(("She ", "He "))


def test_pronouns_follow_the_name():
    world = build_world(seed=0, num_people=40)
    for person in world.people:
        assert person.pronoun == ("She" if person.first_name in words.FEMALE_NAMES else "He")


def test_more_people_than_plain_names_have_double_barrelled_surnames_too():
    plain, larger = build_world(seed=0, num_people=480), build_world(seed=0, num_people=1600)
    assert not any("-" in person.name for person in plain.people)
    assert len({person.name for person in larger.people}) == 1600
    doubled = [person.surname for person in larger.people if "-" in person.surname]
    assert len(doubled) > 1000
    assert all(len({*name.split("-")} & {*words.SURNAMES}) == 2 for name in doubled)
    assert len(build_world(seed=0, num_people=9600).people) == 9600


@pytest.mark.parametrize("num_people", [0, 9601, 100_000])
def test_more_people_than_names_are_refused(num_people):
    with pytest.raises(ValueError, match=f"`num_people` is {num_people}"):
        build_world(seed=0, num_people=num_people)


def test_every_equation_is_true():
    for text in [*sum_sentences(), *story_sentences(seed=0, count=500)]:
        assert all(is_true(*equation) for equation in equations(text))
    in_symbols = {e for text in sum_sentences() for e in equations(text)}
    assert len(in_symbols) == 145 + 145  # pairs that stay between 0 and 18, for each sign


def test_sums_in_words_are_true():
    for text in sum_sentences():
        if match := re.fullmatch(r"(\d+) (plus|minus) (\d+) is (\d+)\.", text):
            a, word, b, c = match.groups()
            assert is_true(int(a), "+" if word == "plus" else "-", int(b), int(c))
        elif match := re.fullmatch(r"If you take (\d+) away from (\d+), (\d+) remain\.", text):
            b, a, c = map(int, match.groups())
            assert is_true(a, "-", b, c)


def test_counts_go_one_by_one():
    for text in counting_sentences():
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        assert {abs(b - a) for a, b in itertools.pairwise(numbers)} == {1}


def test_the_corpus_is_deterministic():
    one, two = build_corpus(SMALL), build_corpus(SMALL)
    assert one.train_lines(2) == two.train_lines(2)
    assert one.held_out_text() == two.held_out_text()
    other = build_corpus(CorpusSettings(seed=1, num_people=20, num_stories=200))
    assert other.held_out_text() != one.held_out_text()


def test_no_held_out_sentence_is_trained_on():
    corpus = build_corpus(SMALL)
    train, held_out = corpus.train, corpus.held_out
    for kind in ("statements", "counts", "sums", "stories"):
        assert getattr(held_out, kind)
        assert not set(getattr(train, kind)) & set(getattr(held_out, kind))
    text = "\n".join(corpus.train_lines(1))
    sentences = [statement.render() for statement in held_out.statements]
    assert not [s for s in (*sentences, *held_out.stories) if s in text]


def test_a_held_out_fact_is_trained_on_in_other_words():
    corpus = build_corpus(CorpusSettings())
    told = {statement.fact for statement in corpus.train.statements}
    assert {statement.fact for statement in corpus.held_out.statements} <= told


def test_a_pass_says_everything_as_often_as_asked():
    corpus = build_corpus(SMALL)
    lines = compose_lines(corpus.held_out, random.Random(0), Repeats(sums=3))
    text = "\n".join(lines)
    assert all(text.count(sentence) >= 3 for sentence in corpus.held_out.sums)
    assert all(story in lines for story in corpus.held_out.stories)


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_a_held_out_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(ValueError, match="`held_out_fraction` must be greater than 0"):
        build_corpus(CorpusSettings(held_out_fraction=fraction))


def test_every_attribute_has_several_wordings():
    assert TEMPLATES.keys() == VALUES.keys()
    assert all(len(set(wordings)) >= 4 for wordings in TEMPLATES.values())
