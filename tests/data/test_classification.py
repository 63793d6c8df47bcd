"""Own data of every kind: columns, classes, targets, other data sets, and each refusal."""

from __future__ import annotations

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from balora.config.classification import ClassificationConfig
from balora.data import reading
from balora.data.classification import (
    load_evaluation_rows,
    load_out_of_domain_rows,
    load_training_rows,
)
from balora.errors import ConfigError, DataError

ROWS = [
    {"text": "good", "label": "pos", "site": "a"},
    {"text": "bad", "label": "neg", "site": "b"},
    {"text": "fine", "label": "pos", "site": "a"},
]
NLI = ("entailment", "neutral", "contradiction")


def config(name: str = "rows.jsonl", **settings) -> ClassificationConfig:
    return ClassificationConfig(**{"task": "classification", "dataset_name": name, **settings})


def refusal(settings: ClassificationConfig) -> str:
    """Return why the training rows are refused."""
    with pytest.raises(DataError) as error:
        load_training_rows(settings)
    assert error.value.exit_status == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def labelled(labels: list) -> list[dict]:
    return [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)]


# --- the columns


def test_rows_have_text_and_label_and_nothing_else(write):
    write("rows.jsonl", ROWS)
    rows = load_training_rows(config())
    assert rows.dataset[:] == {"text": ["good", "bad", "fine"], "label": [1, 0, 1]}
    assert rows.dataset.features == {"text": Value("string"), "label": Value("int64")}
    assert (rows.class_names, rows.class_sets, rows.transforms) == (("neg", "pos"), None, {})
    assert (rows.name, rows.split, rows.notes) == ("rows.jsonl", "train", ())
    assert rows.locate(2) == "rows.jsonl, line 3"


@pytest.mark.parametrize("texts", reading.USUAL_TEXTS, ids=str)
def test_the_usual_columns_are_found(write, texts):
    values = dict(zip(texts, ("first", "second"), strict=False))
    write("rows.jsonl", [{**values, "label": n, "z": "z"} for n in (0, 1)])
    row = load_training_rows(config()).dataset[0]
    expected = {"text": "first", "label": 0}
    assert row == (expected | {"text_pair": "second"} if len(texts) == 2 else expected)


def test_a_pair_comes_before_a_single_text(write):
    values = {"text": "x", "sentence": "y", "premise": "p", "hypothesis": "h"}
    write("rows.jsonl", [{**values, "label": n} for n in (0, 1)])
    assert load_training_rows(config()).dataset[0] == {"text": "p", "text_pair": "h", "label": 0}


def test_named_columns_are_taken_though_they_are_called_like_others(write):
    rows = [{"text_pair": "a", "text": "b", "label": "x", "score": n} for n in (0, 1)]
    write("rows.jsonl", rows)
    named = config(text_column="text_pair", text_pair_column="text", label_column="score")
    assert load_training_rows(named).dataset[1] == {"text": "a", "text_pair": "b", "label": 1}
    crossed = config(text_column="label", label_column="text_pair")
    assert "has the label `a` in `text_pair`" in refusal(crossed)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"text_column": "body"},
            "`text_column` is body, but rows.jsonl has no column of that name; its columns are "
            "`text`, `label`, `site`.",
        ),
        ({"text_column": "text", "text_pair_column": "b"}, "`text_pair_column` is b, but rows.js"),
        ({"label_column": "class"}, "`label_column` is class, but rows.jsonl has no column of th"),
        (
            {"text_column": "label"},
            "`label` of rows.jsonl would be both a text and the label. Name the columns with "
            "`text_column` and `label_column`.",
        ),
    ],
)
def test_missing_columns_are_named_with_those_that_are_there(write, settings, sentence):
    write("rows.jsonl", ROWS)
    assert refusal(config(**settings)).startswith(sentence)


