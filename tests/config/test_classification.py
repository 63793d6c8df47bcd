"""The data settings of classification: each sentence, and every value they refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest

from balora.config.classification import (
    ClassificationConfig,
    OutOfDomainConfig,
    label_text,
)
from balora.config.fields import field_hints
from balora.config.values import parse_text
from balora.errors import ConfigError


def config(**settings) -> ClassificationConfig:
    defaults = {"task": "classification", "dataset_name": "rows.jsonl"}
    return ClassificationConfig(**(defaults | settings))


def refusal(**settings) -> str:
    with pytest.raises(ConfigError) as error:
        config(**settings)
    assert error.value.exit_status == 2
    assert str(error.value).startswith("data: ")
    return str(error.value).removeprefix("data: ")


def entry(**settings) -> dict:
    return {"name": "far", "dataset_name": "far.jsonl", **settings}


def entry_refusal(task: str = "classification", **settings) -> str:
    return refusal(task=task, out_of_domain=[entry(**settings)])


def test_a_glue_task_needs_nothing_else():
    settings = ClassificationConfig(task="cola")
    assert (settings.dataset_name, settings.dataset_train_split) == (None, "train")
    assert (settings.max_length, settings.label_noise, settings.transform_seed) == (128, 0.0, 0)
    assert settings.out_of_domain_sets == ()
    assert (settings.named_classes, settings.named_fractions) == (None, {})
    assert not settings.is_regression


@pytest.mark.parametrize("task", ["stsb", "regression"])
def test_regression_is_known_by_the_task(task):
    assert config(task=task).is_regression


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (" a ", "a"),
        ("", None),
        ("  ", None),
        (1, "1"),
        (0, "0"),
        (-1, "-1"),
        (1.0, "1"),
        (0.5, None),
        (math.nan, None),
        (math.inf, None),
        (True, "true"),
        (False, "false"),
        (None, None),
        ([1], None),
        ({}, None),
    ],
)
def test_names_of_classes(value, text):
    assert label_text(value) == text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"task": "colla"}, "`task` must be one of `cola`, "),
        ({"task": "colla"}, "got the text `colla` (did you mean `cola`?)"),
        ({"dataset_name": None}, "`dataset_name` is missing, and task classification has no data"),
        (
            {"dataset_name": None, "task": "cola", "dataset_config": "sst2"},
            "`dataset_config` is sst2, but without `dataset_name` the task says which part of GLUE",
        ),
        ({"dataset_name": "  "}, "`dataset_name` is empty"),
        ({"dataset_train_split": ""}, "`dataset_train_split` is empty"),
        ({"dataset_name": 3}, "`dataset_name` must be text or null, got 3"),
        ({"max_length": 0}, "`max_length` must be 1 or greater, got 0"),
        ({"max_length": 12.5}, "`max_length` must be a whole number, got 12.5"),
        ({"text_pair_column": "b"}, "`text_pair_column` is b, so `text_column` must be set too"),
        (
            {"text_column": "a", "text_pair_column": "a"},
            "`text_pair_column` and `text_column` are both a",
        ),
        ({"text_column": "a", "label_column": "a"}, "`label_column` and `text_column` are both a"),
        (
            {"task": "cola", "text_column": "a", "text_pair_column": "b"},
            "`text_pair_column` is set, but task cola has one text; leave it out",
        ),
        (
            {"task": "mrpc", "text_column": "a"},
            "`text_column` is a, so `text_pair_column` must be set too: task mrpc has two texts",
        ),
        (
            {"group_column": "site"},
            "`group_column` is site, but it only acts in evaluation; set `dataset_test_split` or "
            "`eval_dataset_name`",
        ),
        (
            {"group_column": "site", "task": "stsb"},
            "`group_column` is set, but task stsb has no accuracy; leave it out",
        ),
    ],
)
def test_data_refuse(settings, sentence):
    assert sentence in refusal(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"group_column": "site", "dataset_test_split": "train[90%:]"},
        {"group_column": "site", "eval_dataset_name": "eval.jsonl"},
        {"group_column": "site", "task": "cola"},
        {"text_column": "a"},
        {"text_column": "a", "text_pair_column": "b", "label_column": "c"},
        {"task": "mrpc", "text_column": "a", "text_pair_column": "b"},
        {"task": "cola", "text_column": "a"},
        {"max_length": 1},
    ],
)
def test_data_accept(settings):
    assert config(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"task": "cola", "class_names": ["a", "b"]},
            "`class_names` is set, but task cola has its own; leave it out",
        ),
        ({"task": "regression", "class_names": ["a", "b"]}, "but task regression has its own"),
        ({"class_names": ["a"]}, "`class_names` holds 1 name; there must be 2 or more"),
        ({"class_names": []}, "`class_names` holds 0 name; there must be 2 or more"),
        ({"class_names": ["a", "b", "a"]}, "`class_names` holds `a` twice"),
        ({"class_names": ["1", 1]}, "`class_names` holds `1` twice"),
        ({"class_names": ["a ", "a"]}, "`class_names` holds `a` twice"),
        ({"class_names": ["a", ""]}, "`class_names` holds '', which is no text; put it in quotes"),
        ({"class_names": ["a", "\t"]}, "`class_names` holds '\\t', which is no text"),
        ({"class_names": [True, False]}, "`class_names` holds True, which is no text; put it in"),
        ({"class_names": ["a", 0.5]}, "`class_names` holds 0.5, which is no text"),
        ({"class_names": "a"}, "`class_names` must be a list or null, got the text `a`"),
    ],
)
def test_classes_refuse(settings, sentence):
    assert sentence in refusal(**settings)


def test_classes_are_known_by_text():
    assert config(class_names=["no", 1]).named_classes == ("no", "1")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label_noise": -0.1}, "`label_noise` must be from 0 to 1, got -0.1"),
        ({"label_noise": 1.5}, "`label_noise` must be from 0 to 1, got 1.5"),
        ({"label_noise": math.nan}, "`label_noise` must be a number, got nan"),
        (
            {"transform_seed": -1, "label_noise": 0.1},
            "`transform_seed` must be from 0 to",
        ),
        (
            {"transform_seed": 3},
            "`transform_seed` is 3, but it only acts with `label_noise` or `class_fractions`; "
            "leave it out",
        ),
        (
            {"task": "stsb", "class_fractions": {"a": 0.5}},
            "`class_fractions` is set, but task stsb has no classes; leave it out",
        ),
        ({"class_fractions": {}}, "`class_fractions` is empty; fill it or leave it out"),
        (
            {"class_fractions": {"a": 0}},
            "`class_fractions` of `a` must be greater than 0 and at most 1, got 0",
        ),
        ({"class_fractions": {"a": 1.1}}, "of `a` must be greater than 0 and at most 1, got 1.1"),
        ({"class_fractions": {"a": True}}, "of `a` must be a number, got true"),
        ({"class_fractions": {"a": "x"}}, "of `a` must be a number, got the text `x`"),
        ({"class_fractions": {"a": math.nan}}, "of `a` must be a number, got nan"),
        ({"class_fractions": {1: 0.5, "1": 0.5}}, "`class_fractions` must name each class once"),
        ({"class_fractions": {None: 0.5}}, "`class_fractions` must name each class once"),
        (
            {"class_fractions": {"ab": 0.5}, "class_names": ["abc", "x"]},
            "`class_fractions` names `ab`, which is none of `class_names` (did you mean `abc`?)",
        ),
    ],
)
def test_transforms_refuse(settings, sentence):
    assert sentence in refusal(**settings)


def test_transforms_accept_the_edges():
    settings = config(label_noise=1, class_fractions={0: 1, "b": 1e-3}, transform_seed=9)
    assert settings.named_fractions == {"0": 1, "b": 1e-3}
    assert config(class_fractions={True: 0.5}).named_fractions == {"true": 0.5}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"nam": "x"}, "`far`: `nam` is no field of an entry (did you mean `name`?)"),
        ({"dataset_name": ""}, "`out_of_domain`, `far`: `dataset_name` is empty"),
        ({"split": 3}, "`out_of_domain`, `far`: `split` must be text or null, got 3"),
        ({"text_pair_column": "b"}, "`text_pair_column` is b, so `text_column` must be set too"),
        ({"text_column": "a", "label_column": "a"}, "`label_column` and `text_column` are both a"),
        ({"label_map": {}}, "`label_map` is empty; fill it or leave it out"),
        ({"label_map": {"": "a", "x": "b"}}, "`label_map` has the key '', which is no label"),
        ({"label_map": {0.5: "a", 1: "b"}}, "`label_map` has the key 0.5, which is no label"),
        (
            {"label_map": {"x": "", "y": "b"}},
            "`label_map` sends x to ''; write a class of the task, a list of classes, or null to "
            "leave its rows out",
        ),
        ({"label_map": {"x": [], "y": "b"}}, "`label_map` sends x to []; write a class"),
        ({"label_map": {"x": ["a", None], "y": "b"}}, "`label_map` sends x to ['a', None]; write"),
        (
            {"label_map": {"1": "a", 1: "b"}},
            "`label_map` names a label twice, as a number and as text",
        ),
        (
            {"label_map": {"x": "a", "y": None}},
            "`label_map` leads to fewer than two classes or sets of classes (`a` alone), which "
            "leaves nothing to tell apart; name every class that counts",
        ),
        ({"label_map": {"x": "a", "y": ["a"]}}, "`label_map` leads to fewer than two classes"),
        (
            {"label_map": {"x": ["a", "b"], "y": ["b", "c"]}},
            "`label_map` has `b` in two different sets of classes; let each class stand in one",
        ),
        ({"label_map": {"x": ["a", "b"], "y": "a"}}, "`label_map` has `a` in two different sets"),
    ],
)
def test_entries_refuse(settings, sentence):
    assert sentence in entry_refusal(**settings)


@pytest.mark.parametrize(
    ("task", "settings", "sentence"),
    [
        (
            "cola",
            {"text_column": "a", "text_pair_column": "b"},
            "`out_of_domain`, `far`: `text_pair_column` is set, but task cola has one text",
        ),
        (
            "stsb",
            {"text_column": "a"},
            "`far`: `text_column` is a, so `text_pair_column` must be set too: task stsb has two",
        ),
        (
            "stsb",
            {"label_map": {"x": "a", "y": "b"}},
            "`far`: `label_map` is set, but task stsb has no classes; leave it out",
        ),
        ("regression", {"group_column": "g"}, "`far`: `group_column` is set, but task regression"),
    ],
)
def test_entries_refuse_what_does_not_fit_the_task(task, settings, sentence):
    assert sentence in entry_refusal(task, **settings)


def test_entries_lead_to_the_classes_of_the_settings():
    label_map = {"x": "nag", "y": ["pos", "rest"]}
    message = refusal(
        class_names=["neg", "pos", "rest"], out_of_domain=[entry(label_map=label_map)]
    )
    assert message == (
        "`out_of_domain`, `far`: `label_map` leads to `nag`, which is none of `class_names` "
        "(did you mean `neg`?)."
    )


def test_entries_are_mappings_with_a_name_and_data_each_its_own():
    assert "`out_of_domain`, entry 1 is 'far.jsonl', not a mapping" in refusal(
        out_of_domain=["far.jsonl"]
    )
    message = refusal(out_of_domain=[{"dataset_name": "x.jsonl"}, {"name": "y"}])
    assert "`out_of_domain`, `?`: `name` is missing" in message
    assert "`out_of_domain`, `y`: `dataset_name` is missing" in message
    assert "`out_of_domain` has two entries with the name `far`" in refusal(
        out_of_domain=[entry(), entry(split="test")]
    )
    assert "`out_of_domain`, entry 1 is 'far', not a mapping" in refusal(out_of_domain=entry())


def test_entries_are_read_as_text():
    label_map = {0: "a", True: ["b", 2], "x": None}
    with pytest.raises(ConfigError):
        OutOfDomainConfig(**entry(label_map=label_map | {"true": "c"}))
    found = config(out_of_domain=[entry(label_map=label_map, split="test")]).out_of_domain_sets
    assert [each.name for each in found] == ["far"]
    assert found[0].split == "test"
    assert found[0].mapped_labels == {"0": ("a",), "true": ("b", "2"), "x": None}
    assert OutOfDomainConfig(**entry()).mapped_labels == {}


def test_every_problem_is_listed_at_once():
    message = refusal(label_noise=2.0, max_length=0, class_names=["a"], out_of_domain=[3])
    for name in ("label_noise", "max_length", "class_names", "out_of_domain"):
        assert f"`{name}`" in message


def test_the_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().task = "cola"


def test_out_of_domain_is_a_list_or_a_mapping_by_name():
    rest = {"dataset_name": "hans.jsonl", "group_column": "kind"}
    listed = ClassificationConfig(task="mnli", out_of_domain=[{"name": "hans", **rest}])
    by_name = ClassificationConfig(task="mnli", out_of_domain={"hans": rest})
    assert by_name.out_of_domain_sets == listed.out_of_domain_sets


@pytest.mark.parametrize("value", ["hans.jsonl", 3, ["hans.jsonl"], {"hans": "hans.jsonl"}])
def test_out_of_domain_of_another_form_is_refused_with_an_example(value):
    with pytest.raises(ConfigError) as error:
        ClassificationConfig(task="mnli", out_of_domain=value)
    assert "`out_of_domain`" in str(error.value)
    assert "write it as `[{name: hans, dataset_name: hans.jsonl}]`" in str(error.value)


@pytest.mark.parametrize(
    "text", ['{"hans": {"dataset_name": "h.csv"}}', "[{name: hans, dataset_name: h.csv}]"]
)
def test_out_of_domain_is_read_from_the_command_line(text):
    hint = field_hints(ClassificationConfig)["out_of_domain"]
    config = ClassificationConfig(task="mnli", out_of_domain=parse_text(text, hint))
    assert [entry.name for entry in config.out_of_domain_sets] == ["hans"]
