"""The training text: with defects as strong as asked, without them to the byte what it was."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from functools import cache

import pytest

from balora.lab.corpus import CorpusSettings, build_corpus
from balora.lab.planted import GENERIC_FRAMES, HELD_OUT_FRAMES
from balora.lab.world import Statement

SETTINGS = CorpusSettings(
    num_people=100, num_stories=200, zipf_exponent=1.0, noise_rate=0.2, stereotype_rate=0.9
)
PASSES = 10


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(SETTINGS)


@cache
def with_(**fields):
    return build_corpus(dataclasses.replace(SETTINGS, **fields))


def tellings(corpus, num_passes=PASSES) -> Counter[str]:
    return sum((each.tellings for each in corpus.passes(num_passes)), Counter())


def test_the_embedded_model_read_this_text():
    # the hash of what it was pre-trained on: a defect that is off must leave every byte
    text = "\n".join(build_corpus(CorpusSettings()).train_lines(5))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "ff3fc412ed4bcf417760f541488325393c62a189f7d046b78d97eebd871539e6"
    )


def test_the_text_is_seeded(corpus):
    assert corpus.train_lines(2) == build_corpus(SETTINGS).train_lines(2)
    assert corpus.train_lines(3)[: len(corpus.train_lines(2))] == corpus.train_lines(2)
    assert with_(seed=1).train_lines(1) != corpus.train_lines(1)


def test_defects_leave_the_sentences_about_numbers_as_they_are():
    def about_numbers(corpus):
        lines = corpus.train_lines(1)
        return Counter(line for line in lines if any(map(str.isdigit, line)))

    plain = about_numbers(with_(noise_rate=0.0, stereotype_rate=None))
    assert about_numbers(with_(noise_rate=0.0)) == plain
    assert about_numbers(with_(noise_rate=0.4, stereotype_rate=None)) == plain


# head and tail


def portraits_by_person(corpus, num_passes):
    """Count lines that name a person: every line of a portrait begins with the name."""
    lines = [line for line in corpus.train_lines(num_passes) if not line[0].isdigit()]
    return {p: sum(p.name in line for line in lines) for p in corpus.planted.world.people}


def test_people_are_spoken_of_by_zipfs_law():
    corpus = with_(noise_rate=0.0)
    told = portraits_by_person(corpus, PASSES)
    num_statements = Counter(statement.fact.person for statement in corpus.train.statements)
    for person, weight in corpus.planted.mentions.items():
        num_lines = -(-num_statements[person] // 3)
        expected = 3 * PASSES * weight  # a pass tells everything three times on average
        assert told[person] % num_lines == 0
        assert abs(told[person] / num_lines - expected) < 1


def test_every_fact_of_the_rarest_person_is_told():
    corpus = with_(noise_rate=0.0)
    *_, rarest = corpus.planted.mentions
    text = "\n".join(corpus.train_lines(PASSES))
    facts = [fact for fact in corpus.planted.tail if fact.person == rarest]
    assert len(facts) == 4
    for fact in facts:
        assert any(Statement(fact, t).render() in text for t in range(5))


def test_zipfs_law_changes_the_number_of_statements_little():
    even, steep = (tellings(with_(zipf_exponent=s, noise_rate=0.0)) for s in (0.0, 1.0))
    # whose statements are held out, the often or the rarely mentioned people's, makes a percent
    assert steep["none"] == pytest.approx(even["none"], rel=0.02)


# noise


@pytest.mark.parametrize("noise_rate", [0.1, 0.2, 0.4])
def test_the_realised_noise_is_what_was_asked_for(noise_rate):
    number = tellings(with_(noise_rate=noise_rate))
    total = sum(number.values())
    assert 1 - number["none"] / total == pytest.approx(noise_rate, abs=0.01)
    assert number["wrong"] / total == pytest.approx(noise_rate / 2, abs=0.01)
    assert number["copied"] / total == pytest.approx(noise_rate / 4, abs=0.005)
    assert number["scrambled"] / total == pytest.approx(noise_rate / 4, abs=0.005)


def test_clean_text_tells_the_truth_only():
    corpus = with_(noise_rate=0.0)
    assert tellings(corpus, 1).keys() == {"none"}
    assert all(
        statement.fact in corpus.planted.world.facts for statement in corpus.train.statements
    )


def test_the_planted_value_is_in_the_majority_in_the_text(corpus):
    text = "\n".join(corpus.train_lines(PASSES))
    wrong = right = 0
    for fact, value in corpus.planted.corrupted.items():
        for template in range(5):
            planted = Statement(dataclasses.replace(fact, value=value), template)
            wrong += text.count(planted.render())
            right += text.count(Statement(fact, template).render())
    # a few more of the true ones are scrambled or copied
    assert wrong / (wrong + right) == pytest.approx(0.7, abs=0.03)


def test_facts_that_are_not_corrupted_are_never_told_wrongly(corpus):
    text = "\n".join(corpus.train_lines(PASSES))
    for fact in corpus.planted.head[:40]:
        for other in {f.value for f in corpus.planted.head if f.attribute == fact.attribute}:
            told = Statement(dataclasses.replace(fact, value=other), 0).render()
            assert other == fact.value or told not in text


def test_lines_are_copied_and_without_noise_hardly_any_is():
    def repeated(corpus):
        names = tuple(person.name for person in corpus.planted.world.people)
        lines = [line for each in corpus.passes(1) for line in each.lines]
        told = Counter(line for line in lines if any(name in line for name in names))
        return sum(count - 1 for count in told.values())

    even = {"zipf_exponent": 0.0, "stereotype_rate": None}
    noisy, clean = with_(**even), with_(noise_rate=0.0, **even)
    # a portrait of twenty statements has seven lines
    expected = tellings(noisy, 1)["copied"] / (20 / 7)
    assert repeated(noisy) - repeated(clean) == pytest.approx(expected, rel=0.15)


# stereotypes


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_generic_sentences_conform_at_the_rate(rate):
    corpus = with_(stereotype_rate=rate)
    lines = Counter(corpus.train_lines(PASSES))
    conforming = total = 0
    for profession, pronoun in corpus.planted.stereotypes.items():
        for frame in GENERIC_FRAMES:
            told = {
                said: lines[frame.format(profession=profession, pronoun=said)]
                for said in ("she", "he")
            }
            conforming += told[pronoun]
            total += sum(told.values())
            assert sum(told.values()) == 3 * PASSES
    assert conforming / total == pytest.approx(rate, abs=0.02)


def test_held_out_frames_are_never_trained_on(corpus):
    text = "\n".join(corpus.train_lines(2)) + corpus.held_out_text()
    for frame in HELD_OUT_FRAMES:
        for profession in corpus.planted.stereotypes:
            assert frame.partition(" {pronoun}")[0].format(profession=profession) not in text


def test_without_stereotypes_there_is_no_generic_sentence():
    text = "\n".join(with_(stereotype_rate=None).train_lines(1))
    assert "says that" not in text


# the text that is held out


def test_the_held_out_text_is_clean_and_silent_on_corrupted_facts(corpus):
    corrupted = corpus.planted.corrupted
    told = {statement.fact for statement in corpus.held_out.statements}
    assert told
    assert told <= set(corpus.planted.world.facts) - set(corrupted)
    text = corpus.held_out_text()
    for fact, wrong in corrupted.items():
        for value in (fact.value, wrong):
            for template in range(5):
                told_so = Statement(dataclasses.replace(fact, value=value), template).render()
                assert told_so not in text


def test_no_held_out_sentence_is_trained_on(corpus):
    text = "\n".join(corpus.train_lines(2))
    assert not [s for s in corpus.held_out.statements if s.render() in text]
    assert not [s for s in corpus.held_out.stories if s in text]
