"""The downstream task: label noise in the numbers asked for, and nowhere else."""

from __future__ import annotations

import dataclasses
import json

import pytest

from balora.evaluation import extract_answer
from balora.lab.settings import TaskSettings
from balora.lab.task import draw_task, jsonl, task_rows

NOISY = TaskSettings(num_train=200, num_test=50, label_noise=0.3)
CLEAN = dataclasses.replace(NOISY, label_noise=0.0)


def answers(rows, column="output"):
    return [int(extract_answer(row[column])) for row in rows]


def test_clean_rows_are_the_problems_and_their_truth():
    train, test = draw_task(CLEAN)
    rows = task_rows(CLEAN)
    assert answers(rows.train) == [problem.answer for problem in train]
    assert answers(rows.test) == [problem.answer for problem in test]
    assert rows.noisy == []
    assert {tuple(row) for row in (*rows.train, *rows.test)} == {("instruction", "output")}


@pytest.mark.parametrize("label_noise", [0.0, 0.1, 0.3, 1.0])
def test_the_part_asked_for_is_wrong_and_no_more(label_noise):
    rows = task_rows(dataclasses.replace(NOISY, label_noise=label_noise))
    truth = [problem.answer for problem in draw_task(NOISY)[0]]
    wrong = [i for i, answer in enumerate(answers(rows.train)) if answer != truth[i]]
    assert len(wrong) == round(label_noise * 200)
    assert [row["row"] for row in rows.noisy] == wrong


def test_wrong_answers_stay_in_range_and_the_working_stays_right():
    clean, noisy = task_rows(CLEAN), task_rows(NOISY)
    assert all(0 <= answer <= 18 for answer in answers(noisy.train))
    assert len(set(answers(noisy.noisy))) > 10
    for one, other in zip(clean.train, noisy.train, strict=True):
        assert one["instruction"] == other["instruction"]
        assert one["output"].rpartition(" ")[0] == other["output"].rpartition(" ")[0]


def test_noisy_rows_tell_where_they_are_and_the_truth():
    clean, noisy = task_rows(CLEAN), task_rows(NOISY)
    for row in noisy.noisy:
        trained = noisy.train[row["row"]]
        assert trained == {"instruction": row["instruction"], "output": row["output"]}
        assert row["true_output"] == clean.train[row["row"]]["output"] != row["output"]


def test_test_rows_are_clean():
    assert task_rows(NOISY).test == task_rows(CLEAN).test


def test_no_problem_is_in_both_sets():
    # few enough of one step that two draws of this size would share about thirty
    train, test = draw_task(TaskSettings(num_train=3000, num_test=500, max_problem_steps=1))
    assert not {p.identity for p in train} & {p.identity for p in test}


def test_the_seed_draws_problems_and_noise():
    assert task_rows(NOISY) == task_rows(NOISY)
    other = task_rows(dataclasses.replace(NOISY, task_seed=1))
    assert other.test != task_rows(NOISY).test
    assert [r["row"] for r in other.noisy] != [r["row"] for r in task_rows(NOISY).noisy]


def test_problems_have_the_steps_asked_for():
    train, _ = draw_task(dataclasses.replace(CLEAN, max_problem_steps=3))
    assert {len(problem.steps) for problem in train} == {1, 2, 3}


def test_jsonl_is_one_row_a_line():
    rows = task_rows(CLEAN).test
    assert [json.loads(line) for line in jsonl(rows).splitlines()] == rows
    assert jsonl([]) == ""