def test_without_usual_columns_the_settings_are_named(write):
    write("rows.jsonl", [{"body": "x", "label": 1}])
    assert refusal(config()) == (
        "rows.jsonl has none of the usual columns of text (sentence1 and sentence2; premise and "
        "hypothesis; question1 and question2; question and sentence; text; sentence); its columns "
        "are `body`, `label`. Name them with `text_column` and, for pairs, `text_pair_column`."
    )
    write("rows.jsonl", [{"text": "x", "class": 1}])
    assert refusal(config()) == (
        "rows.jsonl has no column `label`; its columns are `text`, `class`. Name the column of the "
        "labels with `label_column`."
    )
    write("rows.jsonl", [{"sentence": "x", "label": 1}])
    assert refusal(config(task="mrpc")) == (
        "rows.jsonl has none of the usual columns of text (sentence1 and sentence2; #1 String and "
        "#2 String); its columns are `sentence`, `label`. Name them with `text_column` and "
        "`text_pair_column`."
    )


# --- texts


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "`text` is missing or null"),
        ("", "`text` is empty"),
        (" \n", "`text` is empty"),
    ],
)
def test_a_null_or_empty_text_is_refused_by_its_line(write, value, problem):
    rows = [*ROWS, {**ROWS[0], "text": value}, {**ROWS[0], "text": value}]
    write("rows.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert refusal(config()) == (
        f"rows.jsonl, line 4: {problem}. 1 more rows cannot be trained on either. Correct or "
        "remove them."
    )


def test_a_text_that_is_a_number_and_an_empty_one_in_a_table_are_refused(write):
    write("rows.jsonl", [{"text": 5, "label": n} for n in (0, 1)])
    assert refusal(config()).startswith("rows.jsonl, line 1: `text` is a whole number, not text")
    write("rows.csv", "text,label\nNA,0\n,1\n")
    assert refusal(config("rows.csv")).startswith("rows.csv, line 3: `text` is empty")
    write("rows.csv", "text,label\nNA,0\nnull,1\n")
    assert load_training_rows(config("rows.csv")).dataset["text"][:] == ["NA", "null"]


def test_evaluation_says_what_its_rows_cannot_be(write):
    write("rows.jsonl", ROWS)
    write("eval.jsonl", [{**ROWS[0], "text": text} for text in ("", None)])
    settings = config(eval_dataset_name="eval.jsonl")
    with pytest.raises(
        DataError, match=r"eval.jsonl, line 1: `text` is empty. 1 more rows cannot be"
    ):
        load_evaluation_rows(settings, ("neg", "pos"))


# --- classes


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        (["10", "9", "-1"], ("-1", "9", "10"), [2, 1, 0]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        (["10", "9", "x"], ("10", "9", "x"), [0, 1, 2]),
    ],
)
def test_classes_come_from_the_labels_in_order(write, labels, names, indices):
    write("rows.jsonl", labelled(labels))
    rows = load_training_rows(config())
    assert (rows.class_names, rows.dataset["label"][:]) == (names, indices)


@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_labels_of_a_table_are_text(write, name, separator):
    write(
        name, "".join(f"{a}{separator}{b}\n" for a, b in (("text", "label"), ("x", 2), ("y", 10)))
    )
    rows = load_training_rows(config(name))
    assert (rows.class_names, rows.dataset["label"][:]) == (("2", "10"), [0, 1])


def test_classes_of_the_settings_have_their_order_and_their_numbers(write):
    write("rows.jsonl", labelled(["b", "a", "b"]))
    rows = load_training_rows(config(class_names=["b", "c", "a"]))
    assert rows.dataset["label"][:] == [0, 2, 0]
    assert rows.class_names == ("b", "c", "a")
    assert rows.notes == ("rows.jsonl (train) has no row of the classes c.",)
    write("rows.jsonl", labelled([1, 0]))
    rows = load_training_rows(config(class_names=["b", "a"]))
    assert rows.dataset["label"][:] == [1, 0]
    assert rows.notes == (
        "`label` of rows.jsonl (train) has numbers for the classes, read in the order of "
        "`class_names`: 0 as b, 1 as a. If they mean others, write the names.",
    )
    # a name that is a number is a name, not an index
    assert load_training_rows(config(class_names=[1, 0])).dataset["label"][:] == [0, 1]
    assert "`label` is `0`, which is none of the classes 1, 2" in refusal(
        config(class_names=[1, 2])
    )


