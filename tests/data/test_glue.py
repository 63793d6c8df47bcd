"""The table of GLUE against the published files and the hub's; the real ones where they are."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetInfo, Features, SplitDict, SplitInfo, Value

from balora.config.classification import (
    OWN_TASKS,
    REGRESSION_TASKS,
    SINGLE_TEXT_TASKS,
    ClassificationConfig,
)
from balora.config.fields import choices
from balora.data.classification import (
    load_evaluation_rows,
    load_out_of_domain_rows,
    load_training_rows,
)
from balora.data.glue import GLUE_HUB_ID, GLUE_TASKS, evaluated_on
from balora.errors import DataError

# the first line of each published train.tsv, then one row; MNLI's and QQP's with the columns that
# are read among the others
TSV = {
    "cola": ("", "gj04\t1\t\tHe left.\ncj99\t0\t*\tHe leave."),
    "sst2": ("sentence\tlabel", 'a "gem \t1\nbad \t0'),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\tHe said " no .\tHe said no .\n0\t9\t1\tOne .\tTwo .',
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tg\tf\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t3.750\n"
        "1\tg\tf\t2012\t2\tnone\tnone\tA man.\tA dog.\t0.5",
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "1\t2\t3\tWhy?\tHow?\t0\n2\t3\t4\tWho?\tWho is it?\t1",
    ),
    "mnli": (
        "index\tpromptID\tgenre\tsentence1_binary_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\tg\t( x )\tIt rains.\tIt is wet.\tneutral\tentailment\n"
        "1\t2\tg\t( x )\tIt rains.\tIt is dry.\tneutral\tcontradiction",
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        "0\tWho?\tI did.\tentailment\n1\tWhy?\tIt is red.\tnot_entailment",
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tIt rains.\tIt is wet.\tnot_entailment\n1\tA.\tB.\tentailment",
    ),
}
FIRST_ROWS = {
    "cola": {"text": "He left.", "label": 1},
    "sst2": {"text": 'a "gem ', "label": 1},
    "mrpc": {"text": 'He said " no .', "text_pair": "He said no .", "label": 1},
    "stsb": {"text": "A plane.", "text_pair": "An air plane.", "label": 3.75},
    "qqp": {"text": "Why?", "text_pair": "How?", "label": 0},
    "mnli": {"text": "It rains.", "text_pair": "It is wet.", "label": 0},
    "qnli": {"text": "Who?", "text_pair": "I did.", "label": 0},
    "rte": {"text": "It rains.", "text_pair": "It is wet.", "label": 1},
}
# nyu-mll/glue: the columns beside label and idx, and the names of the classes in their order
HUB = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "stsb": (("sentence1", "sentence2"), None),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
}


def tsv(task: str) -> str:
    header, rows = TSV[task]
    return (header + "\n" if header else "") + rows + "\n"


def dev_names(task: str) -> list[str]:
    return ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]


def hub_rows(task: str, labels: list[float]) -> Dataset:
    texts, names = HUB[task]
    features = {column: Value("string") for column in texts}
    features |= {"label": ClassLabel(names=list(names)) if names else Value("float32")}
    columns = {column: [f"{column} {i}" for i in range(len(labels))] for column in texts}
    return Dataset.from_dict({**columns, "label": labels}, features=Features(features))


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the hub; the splits of every task, and what was asked for."""
    asked = []

    def load_dataset(name, config=None, *, split):
        asked.append((name, config, split))
        labels = [-1, -1] if split.startswith("test") else [0, 1]
        rows = hub_rows(config, labels)
        info = SplitDict({split: SplitInfo(name=split, num_examples=len(rows))})
        rows.info.update(DatasetInfo(splits=info))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_table_has_every_task_and_agrees_with_the_settings():
    tasks = choices(get_type_hints(ClassificationConfig)["task"])
    assert set(GLUE_TASKS) == set(tasks) - set(OWN_TASKS)
    for name, task in GLUE_TASKS.items():
        assert (task.class_names is None) == (name in REGRESSION_TASKS)
        assert (task.num_texts == 1) == (name in SINGLE_TEXT_TASKS)
        assert (task.columns[0].texts, task.class_names) == HUB[name]
        assert task.config == name


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_the_hubs_rows_are_read(task, hub):
    config = ClassificationConfig(task=task)
    rows = load_training_rows(config)
    texts, names = HUB[task]
    expected = {"text": f"{texts[0]} 0", "label": 0}
    if len(texts) == 2:
        expected["text_pair"] = f"{texts[1]} 0"
    assert rows.dataset[0] == expected
    assert rows.class_names == names
    kind = "float64" if task == "stsb" else "int64"
    assert rows.dataset.features["label"] == Value(kind)
    evaluation = load_evaluation_rows(config, names)
    if task == "mnli":
        assert list(evaluation) == ["matched", "mismatched"]
        splits = ["validation_matched", "validation_mismatched"]
    else:
        assert list(evaluation) == ["validation"]
        splits = ["validation"]
    assert hub == [("nyu-mll/glue", task, split) for split in ["train", *splits]]
    assert [rows.class_names for rows in evaluation.values()] == [names] * len(splits)


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_the_published_tsv_files_are_read(task, write):
    for name in ("train", *dev_names(task)):
        write(f"folder/{name}.tsv", tsv(task))
    # no labels, other columns: must not be touched
    write("folder/test.tsv", "index\tsentence\n0\tHe left.\n")
    config = ClassificationConfig(task=task, dataset_name="folder")
    rows = load_training_rows(config)
    assert rows.dataset[0] == FIRST_ROWS[task]
    assert len(rows.dataset) == 2
    line = 1 if task == "cola" else 2
    assert rows.locate(0) == f"folder/train.tsv, line {line}"
    evaluation = load_evaluation_rows(config, rows.class_names)
    assert [found.locate(1) for found in evaluation.values()] == [
        f"folder/{name}.tsv, line {line + 1}" for name in dev_names(task)
    ]


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_a_single_published_file_is_read_and_evaluated_whole(task, write):
    write("train.tsv", tsv(task))
    write("other.tsv", tsv(task))
    config = ClassificationConfig(
        task=task, dataset_name="train.tsv", eval_dataset_name="other.tsv"
    )
    assert load_training_rows(config).dataset[0] == FIRST_ROWS[task]
    evaluation = load_evaluation_rows(config, GLUE_TASKS[task].class_names)
    assert list(evaluation) == ["validation"]
    assert evaluation["validation"].dataset[0] == FIRST_ROWS[task]


