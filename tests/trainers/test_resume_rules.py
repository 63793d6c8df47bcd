"""What a resumed run may change: a table, and everything that it does not name may not."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from balora.config import BALoraConfig
from balora.recipes import CLASSIFICATION, GENERATION
from balora.recipes.load import known_fields
from balora.trainers.resume_rules import (
    CONTENT,
    KEPT_ELSEWHERE,
    LENGTH,
    SAVED_AND_EVALUATED,
    TOLD_BY_CONTENT,
    content_differences,
    differences,
    length_note,
    other_versions,
    plain,
)

NAMED = (KEPT_ELSEWHERE, SAVED_AND_EVALUATED, LENGTH, frozenset(TOLD_BY_CONTENT))
FIELDS = {kind.words: sorted(known_fields(kind)) for kind in (GENERATION, CLASSIFICATION)}


def changed(name, **also):
    """Return the settings of a run in which every field has a value, and one is another."""
    settings = dict.fromkeys(
        (*FIELDS[GENERATION.words], *FIELDS[CLASSIFICATION.words]), "as it was"
    )
    settings |= {"load_best_model_at_end": False, **also}
    return differences(settings, {**settings, name: "another"})


@pytest.mark.parametrize("words", FIELDS)
def test_every_field_that_the_table_does_not_name_must_be_as_it_was(words):
    free = frozenset().union(*NAMED)
    refused = {name: changed(name) for name in FIELDS[words]}
    for name, found in refused.items():
        if name in free:
            assert found == [], name
        else:
            assert [difference.name for difference in found] == [name]
            assert f"`{name}` was" in str(found[0])
            assert str(found[0]).endswith("and is another")
    assert len([name for name, found in refused.items() if found]) > 90


@pytest.mark.parametrize("words", FIELDS)
def test_saving_and_measuring_matter_where_the_best_checkpoint_is_kept(words):
    for name in SAVED_AND_EVALUATED.intersection(FIELDS[words]):
        assert changed(name) == []
        assert [found.name for found in changed(name, load_best_model_at_end=True)] == [name]


def test_the_table_names_each_field_once_and_no_other():
    known = set().union(*FIELDS.values())
    # of releases that have it
    assert frozenset().union(*NAMED) - known <= {"logging_dir"}
    assert sum(map(len, NAMED)) == len(frozenset().union(*NAMED))
    assert set(TOLD_BY_CONTENT.values()) <= set(CONTENT)


def test_what_training_depends_on_is_in_no_group():
    """The fields that one would look for first, whatever the table says."""
    crucial = {"seed", "data_seed", "max_length", "packing", "learning_rate", "optim", "dtype"}
    crucial |= {"per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay"}
    crucial |= {"dataset_train_split", "prompt_template", "lora_r", "lora_target_modules", "bf16"}
    crucial |= {"lr_scheduler_type", "warmup_steps", "label_noise", "transform_seed", "method"}
    crucial |= {field.name for field in fields(BALoraConfig)}
    assert not crucial & frozenset().union(*NAMED)


def test_a_field_that_only_one_of_the_two_has_is_another():
    (gone,), (new,) = differences({"a": 1}, {}), differences({}, {"a": 1})
    assert str(gone) == "`a` was 1 and is not there"
    assert str(new) == "`a` was not there and is 1"
    assert differences({}, {"output_dir": "x"}) == []


def test_settings_are_compared_as_json_holds_them():
    class Odd:
        pass

    settings = {"modules": {"b", "a"}, "odd": Odd(), "pair": (1, 2), "objective": 0.5}
    assert plain(settings)["modules"] == ["a", "b"]
    assert plain(settings) == plain({**settings, "odd": Odd(), "pair": [1, 2]})
    loading = {"model_init_kwargs": {"dtype": "float32", "revision": "main"}}
    assert plain(loading) == {"model_init_kwargs": {"dtype": "float32"}}
    assert plain(asdict(BALoraConfig()))["svd_k"] == 0.3


def test_long_values_are_cut():
    assert len(str(differences({"a": "x" * 500}, {"a": "y" * 500})[0])) < 280


def test_other_content_names_the_field_behind_it():
    was, now = {"dataset_name": "a.jsonl", "model_revision": "v1"}, {"dataset_name": "b.jsonl"}
    found = content_differences({"rows": "1"}, {"rows": "2"}, settings=(was, now | was))
    assert found == ["the training rows are others (`dataset_name` is still a.jsonl)"]
    found = content_differences({"rows": "1"}, {"rows": "2"}, settings=(was, was | now))
    assert found == [
        "the training rows are others (`dataset_name` was a.jsonl and is b.jsonl)",
    ]
    assert content_differences({"rows": None}, {"rows": None}, settings=(was, now)) == []
    assert len(content_differences(dict.fromkeys(CONTENT, "1"), dict.fromkeys(CONTENT, "2"))) == 5


def test_versions_are_said_and_not_refused():
    was = {"torch": "2.12", "peft": "0.21", "cuda": "no device", "platform": "a"}
    now = {"torch": "2.13", "peft": "0.21", "cuda": "no device", "platform": "b"}
    assert other_versions(was, now) == ["torch (2.12, now 2.13)"]
    assert other_versions(was, was) == []


LINEAR = {"max_steps": 4, "num_train_epochs": 3.0, "lr_scheduler_type": "linear", "warmup_steps": 0}


@pytest.mark.parametrize(
    ("changes", "schedule", "said"),
    [
        ({}, "iclr2026", None),
        ({"max_steps": 8}, "constant", "the learning rate (`lr_scheduler_type` linear) follow"),
        ({"max_steps": 8, "lr_scheduler_type": "constant"}, "constant", None),
        (
            {"max_steps": 8, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1},
            "constant",
            "the learning rate",
        ),
        (
            {"num_train_epochs": 5.0, "lr_scheduler_type": "constant"},
            "iclr2026",
            "the coefficients (`schedule` iclr2026) follow the new length",
        ),
    ],
)
def test_another_length_is_said_where_a_schedule_stretches_with_it(changes, schedule, said):
    note = length_note(LINEAR, LINEAR | changes, schedule)
    if said is None:
        assert note is None
    else:
        assert said in note
        assert " was " in note