def test_a_label_outside_the_classes_is_refused_by_its_line(write):
    write("rows.jsonl", labelled(["a", "b", "neg", "nag"]))
    assert refusal(config(class_names=["a", "b", "net"])) == (
        "rows.jsonl, line 3: `label` is `neg`, which is none of the classes a, b, net (did you "
        "mean `net`?). 1 more rows cannot be trained on either. Correct or remove them."
    )
    write("rows.jsonl", labelled([0, 2]))
    assert "line 2: `label` is `2`, which is none of the classes a, b." in refusal(
        config(class_names=["a", "b"])
    )


@pytest.mark.parametrize(
    ("first", "label", "problem"),
    [
        ("a", None, "`label` is missing or null"),
        ("a", " ", "`label` is empty"),
        (1.0, 0.5, "`label` is 0.5, which names no class; task regression takes numbers"),
    ],
)
def test_what_names_no_class_is_refused(write, first, label, problem):
    write("rows.jsonl", labelled([first, label]))
    assert refusal(config()) == f"rows.jsonl, line 2: {problem}. Correct or remove them."


@pytest.mark.parametrize("other", [5, 5.0, 0.0])
def test_whole_numbers_of_any_size_are_classes_of_their_own(write, other):
    write("rows.jsonl", labelled([5, 2**63, 2**63 + 1, 2**53, 2**53 + 1, -(2**80), other]))
    rows = load_training_rows(config())
    names = {-(2**80), 5, 2**53, 2**53 + 1, 2**63, 2**63 + 1} | {int(other)}
    assert rows.class_names == tuple(map(str, sorted(names)))
    assert len(set(rows.dataset["label"][:6])) == 6


def test_a_number_with_a_point_names_a_class_while_it_is_exact(write):
    write("rows.jsonl", labelled([1, 1.0, "1", 2.0**53, True]))
    assert load_training_rows(config()).class_names == ("1", str(2**53), "true")
    write("rows.jsonl", labelled([1, 2.0**53 + 2]))
    assert refusal(config()).startswith(
        "rows.jsonl, line 2: `label` is 9007199254740994.0, which names no class: numbers with a "
        "point have not all their digits from 2^53 on, so write it as text."
    )


def test_text_that_looks_like_a_date_or_a_number_is_a_class(write):
    write("rows.jsonl", labelled(["2020-01-01", "2021-01-01", "2020-01-01"]))
    assert load_training_rows(config()).class_names == ("2020-01-01", "2021-01-01")
    write("rows.jsonl", labelled(["007", "7", 7]))
    assert load_training_rows(config()).dataset["label"][:] == [0, 1, 1]


def decimals(*values: str) -> pa.Table:
    label = pa.array([Decimal(value) for value in values], pa.decimal128(30, 2))
    return pa.table({"text": [f"t{n}" for n in range(len(values))], "label": label})


def test_decimals_are_targets_and_classes(write):
    pq.write_table(decimals("0.10", "2.00", "-3.25"), write("rows.parquet", b""))
    given = config("rows.parquet", task="regression")
    assert load_training_rows(given).dataset["label"][:] == [0.1, 2.0, -3.25]
    big = "1234567890123456789012345678.00"
    pq.write_table(decimals("1.50", big, "1.50", big[:-4] + "9.00"), "rows.parquet")
    rows = load_training_rows(config("rows.parquet"))
    assert rows.class_names[0] == "1.50"
    assert set(rows.class_names[1:]) == {big, big[:-4] + "9.00"}


def test_the_categories_of_a_parquet_file_are_their_text(write):
    text = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"text": text, "label": text}), write("rows.parquet", b""))
    rows = load_training_rows(config("rows.parquet"))
    assert (rows.class_names, rows.dataset["text"][:]) == (("a", "b"), ["a", "b", "a"])