@pytest.mark.parametrize("header", ["", "source\tlabel\tstar\tsentence\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_colas_file_may_have_a_header_and_a_byte_order_mark(write, header, mark):
    write("cola.tsv", mark + header + tsv("cola"))
    rows = load_training_rows(ClassificationConfig(task="cola", dataset_name="cola.tsv"))
    assert rows.dataset[:] == {"text": ["He left.", "He leave."], "label": [1, 0]}
    assert rows.locate(1) == f"cola.tsv, line {3 if header else 2}"


def test_colas_out_of_domain_file_is_an_entry_by_its_name_and_no_validation_split(write):
    for name in ("train", "dev", "out_of_domain_dev"):
        write(f"CoLA/{name}.tsv", tsv("cola") * (2 if name == "dev" else 1))
    entry = {"name": "other_books", "dataset_name": "CoLA/out_of_domain_dev.tsv"}
    config = ClassificationConfig(task="cola", dataset_name="CoLA", out_of_domain=[entry])
    classes = GLUE_TASKS["cola"].class_names
    assert len(load_evaluation_rows(config, classes)["validation"].dataset) == 4
    rows = load_out_of_domain_rows(config, classes)["other_books"]
    assert rows.dataset[:] == {"text": ["He left.", "He leave."], "label": [1, 0]}
    assert rows.class_sets is None


def test_the_authors_own_split_of_cola_is_read(write):
    write("raw/in_domain_train.tsv", tsv("cola"))
    write("raw/in_domain_dev.tsv", tsv("cola"))
    write("raw/out_of_domain_dev.tsv", tsv("cola"))
    config = ClassificationConfig(task="cola", dataset_name="raw")
    assert len(load_training_rows(config).dataset) == 2
    rows = load_evaluation_rows(config, GLUE_TASKS["cola"].class_names)["validation"]
    assert rows.locate(0) == "raw/in_domain_dev.tsv, line 1"


def test_parquet_files_under_the_hubs_names_are_read(write):
    write("mnli/README.md", "x")
    for split in ("train", "validation_matched", "validation_mismatched", "test_matched"):
        rows = hub_rows("mnli", [2, 0] if split != "test_matched" else [-1, -1])
        rows.to_parquet(f"mnli/{split}-00000-of-00001.parquet")
    config = ClassificationConfig(task="mnli", dataset_name="mnli")
    assert load_training_rows(config).dataset["label"][:] == [2, 0]
    evaluation = load_evaluation_rows(config, GLUE_TASKS["mnli"].class_names)
    assert [(key, rows.split) for key, rows in evaluation.items()] == [
        ("matched", "validation_matched"),
        ("mismatched", "validation_mismatched"),
    ]


def test_the_hubs_class_numbers_without_names_are_read(write):
    name = write(
        "rte.jsonl", [{"sentence1": "a", "sentence2": "b", "label": label} for label in (1, 0)]
    )
    rows = load_training_rows(ClassificationConfig(task="rte", dataset_name=name))
    assert rows.dataset["label"][:] == [1, 0]
    assert rows.class_names == ("entailment", "not_entailment")


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_rows_of_a_test_split_without_labels_get_a_clear_sentence(task, hub):
    config = ClassificationConfig(task=task, dataset_test_split="test")
    with pytest.raises(DataError) as error:
        load_evaluation_rows(config, GLUE_TASKS[task].class_names)
    assert str(error.value) == (
        "row 0 of nyu-mll/glue (test), counted from 0: `label` is -1, which stands for a row "
        "without a label, as in the test splits of GLUE on the hub; name a split that has labels. "
        "1 more rows cannot be evaluated on either. Correct or remove them."
    )


def test_empty_questions_of_qqp_are_kept_with_a_note(write, caplog):
    header = TSV["qqp"][0]
    write("qqp.tsv", f"{header}\n1\t2\t3\tWhy?\t\t0\n2\t3\t4\tWho?\tWho is it?\t1\n")
    rows = load_training_rows(ClassificationConfig(task="qqp", dataset_name="qqp.tsv"))
    assert rows.dataset[0] == {"text": "Why?", "text_pair": "", "label": 0}
    assert rows.notes == (
        "1 of 2 rows of qqp.tsv (train) have an empty text; qqp was published so, and they are "
        "kept.",
    )
    assert rows.notes[0] in caplog.text


def test_a_null_question_of_qqp_is_refused(write):
    rows = [{"question1": "a", "question2": q, "label": n} for n, q in enumerate(("b", None))]
    write("qqp.jsonl", rows)
    with pytest.raises(DataError, match=r"qqp.jsonl, line 2: `question2` is missing or null"):
        load_training_rows(ClassificationConfig(task="qqp", dataset_name="qqp.jsonl"))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["train"], "glue has no split `validation` to evaluate on, only train. Name the rows "),
        (["dev"], None),
    ],
)
def test_a_folder_without_validation_rows_says_what_to_set(write, files, sentence):
    for name in files:
        write(f"glue/{name}.tsv", tsv("rte"))
    config = ClassificationConfig(task="rte", dataset_name="glue")
    classes = GLUE_TASKS["rte"].class_names
    if sentence is None:
        assert list(load_evaluation_rows(config, classes)) == ["validation"]
        return
    with pytest.raises(DataError) as error:
        load_evaluation_rows(config, classes)
    assert str(error.value).startswith(sentence)
    assert "`dataset_test_split`" in str(error.value)
    assert "`eval_dataset_name`" in str(error.value)


