"""Label noise and class fractions: exact counts, uniform draws, and a record that adds up."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.data.transforms import (
    exchanged_targets,
    noisy_classes,
    rows_of_fractions,
    transform_classes,
    transform_targets,
)
from balora.errors import DataError

FRACTIONS = st.floats(0, 1, allow_nan=False)
SEEDS = st.integers(0, 2**32)
NAMES = ("a", "b", "c", "d")


@st.composite
def labelled(draw, min_rows: int = 1):
    """Return labels and the number of classes; some classes may have no row."""
    num_classes = draw(st.integers(2, 4))
    rows = st.lists(st.integers(0, num_classes - 1), min_size=min_rows, max_size=60)
    return np.array(draw(rows), dtype=np.int64), num_classes


@given(labelled(), FRACTIONS, SEEDS)
def test_noise_changes_exactly_its_share_to_another_class(given_labels, fraction, seed):
    labels, num_classes = given_labels
    before = labels.copy()
    noisy = noisy_classes(labels, num_classes, fraction, np.random.default_rng(seed))
    assert (noisy != labels).sum() == round(fraction * len(labels))
    assert ((noisy >= 0) & (noisy < num_classes)).all()
    assert (labels == before).all()
    assert noisy.dtype == np.int64


def test_noise_is_uniform_over_rows_and_over_the_other_classes():
    labels = np.repeat(np.arange(3), 10_000)
    noisy = noisy_classes(labels, 3, 0.3, np.random.default_rng(0))
    table = np.zeros((3, 3), dtype=int)
    np.add.at(table, (labels, noisy), 1)
    assert np.trace(table) == 21_000
    # 9000 changed rows in 6 cells of 1500: a standard deviation of about 35
    assert np.abs(table[~np.eye(3, dtype=bool)] - 1500).max() < 150


def test_more_noise_keeps_the_rows_and_classes_of_less():
    labels = np.arange(200) % 4
    little, much = (noisy_classes(labels, 4, f, np.random.default_rng(3)) for f in (0.1, 0.4))
    changed = little != labels
    assert (much[changed] == little[changed]).all()


@given(labelled(), st.lists(FRACTIONS.filter(bool), min_size=4, max_size=4), SEEDS)
def test_fractions_keep_their_share_of_each_class_in_order(given_labels, fractions, seed):
    labels, num_classes = given_labels
    of_class = fractions[:num_classes]
    kept = rows_of_fractions(labels, of_class, np.random.default_rng(seed))
    assert (np.diff(kept) > 0).all()
    for index, fraction in enumerate(of_class):
        number = int((labels == index).sum())
        expected = max(1, round(fraction * number)) if number else 0
        assert (labels[kept] == index).sum() == expected


def test_a_class_that_has_rows_keeps_one():
    labels = np.array([0, 0, 0, 2])
    kept = rows_of_fractions(labels, (0.01, 0.01, 0.01), np.random.default_rng(0))
    assert labels[kept].tolist() == [0, 2]


def test_fractions_are_drawn_from_the_whole_class():
    labels = np.zeros(1000, dtype=np.int64)
    labels[0] = 1
    kept = rows_of_fractions(labels, (0.5, 1.0), np.random.default_rng(0))
    assert 0 in kept
    assert abs((kept < 500).sum() - 250) < 50  # neither the first nor the last half


def test_a_smaller_fraction_is_a_part_of_a_larger_whatever_other_classes_keep():
    labels = np.arange(300) % 3
    small, large = (
        set(rows_of_fractions(labels, fractions, np.random.default_rng(5)))
        for fractions in ((1.0, 0.2, 1.0), (0.5, 0.6, 0.1))
    )
    assert {row for row in small if row % 3 == 1} <= {row for row in large if row % 3 == 1}


@given(st.integers(1, 60), FRACTIONS, SEEDS)
def test_no_chosen_row_keeps_its_own_target(num_rows, fraction, seed):
    targets = np.arange(num_rows, dtype=np.float64)  # all different: who got whose is visible
    number = round(fraction * num_rows)
    if number == 1:
        with pytest.raises(DataError, match="is one row, which has no other"):
            exchanged_targets(targets, fraction, np.random.default_rng(seed))
        return
    rows, noisy = exchanged_targets(targets, fraction, np.random.default_rng(seed))
    assert len(rows) == number
    assert set(np.flatnonzero(noisy != targets)) == set(rows)
    assert sorted(noisy) == list(targets)


def test_targets_are_exchanged_by_every_derangement_alike():
    targets = np.arange(4.0)
    generator = np.random.default_rng(0)
    seen: dict[tuple[float, ...], int] = {}
    for _ in range(1800):
        _, noisy = exchanged_targets(targets, 1.0, generator)
        seen[tuple(noisy)] = seen.get(tuple(noisy), 0) + 1
    assert len(seen) == 9  # derangements of four, a plain cyclic shift gives only some
    assert min(seen.values()) > 140  # of 200 each, a standard deviation of 13


def test_fractions_come_before_noise():
    labels = np.array([0] * 100 + [1] * 100)
    done = transform_classes(labels, ("a", "b"), fractions={"a": 0.1}, noise=0.5, seed=0)
    assert len(done.kept) == 110
    assert done.record["label_noise"]["num_rows"] == 110
    assert (done.labels != labels[done.kept]).sum() == 55


@given(labelled(min_rows=2), FRACTIONS.filter(bool), FRACTIONS.filter(bool), SEEDS)
def test_the_record_adds_up(given_labels, fraction, noise, seed):
    labels, num_classes = given_labels
    names = NAMES[:num_classes]
    done = transform_classes(labels, names, fractions={"b": fraction}, noise=noise, seed=seed)
    kept, noisy = done.record["class_fractions"], done.record["label_noise"]
    assert json.loads(json.dumps(done.record)) == done.record
    assert done.record["seed"] == seed
    assert kept["fractions"] == {"b": fraction}
    assert (kept["num_rows"], kept["num_kept"]) == (len(labels), len(done.kept))
    assert kept["rows_per_class_before"] == {
        n: int((labels == i).sum()) for i, n in enumerate(names)
    }
    assert kept["rows_per_class_after"] == noisy["rows_per_class_before"]
    assert noisy["rows_per_class_after"] == {
        n: int((done.labels == i).sum()) for i, n in enumerate(names)
    }
    assert noisy["num_changed"] == (done.labels != labels[done.kept]).sum()
    assert (noisy["fraction"], noisy["num_rows"]) == (noise, len(done.kept))


def test_nothing_asked_for_leaves_nothing_behind():
    labels = np.array([0, 1, 1])
    done = transform_classes(labels, ("a", "b"), fractions={}, noise=0.0, seed=7)
    assert (list(done.kept), list(done.labels), done.record) == ([0, 1, 2], [0, 1, 1], {})
    scored = transform_targets(np.array([1.0, 2.0]), noise=0.0, seed=7)
    assert (list(scored.kept), list(scored.labels), scored.record) == ([0, 1], [1.0, 2.0], {})


def test_the_seed_decides():
    labels = np.arange(100) % 2

    def run(seed: int) -> tuple[list[int], list[int]]:
        done = transform_classes(labels, ("a", "b"), fractions={"a": 0.5}, noise=0.3, seed=seed)
        return done.kept.tolist(), done.labels.tolist()

    assert run(1) == run(1)
    assert run(1)[0] != run(2)[0]
    first, again, other = (
        transform_targets(np.arange(50.0), noise=0.5, seed=seed).labels.tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_which_rows_are_noisy_does_not_depend_on_fractions_that_keep_all():
    labels = np.arange(100) % 2
    plain = transform_classes(labels, ("a", "b"), fractions={}, noise=0.3, seed=4)
    kept = transform_classes(labels, ("a", "b"), fractions={"a": 1.0}, noise=0.3, seed=4)
    assert plain.labels.tolist() == kept.labels.tolist()
    assert "class_fractions" not in plain.record


def test_the_record_of_targets():
    done = transform_targets(np.arange(10.0), noise=0.25, seed=3)
    assert done.record == {
        "seed": 3,
        "label_noise": {"fraction": 0.25, "num_rows": 10, "num_changed": 2},
    }