def test_rows_beside_those_left_out_are_text_as_it_stands(write):
    rows = [{"text": n if n == 1 else f'"{n}"', "label": f"{n}"} for n in range(3)]
    write("rows.jsonl", rows)
    label_map = {"0": "neg", "1": None, "2": "pos"}
    entry = {"name": "o", "dataset_name": "rows.jsonl", "label_map": label_map}
    found = load_out_of_domain_rows(config(out_of_domain=[entry]), ("neg", "pos"))["o"]
    assert found.dataset["text"][:] == ['"0"', '"2"']


def test_a_list_names_no_class(write):
    write("rows.jsonl", labelled([[1], [2]]))
    assert refusal(config()).startswith("rows.jsonl, line 1: `label` is [1], which names no class.")


def test_a_single_class_is_refused(write):
    write("rows.jsonl", labelled(["a", "a"]))
    expected = (
        "every row of rows.jsonl (train) has the label `a` in `label`, and one class leaves "
        "nothing to learn. Name rows of two classes or more, or another `label_column`."
    )
    assert refusal(config()) == expected
    assert refusal(config(class_names=["b", "a"])) == expected


def class_label(labels: list[int], names: list[str], file: str) -> None:
    features = Features({"text": Value("large_string"), "label": ClassLabel(names=names)})
    columns = {"text": [f"t{n}" for n in range(len(labels))], "label": labels}
    Dataset.from_dict(columns, features=features).to_parquet(file)


@pytest.mark.usefixtures("write")  # for the folder
def test_class_names_that_the_data_carry_keep_their_order():
    class_label([1, 0, 1], ["b", "a", "never"], "rows.parquet")
    rows = load_training_rows(config("rows.parquet"))
    assert rows.class_names == ("b", "a", "never")
    assert rows.dataset["label"][:] == [1, 0, 1]
    assert rows.dataset.features["text"] == Value("string")
    # the names count, not the numbers
    renamed = load_training_rows(config("rows.parquet", class_names=["a", "never", "b"]))
    assert renamed.dataset["label"][:] == [0, 2, 0]
    class_label([-1, 0], ["b", "a"], "test.parquet")
    with pytest.raises(DataError, match="`label` is -1, which stands for a row without a label"):
        load_evaluation_rows(
            config("rows.parquet", eval_dataset_name="test.parquet"), rows.class_names
        )


# --- targets


def test_targets_are_numbers_also_where_they_are_text(write):
    write("rows.tsv", "text\tlabel\nx\t1.5\ny\t-2\nz\t1e-3\n")
    rows = load_training_rows(config("rows.tsv", task="regression"))
    assert rows.dataset["label"][:] == [1.5, -2.0, 0.001]
    assert rows.dataset.features["label"] == Value("float64")
    assert rows.class_names is None
    write("rows.jsonl", labelled([1, 2.5]))
    assert load_training_rows(config(task="regression")).dataset["label"][:] == [1.0, 2.5]


@pytest.mark.parametrize(
    ("name", "target", "problem"),
    [
        ("rows.csv", "high", "`label` is the text `high`, which is no number"),
        ("rows.csv", "", "`label` is empty"),
        ("rows.csv", "nan", "`label` is nan, not a finite number"),
        ("rows.csv", "-inf", "`label` is -inf, not a finite number"),
        ("rows.jsonl", "null", "`label` is missing or null"),
    ],
)
def test_what_is_no_target_is_refused_by_its_line(write, name, target, problem):
    rows = {
        "rows.csv": f"text,label\nx,1\ny,{target}\n",
        "rows.jsonl": f'{{"text": "x", "label": 1.5}}\n\n{{"text": "y", "label": {target}}}\n',
    }
    write(name, rows[name])
    settings = config(name, task="regression")
    assert refusal(settings) == f"{name}, line 3: {problem}. Correct or remove them."
    write("good.jsonl", labelled([1.0, 2.0]))
    with pytest.raises(DataError, match="line 3: `label` is"):
        load_evaluation_rows(config("good.jsonl", task="regression", eval_dataset_name=name), None)


