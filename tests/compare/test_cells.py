"""Keys, folders and identities of cells."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.compare.cells import Cell, differences, flat


def make_cell(**fields):
    defaults = {
        "stage": "final",
        "condition": "",
        "method": "lora",
        "seed": 0,
        "fields": {},
        "recipe": {"learning_rate": 0.1, "output_dir": "out"},
    }
    return Cell(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, "lora/seed-0"),
        ({"condition": "noise", "method": "lora+kl", "seed": 3}, "noise/lora+kl/seed-3"),
        ({"method": "base", "seed": None}, "base"),
        ({"condition": "noise", "method": "base", "seed": None}, "noise/base"),
        (
            {"stage": "choose", "sweep": {"values": {"learning_rate": 0.001, "lora_r": 8}}},
            "choose/lora/seed-0/learning_rate=0.001,lora_r=8",
        ),
        (
            {"stage": "choose", "sweep": {"values": {"learning_rate": 0.12345678}}},
            "choose/lora/seed-0/learning_rate=0.12345678",
        ),
    ],
)
def test_keys(fields, key):
    assert make_cell(**fields).key == key


names = st.text(min_size=1, max_size=12).filter(lambda text: "/" not in text and text.strip())


@given(st.lists(st.tuples(names, names), min_size=2, max_size=6, unique=True))
def test_folders_are_distinct_and_safe_for_any_file_system(pairs):
    slugs = [make_cell(condition=c, method=m).slug for c, m in pairs]
    assert len({slug.lower() for slug in slugs}) == len(slugs)
    for slug in slugs:
        assert len(slug) < 100
        assert not set(slug) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+=-"
        )


def test_names_that_read_alike_have_different_folders():
    one, other = make_cell(condition="a--b", method="c"), make_cell(condition="a", method="b--c")
    assert one.slug != other.slug
    assert make_cell(method="Mine").slug.lower() != make_cell(method="mine").slug.lower()


def test_a_cell_is_read_as_it_was_written(tmp_path):
    cell = make_cell(lab={"noise_rate": 0.2}, sweep={"values": {"a": [1, 2]}}, fields={"a": 1})
    cell.write(tmp_path)
    assert Cell.read(tmp_path) == cell


def test_the_entry_of_the_lab_is_part_of_the_identity_and_where_the_cache_is_is_not():
    def identity(model):
        return make_cell(lab={"noise_rate": 0.2}, recipe={"model_name_or_path": model}).identity()

    assert identity("/one/lab/aaaa/model") == identity("/other/lab/aaaa/model")
    assert identity("/one/lab/aaaa/model") != identity("/one/lab/bbbb/model")


def test_identity_is_what_decides_the_figures():
    cell = make_cell()
    moved = dataclasses.replace(cell, recipe={**cell.recipe, "output_dir": "elsewhere"})
    assert moved.identity() == cell.identity()
    for change in (
        {"recipe": {**cell.recipe, "learning_rate": 0.2}},
        {"evaluation": {"num_rows": 3}},
        {"lab": {"noise_rate": 0.4}},
        {"sweep": {"values": {"weight_decay": [0, 1]}}},
    ):
        assert dataclasses.replace(cell, **change).identity() != cell.identity()


def test_what_a_sweep_chose_is_no_part_of_the_identity_and_what_a_run_tries_is():
    sweep = {"values": {"learning_rate": [0.1, 0.2]}}
    cell = make_cell(sweep=sweep)
    other = dataclasses.replace(cell, recipe={**cell.recipe, "learning_rate": 0.2})
    assert cell.identity() == other.identity()
    tried = make_cell(stage="choose", sweep={"values": {"learning_rate": 0.1}})
    assert tried.identity()["learning_rate"] == 0.1


def test_differences_name_both_values():
    there = flat({"a": 1, "lab": {"noise_rate": 0.2}, "same": [1]})
    here = flat({"a": 2, "lab": {"noise_rate": 0.2}, "same": [1], "new": "x"})
    assert differences(there, here) == [
        "`a` is 1 there and 2 here",
        '`new` is not set there and "x" here',
    ]
