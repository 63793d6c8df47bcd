"""GLUE-X: which label of another data set is which class of a task, set by set."""

from __future__ import annotations

import json

import pytest

from balora.config.classification import ClassificationConfig
from balora.config.glue_x import FILES_ONLY, SETS
from balora.data.classification import load_out_of_domain_rows
from balora.data.glue import GLUE_TASKS
from balora.errors import ConfigError
from balora.evaluation.predict import glue_x_average

NAMES = {
    "sst2": {"+": "positive", "-": "negative"},
    "mnli": {"e": "entailment", "n": "neutral", "c": "contradiction"},
    "qnli": {"+": "entailment", "-": "not_entailment"},
    "rte": {"+": "entailment", "-": "not_entailment"},
    "mrpc": {"+": "equivalent", "-": "not_equivalent"},
    "qqp": {"+": "duplicate", "-": "not_duplicate"},
    "cola": {"+": "acceptable", "-": "unacceptable"},
}
"""What the signs below stand for in each task."""

# task, set, columns of the texts and the label, and what a person says each label means; 0 is left
# out. A number in quotes is a text in the data.
TABLE = """
sst2 imdb            text,label                  neg=- pos=+ 0=- 1=+
sst2 yelp_polarity   text,label                  '1'=- '2'=+
sst2 amazon_polarity content,label               negative=- positive=+ 0=- 1=+
sst2 flipkart        Summary,Sentiment           negative=- neutral=- positive=+
mnli mnli_mismatched premise,hypothesis,label    entailment=e neutral=n contradiction=c 0=e 1=n 2=c
mnli snli            premise,hypothesis,label    0=e 1=n 2=c -1=0
mnli sick            sentence_A,sentence_B,label ENTAILMENT=e NEUTRAL=n CONTRADICTION=c 0=e 1=n 2=c
qnli qnli_ood        question,sentence,label     entailment=+ not_entailment=-
rte  mrpc            sentence1,sentence2,label   equivalent=+ not_equivalent=- 1=+ 0=-
rte  qqp             question1,question2,label   duplicate=+ not_duplicate=- 1=+ 0=-
rte  hans            sentence1,sentence2,labels  entailment=+ non-entailment=- 0=+ 1=-
rte  scitail         premise,hypothesis,label    entails=+ neutral=-
mrpc qqp             question1,question2,label   duplicate=+ not_duplicate=- 1=+ 0=-
mrpc rte             sentence1,sentence2,label   entailment=+ not_entailment=- 0=+ 1=-
mrpc hans            sentence1,sentence2,labels  entailment=+ non-entailment=- 0=+ 1=-
mrpc twitter         sentence1,sentence2,label   1=+ 0=-
qqp  mrpc            sentence1,sentence2,label   equivalent=+ not_equivalent=- 1=+ 0=-
qqp  rte             sentence1,sentence2,label   entailment=+ not_entailment=- 0=+ 1=-
qqp  hans            sentence1,sentence2,labels  entailment=+ non-entailment=- 0=+ 1=-
qqp  twitter         sentence1,sentence2,label   1=+ 0=-
cola cola_ood        sentence,label              acceptable=+ unacceptable=- 1=+ 0=-
"""


def read(line):
    task, name, columns, *labels = line.split()
    meaning = {}
    for label, _, sign in (text.rpartition("=") for text in labels):
        is_number = label.lstrip("-").isdigit()
        meaning[int(label) if is_number else label.strip("'")] = NAMES[task].get(sign)
    return (task, name), (columns.split(","), meaning)


BY_HAND = dict(map(read, TABLE.strip().splitlines()))


def config_of(task, files=None, **settings):
    others = {name: None for name in SETS[task] if name not in (files or {})}
    return ClassificationConfig(
        task=task, out_of_domain="glue-x", glue_x_files={**others, **(files or {})}, **settings
    )