def test_true_is_no_target(write):
    write("rows.jsonl", labelled([True, False]))
    assert refusal(config(task="regression")).startswith(
        "rows.jsonl, line 1: `label` is true, which is no number."
    )


# --- evaluation


def test_own_data_that_name_no_evaluation_have_none(write):
    write("data/train.jsonl", ROWS)
    write("data/validation.jsonl", ROWS)
    assert load_evaluation_rows(config("data"), ("neg", "pos")) == {}


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"dataset_test_split": "validation"}, "data/validation.jsonl, line 1"),
        ({"dataset_test_split": "train[1:]"}, "data/train.jsonl, line 2"),
        ({"eval_dataset_name": "data"}, "data/validation.jsonl, line 1"),
        ({"eval_dataset_name": "other.jsonl"}, "other.jsonl, line 1"),
        (
            {"eval_dataset_name": "other.jsonl", "dataset_test_split": "train[2:]"},
            "other.jsonl, line 3",
        ),
    ],
)
def test_evaluation_rows_are_those_that_are_named(write, settings, where):
    for name in ("data/train.jsonl", "data/validation.jsonl", "other.jsonl"):
        write(name, ROWS)
    rows = load_evaluation_rows(config("data", **settings), ("pos", "neg"))["validation"]
    assert rows.locate(0) == where
    assert rows.class_names == ("pos", "neg")
    # by the training data's order, not sorted anew
    text_to_label = dict(zip(rows.dataset["text"][:], rows.dataset["label"][:], strict=True))
    assert text_to_label["fine"] == 0


def test_without_the_split_the_settings_are_named(write):
    write("data/train.jsonl", ROWS)
    settings = config("data", eval_dataset_name="data")
    with pytest.raises(DataError) as error:
        load_evaluation_rows(settings, ("neg", "pos"))
    assert str(error.value) == (
        "data has no split `validation` to evaluate on, only train. Name the rows with "
        "`dataset_test_split`, such as train[90%:], or another file with `eval_dataset_name`."
    )
    write("train.jsonl", [{"sentence": "a", "label": n} for n in (0, 1)])
    with pytest.raises(DataError, match=r"train.jsonl has no split `validation` to evaluate on"):
        load_evaluation_rows(config("train.jsonl", task="cola"), ("unacceptable", "acceptable"))


def test_another_file_has_no_configuration_of_the_training_data(write, monkeypatch):
    asked = []
    real = reading.load_rows

    def load_rows(name, files, subset, split, **settings):
        asked.append((name, subset))
        return real(name, files, None, split, **settings)

    monkeypatch.setattr(reading, "load_rows", load_rows)
    write("rows.jsonl", ROWS)
    write("eval.jsonl", ROWS)
    same = config(dataset_config="main", text_column="text", dataset_test_split="train")
    load_evaluation_rows(same, ("neg", "pos"))
    other = config(dataset_config="main", text_column="text", eval_dataset_name="eval.jsonl")
    load_evaluation_rows(other, ("neg", "pos"))
    assert asked == [("rows.jsonl", "main"), ("eval.jsonl", None)]


def test_numbers_stand_only_for_classes_that_were_declared(write):
    write("rows.jsonl", ROWS)
    write("eval.jsonl", labelled([0, 1]))
    settings = {"eval_dataset_name": "eval.jsonl"}
    declared = config(class_names=["pos", "neg"], **settings)
    rows = load_evaluation_rows(declared, ("pos", "neg"))["validation"]
    assert rows.dataset["label"][:] == [0, 1]
    assert "0 as pos, 1 as neg. If they mean others" in rows.notes[0]
    with pytest.raises(DataError, match="line 1: `label` is `0`, which is none of the classes neg"):
        load_evaluation_rows(config(**settings), ("neg", "pos"))


def test_evaluation_has_as_many_texts_as_training(write):
    write("rows.jsonl", ROWS)
    write("eval.jsonl", [{**row, "premise": "p", "hypothesis": "h"} for row in ROWS])
    settings = config(eval_dataset_name="eval.jsonl")
    rows = load_evaluation_rows(settings, ("neg", "pos"))["validation"]
    assert rows.dataset.column_names == ["text", "label"]