REAL = {  # folder, training rows, validation rows as the files have them
    "cola": ("CoLA", 8551, 1043),
    "mrpc": ("MRPC", 3667, 408),
    "stsb": ("STS-B", 5749, 1500),
}


@pytest.fixture
def real(shared_data) -> Path:
    folder = shared_data / "data"
    if not (folder / "glue").is_dir():
        pytest.skip(f"{folder} has no folder glue")
    return folder


@pytest.mark.parametrize("task", REAL)
def test_the_real_files_are_read_whole(task, real):
    folder, num_train, num_validation = REAL[task]
    config = ClassificationConfig(task=task, dataset_name=str(real / "glue" / folder))
    train = load_training_rows(config)
    rows = load_evaluation_rows(config, train.class_names)["validation"]
    assert (len(train.dataset), len(rows.dataset)) == (num_train, num_validation)
    for loaded in (train, rows):
        _check_against_the_file(loaded, task)


def _check_against_the_file(rows, task: str) -> None:
    """Compare every row with its line, split by hand at the tabs."""
    (file,) = rows.files.files[rows.split]
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    columns = lines[0].split("\t") if task != "cola" else list(GLUE_TASKS["cola"].tsv_columns)
    names = {
        "cola": ["sentence", None, "label"],
        "mrpc": ["#1 String", "#2 String", "Quality"],
        "stsb": ["sentence1", "sentence2", "score"],
    }[task]
    for number in (0, 1, len(rows.dataset) // 2, len(rows.dataset) - 1):
        line = int(rows.locate(number).rpartition(" ")[2])
        assert line == number + (1 if task == "cola" else 2)
    start = 0 if task == "cola" else 1
    kept = [line.rstrip("\r").split("\t") for line in lines[start:] if line]
    assert len(kept) == len(rows.dataset)
    for values, row in zip(kept, rows.dataset, strict=True):
        fields = dict(zip(columns, values, strict=True))
        assert row["text"] == fields[names[0]]
        assert names[1] is None or row["text_pair"] == fields[names[1]]
        assert row["label"] == float(fields[names[2]])


def test_the_real_out_of_domain_rows_of_cola_follow_the_in_domain_ones(real):
    folder = real / "glue" / "CoLA"
    entry = {"name": "books", "dataset_name": str(folder / "out_of_domain_dev.tsv")}
    config = ClassificationConfig(
        task="cola",
        dataset_name=str(folder),
        dataset_test_split="validation[:527]",
        out_of_domain=[entry],
    )
    classes = GLUE_TASKS["cola"].class_names
    inside = load_evaluation_rows(config, classes)["validation"]
    outside = load_out_of_domain_rows(config, classes)["books"]
    assert (len(inside.dataset), len(outside.dataset)) == (527, 516)
    assert sum(outside.dataset["label"][:]) == 354
    whole = load_evaluation_rows(
        ClassificationConfig(task="cola", dataset_name=str(folder)), classes
    )
    rest = set(whole["validation"].dataset["text"][527:])
    same = rest & set(outside.dataset["text"][:])
    assert len(same) >= 500  # a few differ in quotes


def test_the_real_sick_is_out_of_domain_data_for_stsb(real):
    file = real / "sick" / "SICK.txt"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    entry = {
        "name": "sick",
        "dataset_name": str(file),
        "text_column": "sentence_A",
        "text_pair_column": "sentence_B",
        "label_column": "relatedness_score",
    }
    config = ClassificationConfig(task="stsb", out_of_domain=[entry])
    rows = load_out_of_domain_rows(config, None)["sick"]
    assert len(rows.dataset) == 9927
    assert all(1 <= target <= 5 for target in rows.dataset["label"][:])
    assert rows.dataset[1]["label"] == 3.2
    assert rows.locate(1) == f"{file}, line 3"


def test_what_a_recipe_is_evaluated_on_has_a_name():
    assert evaluated_on({"task": "cola", "dataset_name": None}) == GLUE_HUB_ID
    assert evaluated_on({"task": "cola", "dataset_name": "CoLA"}) == "CoLA"
    assert evaluated_on({"dataset_name": "a.csv", "eval_dataset_name": "b.csv"}) == "b.csv"
    assert evaluated_on({}) == "own data"