def file_of(folder, columns, labels):
    """Write rows that differ in their texts; the labels of a column have one type."""
    *texts, label = columns
    file = folder / f"{type(labels[0]).__name__}.jsonl"
    rows = [{**{t: f"{t} {i}" for t in texts}, label: value} for i, value in enumerate(labels)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(("task", "name"), BY_HAND)
def test_a_label_means_what_a_person_says(task, name, tmp_path):
    columns, meaning = BY_HAND[task, name]
    class_names = GLUE_TASKS[task].class_names
    for kind in {type(label) for label in meaning}:
        distinct = [label for label in meaning if type(label) is kind]
        labels = (distinct * 10)[:10]  # ten rows
        file = file_of(tmp_path, columns, labels)
        loaded = load_out_of_domain_rows(config_of(task, {name: str(file)}), class_names)
        (rows,) = loaded.values()
        expected = [meaning[label] for label in labels if meaning[label] is not None]
        found = [class_names[row] for row in rows.dataset["label"]]
        assert rows.class_sets is None
        assert found == expected


def test_every_set_with_classes_is_in_the_table_above():
    assert {(task, name) for task, sets in SETS.items() for name in sets} - {("stsb", "sick")} == {
        *BY_HAND
    }


def test_relatedness_is_the_target_of_stsb(tmp_path):
    file = file_of(tmp_path, ["sentence_A", "sentence_B", "relatedness_score"], [4.5, 3.25])
    (rows,) = load_out_of_domain_rows(config_of("stsb", {"sick": str(file)}), None).values()
    assert rows.dataset["label"] == [4.5, 3.25]


def test_the_sets_of_the_hub_are_named_and_those_without_a_file_are_left_out():
    config = ClassificationConfig(task="sst2", out_of_domain="glue-x")
    assert [entry.name for entry in config.out_of_domain_sets] == [
        *("imdb", "yelp_polarity", "amazon_polarity")
    ]
    assert {entry.split for entry in config.out_of_domain_sets} == {"test"}
    whole = ClassificationConfig(task="sst2", out_of_domain="glue-x", glue_x_whole=True)
    assert {entry.split for entry in whole.out_of_domain_sets} == {"train+test"}
    for task in ("qnli", "cola"):
        assert ClassificationConfig(task=task, out_of_domain="glue-x").out_of_domain_sets == ()
    assert {name for sets in SETS.values() for name in sets} >= set(FILES_ONLY)


def test_a_set_may_be_a_file_with_other_columns_or_be_left_out(tmp_path):
    files = {
        "sick": {"dataset_name": "SICK.txt", "label_column": "entailment_judgment"},
        "snli": None,
    }
    config = ClassificationConfig(task="mnli", out_of_domain="glue-x", glue_x_files=files)
    mismatched, sick = config.out_of_domain_sets
    assert mismatched.dataset_config == "mnli"
    assert (sick.dataset_name, sick.label_column) == ("SICK.txt", "entailment_judgment")
    assert (sick.split, sick.text_column) == (None, "sentence_A")


def test_the_published_file_of_sick_is_read(shared_data):
    file = str(shared_data / "data" / "sick" / "SICK.txt")
    files = {"sick": {"dataset_name": file, "label_column": "entailment_judgment"}}
    loaded = load_out_of_domain_rows(config_of("mnli", files), GLUE_TASKS["mnli"].class_names)
    assert len(loaded["sick"].dataset) > 9000
    assert set(loaded["sick"].dataset["label"]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "classification", "dataset_name": "x.csv", "out_of_domain": "glue-x"}, "is none"),
        ({"task": "rte", "glue_x_files": {"hans": "x.tsv"}}, "`out_of_domain` is not glue-x"),
        ({"task": "rte", "glue_x_whole": True}, "`out_of_domain` is not glue-x"),
        (
            {"task": "rte", "out_of_domain": "glue-x", "glue_x_files": {"han": "x.tsv"}},
            "did you mean `hans`",
        ),
        (
            {"task": "rte", "out_of_domain": "glue-x", "glue_x_files": {"hans": 3}},
            "write a path, a mapping or null",
        ),
        ({"task": "rte", "out_of_domain": "glue"}, "did you mean `glue-x`"),
        (
            {"task": "rte", "out_of_domain": "glue-x", "glue_x_files": {"hans": {"spilt": "x"}}},
            "did you mean `split`",
        ),
    ],
)
def test_what_cannot_act_is_refused_by_name(fields, words):
    with pytest.raises(ConfigError, match=words):
        ClassificationConfig(**fields)


def test_the_average_says_over_what_it_is():
    config = config_of("rte", {"hans": "hans.tsv"})
    figures = {"hans": {"accuracy": 0.5, "num_rows": 30}, "mrpc": {"accuracy": 0.8, "num_rows": 10}}
    assert glue_x_average(config, figures) == (
        "GLUE-X, mean accuracy over mrpc, hans: 0.6500 (by rows: 0.5750); not measured: qqp, "
        "scitail."
    )
    own = ClassificationConfig(task="rte", out_of_domain={"hans": {"dataset_name": "hans.tsv"}})
    assert glue_x_average(own, figures) is None
    assert glue_x_average(config, {}) is None