def test_groups_are_text_in_evaluation_and_not_in_training(write):
    write("rows.jsonl", [{**row, "site": n} for n, row in enumerate(ROWS)])
    settings = config(group_column="site", dataset_test_split="train[1:]")
    assert load_training_rows(settings).dataset.column_names == ["text", "label"]
    rows = load_evaluation_rows(settings, ("neg", "pos"))["validation"]
    assert rows.dataset["group"][:] == ["1", "2"]
    write("rows.jsonl", [*ROWS, {**ROWS[0], "site": None}])
    with pytest.raises(DataError, match="line 4: `site` is missing or null"):
        load_evaluation_rows(settings, ("neg", "pos"))
    write("rows.jsonl", [{**row, "site": 0.5} for row in ROWS])
    with pytest.raises(DataError, match=r"line 2: `site` is 0.5, which names no group\."):
        load_evaluation_rows(settings, ("neg", "pos"))
    with pytest.raises(DataError, match=r"`group_column` is region, but rows.jsonl has no column"):
        load_evaluation_rows(
            config(group_column="region", dataset_test_split="train"), ("neg", "pos")
        )


# --- out of domain


def out_of_domain(*entries: dict, task: str = "rte", **settings):
    named = [{"name": f"set{n}", **entry} for n, entry in enumerate(entries)]
    return ClassificationConfig(task=task, out_of_domain=named, **settings)


def nli(write, labels: list, name: str = "nli.jsonl") -> str:
    rows = [{"premise": f"p{n}", "hypothesis": "h", "gold": x} for n, x in enumerate(labels)]
    return write(name, rows)


def test_without_entries_there_is_nothing(write):
    assert load_out_of_domain_rows(ClassificationConfig(task="rte"), ("a", "b")) == {}


def test_classes_merge_into_sets(write):
    entry = {
        "dataset_name": nli(write, ["no", "yes", "no", "?", "yes"]),
        "label_column": "gold",
        "label_map": {"no": ["neutral", "contradiction"], "yes": "entailment", "?": None},
    }
    rows = load_out_of_domain_rows(out_of_domain(entry, task="mnli"), NLI)["set0"]
    assert rows.dataset["label"][:] == [1, 0, 1, 0]
    assert rows.class_sets == ((0,), (1, 2))
    assert rows.class_names == ("entailment", "neutral or contradiction")
    assert rows.notes == (
        "1 of 5 rows of nli.jsonl (train) are dropped: `label_map` sends ? to null.",
    )
    assert rows.dataset["text"][:] == ["p0", "p1", "p2", "p4"]
    assert rows.locate(3) == "nli.jsonl, line 5"


def test_two_labels_of_the_data_may_be_one_class(write):
    entry = {
        "dataset_name": nli(write, [0, 1, 2]),
        "text_column": "premise",
        "text_pair_column": "hypothesis",
        "label_column": "gold",
        "label_map": {0: "entailment", 1: "not_entailment", 2: "not_entailment"},
    }
    classes = ("entailment", "not_entailment")
    rows = load_out_of_domain_rows(out_of_domain(entry), classes)["set0"]
    assert rows.dataset["label"][:] == [0, 1, 1]
    assert rows.class_sets is None
    assert rows.class_names == classes
    swapped = {**entry, "label_map": {0: "not_entailment", 1: "entailment", 2: None}}
    rows = load_out_of_domain_rows(out_of_domain(swapped), classes)["set0"]
    assert (rows.dataset["label"][:], rows.class_sets) == ([1, 0], None)


def test_a_part_of_the_classes_is_a_set_each(write):
    entry = {
        "dataset_name": nli(write, ["c", "e"]),
        "label_column": "gold",
        "label_map": {"c": "contradiction", "e": "entailment"},
    }
    rows = load_out_of_domain_rows(out_of_domain(entry, task="mnli"), NLI)["set0"]
    assert rows.class_sets == ((0,), (2,))
    assert (rows.class_names, rows.dataset["label"][:]) == (("entailment", "contradiction"), [1, 0])


