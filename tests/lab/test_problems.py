"""The word problems: true, disjoint, seeded, and worded in what the base model has read."""

from __future__ import annotations

import json
import re

import pytest

from balora.evaluation import extract_answer
from balora.lab import words
from balora.lab.corpus import CorpusSettings, build_corpus
from balora.lab.problems import draw_problems
from balora.lab.quickstart import QuickstartSettings, main, quickstart_files, quickstart_problems

LOSES = re.compile(r"gives (\d+) of them|loses (\d+)|takes (\d+) of them")
GAINS = re.compile(r"gives (?:her|him) (\d+) more|finds (\d+)|buys (\d+) more")
STARTS = re.compile(r"(?:has|holds|owns) (\d+)")


def solve(instruction):
    """Work the answer out from the words alone, sentence by sentence."""
    first, *rest = instruction.split(". ")
    value = int(STARTS.search(first)[1])
    for sentence in rest[:-1]:
        gain, loss = GAINS.search(sentence), LOSES.search(sentence)
        assert (gain is None) != (loss is None)
        amount = int(next(filter(None, (gain or loss).groups())))
        value += amount if gain else -amount
    return value


@pytest.fixture(scope="module")
def problems():
    return draw_problems(seed=5, count=600, max_steps=2)


def test_every_answer_is_right(problems):
    for problem in problems:
        assert (
            solve(problem.instruction()) == problem.answer == int(extract_answer(problem.output()))
        )
        equations = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", problem.output())
        assert len(equations) == len(problem.steps)
        value = problem.start
        for a, sign, b, c in equations:
            assert int(a) == value
            value += int(b) if sign == "+" else -int(b)
            assert int(c) == value


def test_numbers_stay_small(problems):
    for problem in problems:
        value = problem.start
        for step in problem.steps:
            value += step.change
            assert 1 <= abs(step.change) <= 9
            assert 0 <= value <= 18


def test_every_wording_and_both_lengths_occur(problems):
    assert {len(problem.steps) for problem in problems} == {1, 2}
    told = {(step.change > 0, step.wording) for problem in problems for step in problem.steps}
    assert len(told) == 6
    assert (
        {p.start_wording for p in problems} == {p.question_wording for p in problems} == {0, 1, 2}
    )


def test_one_thing_is_singular(problems):
    for problem in problems:
        text = problem.instruction()
        assert not re.search(rf"\b1 {problem.thing}s\b", text)
        assert not re.search(rf"\b[02-9] {problem.thing}\b", text)


def test_the_same_seed_gives_the_same_problems():
    settings = {"count": 50, "max_steps": 2}
    assert draw_problems(seed=1, **settings) == draw_problems(seed=1, **settings)
    assert draw_problems(seed=1, **settings) != draw_problems(seed=2, **settings)


def test_no_problem_is_in_both_sets_in_whatever_words():
    train, test = quickstart_problems(QuickstartSettings())
    everyone = [problem.identity for problem in (*train, *test)]
    assert len(everyone) == len(set(everyone)) == 1650
    texts = [problem.instruction() for problem in (*train, *test)]
    assert len(texts) == len(set(texts))


def test_excluding_excludes():
    # few enough problems that both draws must meet: one step, one seed
    first = draw_problems(seed=1, count=300, max_steps=1)
    second = draw_problems(seed=1, count=300, max_steps=1, exclude=first)
    assert not {p.identity for p in first} & {p.identity for p in second}


def test_the_base_model_has_read_the_words_but_not_the_format():
    text = " ".join(build_corpus(CorpusSettings()).train_lines(1)).lower()
    words_read = set(re.findall(r"[a-z]+|[^a-z\s]", text))
    rows = [problem.row() for problem in draw_problems(seed=0, count=1000, max_steps=2)]
    # a piece that was never read has the logits of all the others like it, and a frozen head
    # cannot tell them apart: what must be written has to be read before
    asked = " ".join(value for row in rows for value in row.values()).lower()
    assert set(re.findall(r"[a-z]+|[^a-z\s]", asked)) <= words_read
    assert "the answer is" not in text
    assert not {"instruction", "response", "#"} & words_read


@pytest.mark.parametrize("setting", ["count", "max_steps"])
def test_nothing_to_draw_is_refused(setting):
    with pytest.raises(ValueError, match=f"`{setting}` must be at least 1, got 0"):
        draw_problems(seed=0, **{"count": 1, "max_steps": 1, setting: 0})


def test_the_command_writes_what_the_functions_give(tmp_path):
    main(["--output", str(tmp_path), "--seed", "3"])
    files = quickstart_files(QuickstartSettings(seed=3))
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == files
    rows = [json.loads(line) for line in files["test.jsonl"].splitlines()]
    assert len(rows) == 150
    assert rows[0].keys() == {"instruction", "output"}


def test_things_have_regular_plurals():
    assert words.plural("hat", 1) == "hat"
    assert words.plural("hat", 0) == words.plural("hat", 2) == "hats"