def test_without_a_map_the_labels_are_the_classes_of_the_task(write):
    entry = {"dataset_name": nli(write, ["neutral", "entailment"]), "label_column": "gold"}
    rows = load_out_of_domain_rows(out_of_domain(entry, task="mnli"), NLI)["set0"]
    assert (rows.dataset["label"][:], rows.class_sets) == ([1, 0], None)
    # another data set may number its classes in another order
    entry["dataset_name"] = nli(write, [1, 0])
    with pytest.raises(DataError) as error:
        load_out_of_domain_rows(out_of_domain(entry, task="mnli"), NLI)
    assert str(error.value).startswith(
        "out_of_domain, `set0`: nli.jsonl, line 1: `gold` is `1`, which is none of the classes "
        "entailment, neutral, contradiction"
    )


def test_a_label_that_the_map_does_not_have_is_refused(write):
    entry = {
        "dataset_name": nli(write, ["e", "x"]),
        "label_column": "gold",
        "label_map": {"e": "entailment", "n": "neutral"},
    }
    with pytest.raises(DataError) as error:
        load_out_of_domain_rows(out_of_domain(entry, task="mnli"), NLI)
    assert str(error.value) == (
        "out_of_domain, `set0`: nli.jsonl, line 2: `gold` is `x`, which is none of the labels in "
        "`label_map` (e, n); add it, with null to leave its rows out. Correct or remove them."
    )


def test_a_map_to_what_is_no_class_is_refused(write):
    entry = {
        "dataset_name": nli(write, ["e", "x"]),
        "label_column": "gold",
        "label_map": {"e": "entailed", "x": "neutral"},
    }
    with pytest.raises(ConfigError) as error:
        load_out_of_domain_rows(out_of_domain(entry, task="mnli"), NLI)
    assert str(error.value) == (
        "out_of_domain, `set0`: `label_map` leads to `entailed`, which is none of the classes "
        "entailment, neutral, contradiction (did you mean `entailment`?)."
    )


def test_a_map_that_leaves_no_row_is_refused(write):
    label_map = {"x": None, "e": "entailment", "n": "neutral"}
    entry = {"dataset_name": nli(write, ["x"]), "label_column": "gold", "label_map": label_map}
    with pytest.raises(
        DataError, match=r"`set0`: `label_map` leaves no row of nli.jsonl \(train\)"
    ):
        load_out_of_domain_rows(out_of_domain(entry, task="mnli"), NLI)


def test_rows_that_are_left_out_need_no_text_and_others_keep_their_line(write):
    rows = [{"text": t, "label": n} for t, n in (("", "skip"), ("a", "x"), ("b", "y"), ("", "x"))]
    write("rows.jsonl", rows)
    write("train.jsonl", labelled(["x", "y"]))
    entry = {"name": "it", "dataset_name": "rows.jsonl"}
    entry["label_map"] = {"skip": None, "x": "x", "y": "y"}
    settings = config("train.jsonl", out_of_domain=[entry])
    with pytest.raises(DataError, match=r"rows.jsonl, line 4: `text` is empty. Correct"):
        load_out_of_domain_rows(settings, ("x", "y"))
    write("rows.jsonl", rows[:3])
    assert len(load_out_of_domain_rows(settings, ("x", "y"))["it"].dataset) == 2


def test_entries_have_their_own_columns_split_and_group(write):
    for name in ("far/validation.jsonl", "far/test.jsonl"):
        write(name, [{"t": name, "c": "pos", "g": "u"}])
    write("rows.jsonl", [{"body": "x", "class": n} for n in ("neg", "pos")])
    entry = {
        "dataset_name": "far",
        "text_column": "t",
        "label_column": "c",
        "group_column": "g",
    }
    entries = [{"name": "v", **entry}, {"name": "t", **entry, "split": "test"}]
    settings = config(text_column="body", label_column="class", out_of_domain=entries)
    found = load_out_of_domain_rows(settings, ("neg", "pos"))
    assert list(found) == ["v", "t"]
    assert found["v"].dataset[0] == {"text": "far/validation.jsonl", "label": 1, "group": "u"}
    assert found["t"].dataset["text"][0] == "far/test.jsonl"
    # what an entry does not name is called as in the training data
    write("like.jsonl", [{"body": "y", "class": "neg", "text": "z"}])
    settings = config(
        text_column="body",
        label_column="class",
        out_of_domain=[{"name": "like", "dataset_name": "like.jsonl"}],
    )
    rows = load_out_of_domain_rows(settings, ("neg", "pos"))["like"]
    assert rows.dataset[0] == {"text": "y", "label": 0}


def test_an_entry_with_another_number_of_texts_is_refused(write):
    write("rows.jsonl", [{"premise": "p", "hypothesis": "h", "label": n} for n in (0, 1)])
    write("single.jsonl", labelled([0, 1]))
    entry = {"name": "s", "dataset_name": "single.jsonl", "text_column": "text"}
    with pytest.raises(DataError) as error:
        load_out_of_domain_rows(config(out_of_domain=[entry]), ("0", "1"))
    assert str(error.value) == (
        "out_of_domain, `s`: single.jsonl is read with one text in a row (text), but the training "
        "data have two texts. Set `text_column` and `text_pair_column`."
    )


def test_targets_of_another_data_set_need_no_classes(write):
    write("rows.jsonl", labelled([0.5, 1.5]))
    write("far.tsv", "sentence\tscore\nx\t7\n")
    entry = {"name": "far", "dataset_name": "far.tsv", "label_column": "score"}
    settings = config(task="regression", out_of_domain=[entry])
    rows = load_out_of_domain_rows(settings, None)["far"]
    assert rows.dataset[0] == {"text": "x", "label": 7.0}


# --- transforms


def test_transforms_change_the_training_rows_only(write):
    labels = ["a"] * 20 + ["b"] * 20
    write("rows.jsonl", labelled(labels))
    settings = config(
        label_noise=0.5,
        class_fractions={"a": 0.25},
        transform_seed=3,
        dataset_test_split="train",
    )
    rows = load_training_rows(settings)
    assert len(rows.dataset) == 25
    assert rows.transforms["class_fractions"]["rows_per_class_after"] == {"a": 5, "b": 20}
    assert rows.transforms["label_noise"]["num_changed"] == round(0.5 * 25)
    assert rows.transforms["seed"] == 3
    num_changed = 0
    for number, row in enumerate(rows.dataset):
        source = int(row["text"][1:])
        assert rows.locate(number) == f"rows.jsonl, line {source + 1}"
        num_changed += "ab"[row["label"]] != labels[source]
    assert num_changed == 12
    validation = load_evaluation_rows(settings, ("a", "b"))["validation"]
    assert validation.dataset["label"][:] == [0] * 20 + [1] * 20
    assert validation.transforms == {}


def test_noise_in_targets_exchanges_them(write):
    write("rows.jsonl", labelled([float(n) for n in range(10)]))
    rows = load_training_rows(config(task="regression", label_noise=0.4))
    targets = rows.dataset["label"][:]
    assert sorted(targets) == [float(n) for n in range(10)]
    assert sum(target != n for n, target in enumerate(targets)) == 4
    assert rows.transforms["label_noise"]["num_changed"] == 4


def test_fractions_of_what_is_no_class_are_refused(write):
    write("rows.jsonl", ROWS)
    with pytest.raises(ConfigError) as error:
        load_training_rows(config(class_fractions={"positiv": 0.5}))
    assert str(error.value) == (
        "`class_fractions` names `positiv`, which is none of the classes neg, pos (did you mean "
        "`pos`?)."
    )


def test_fractions_name_classes_as_numbers_too(write):
    write("rows.jsonl", labelled([0] * 4 + [1] * 4))
    rows = load_training_rows(config(class_fractions={0: 0.5}))
    assert rows.dataset["label"][:].count(0) == 2
