"""The files of a comparison, and which folders are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from balora.compare.folder import Folder, row_of
from balora.compare.plan import LabFiles, Plan
from balora.errors import ConfigError
from balora.rows import read_rows


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "out")


def finish(folder, cells, **figures):
    for cell in cells:
        folder.prepare(cell)
        folder.write_row(cell, row_of(cell, **figures))


def test_a_cell_is_finished_when_its_row_is_there_without_an_error(folder, comparison):
    one, other = Plan(comparison()).final()
    assert not folder.is_finished(one)
    folder.prepare(one)
    assert not folder.is_finished(one)
    folder.write_row(one, row_of(one, error="killed by signal 9"))
    assert not folder.is_finished(one)
    assert folder.row(one)["error"] == "killed by signal 9"
    folder.write_row(one, row_of(one, metrics={"exact_match": 0.5}))
    assert folder.is_finished(one)
    assert not folder.is_finished(other)
    # to run it again starts without its row
    folder.prepare(one)
    assert folder.row(one) is None


def test_a_cell_whose_chosen_values_have_changed_runs_again(folder, comparison):
    plan = Plan(comparison({"methods": ["lora"], "sweep": {"lora": {"learning_rate": [1, 2]}}}))
    (first,), (second,) = (plan.final({"lora": {"learning_rate": v}}) for v in (1, 2))
    finish(folder, [first])
    assert folder.is_finished(first)
    assert not folder.is_finished(second)
    folder.check_cells([second])


def test_rows_are_collected_in_the_order_of_the_cells_by_rename(folder, comparison):
    cells = Plan(comparison()).final()
    finish(folder, reversed(cells), metrics={"exact_match": float("nan"), "kl": float("inf")})
    rows = folder.collect(cells)
    text = (folder.path / "results.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == rows == read_rows(folder.path)
    assert [row["cell"] for row in rows] == ["lora/seed-0", "pissa/seed-0"]
    assert rows[0]["metrics"] == {"exact_match": None, "kl": None}
    assert set(rows[0]) == {
        *("cell", "stage", "condition", "method", "seed", "fields", "metrics", "majority", "bench"),
        *("versions", "num_trainable_parameters", "train_seconds", "evaluation_seconds"),
        *("seconds", "peak_memory_mib", "dtype", "commit", "error"),
    }
    assert not list(folder.path.rglob(".tmp*"))


def test_a_wider_comparison_goes_on_with_what_is_there(folder, comparison):
    first = comparison()
    folder.write_comparison(first)
    finish(folder, Plan(first).final())
    wider = comparison(
        {
            "methods": ["full", "lora", "mine", "pissa"],
            "seeds": [0, 1],
            "settings": {"mine": {"method": "lora+kl=1"}},
            "baseline": "full",
            "jobs": 2,
            "keep_models": False,
        }
    )
    folder.check(wider)
    cells = Plan(wider).final()
    folder.check_cells(cells)
    finished = [cell.key for cell in cells if folder.is_finished(cell)]
    assert finished == ["lora/seed-0", "pissa/seed-0"]


@pytest.mark.parametrize(
    ("compare", "fields", "sentences"),
    [
        ({}, {"max_steps": 3}, ["`max_steps` is 2 there and 3 here"]),
        ({"methods": ["full"]}, {"lora_r": 4}, ["`lora_r` is 2 there and 4 here"]),
        ({"num_rows": 3}, {}, ["`compare.num_rows` is not set there and 3 here"]),
        (
            {"settings": {"lora": {"learning_rate": 0.5}}},
            {},
            ["lora/seed-0: `learning_rate` is 0.0002 there and 0.5 here"],
        ),
        (
            {"sweep": {"*": {"weight_decay": [0.0, 0.1]}}},
            {},
            ["pissa/seed-0: `sweep.values.weight_decay` is not set there and [0.0, 0.1] here"],
        ),
    ],
)
def test_another_comparison_is_refused_with_both_values(
    folder, comparison, compare, fields, sentences
):
    first = comparison()
    folder.write_comparison(first)
    finish(folder, Plan(first).final())
    other = comparison(compare, **fields)

    def check():
        folder.check(other)
        folder.check_cells(Plan(other).final())

    with pytest.raises(ConfigError) as error:
        check()
    for sentence in (*sentences, "pass `--overwrite` to start again"):
        assert sentence in str(error.value)


def test_what_a_sweep_chose_under_binds_what_was_run_with_it(folder, comparison):
    swept = {"methods": ["lora"], "sweep": {"lora": {"learning_rate": [1, 2]}}}
    first = {**swept, "seeds": [0, 1], "conditions": {"a": {}, "b": {}}}
    finish(folder, Plan(comparison(first)).final())
    wider = {**first, "seeds": [0, 1, 2], "conditions": {"a": {}, "b": {}, "c": {}}}
    folder.check_cells(Plan(comparison(wider)).final())
    with pytest.raises(ConfigError, match=r"`sweep.seed` is 0 there and 1 here"):
        folder.check_cells(Plan(comparison({**first, "seeds": [1, 0]})).final())
    with pytest.raises(ConfigError, match=r'`sweep.condition` is "a" there and "b" here'):
        folder.check_cells(Plan(comparison({**first, "conditions": {"b": {}, "a": {}}})).final())


def test_cells_of_a_lab_that_was_made_by_other_code_are_refused(folder, comparison):
    data = ("model_name_or_path", "dataset_name", "eval_dataset_name")
    found = comparison(lab={}, **dict.fromkeys(data))

    def cells(entry):
        paths = (Path("cache", "lab", entry, "model"), Path("train"), Path("test"))
        return Plan(found, {"": LabFiles(*paths)}).final()

    finish(folder, cells("aaaa"))
    folder.check_cells(cells("aaaa"))
    folder.check_cells(Plan(found).final())  # it is not known yet what will be built
    with pytest.raises(ConfigError, match=r'`lab.model` is "aaaa" there and "bbbb" here'):
        folder.check_cells(cells("bbbb"))
    assert not any(map(folder.is_finished, cells("bbbb")))


def test_cells_that_are_not_finished_bind_nobody(folder, comparison):
    cells = Plan(comparison()).final()
    finish(folder, cells, error="exit status 1")
    changed = [
        dataclasses.replace(cell, recipe={**cell.recipe, "learning_rate": 9}) for cell in cells
    ]
    folder.check_cells(changed)


def test_a_folder_of_something_else_is_refused_and_only_ours_is_cleared(folder, comparison):
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("my own")
    with pytest.raises(ConfigError, match="is not empty and holds no comparison"):
        folder.check(comparison())
    finish(folder, Plan(comparison()).final())
    folder.collect(Plan(comparison()).final())
    folder.clear()
    assert [path.name for path in folder.path.iterdir()] == ["thesis.tex"]


def test_a_folder_with_things_called_as_ours_is_not_cleared(folder, comparison):
    paper = folder.path / "plots" / "paper.pdf"
    paper.parent.mkdir(parents=True)
    paper.write_text("my own")
    with pytest.raises(ConfigError, match="holds no comparison, but plots, which `--overwrite`"):
        folder.check_ours()
    folder.write_comparison(comparison())
    folder.check_ours()


def test_what_says_that_it_is_a_comparison_is_cleared_last(folder, comparison, monkeypatch):
    folder.write_comparison(comparison())
    (folder.path / "cells").mkdir()

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("balora.compare.folder.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.clear()
    folder.check_ours()


def test_an_empty_folder_and_none_are_fine(folder, comparison):
    folder.check(comparison())
    folder.path.mkdir()
    folder.check(comparison())
    # a start that was killed in its first write
    folder.lease.mkdir()
    (folder.path / ".balora-abcd1234").mkdir()
    folder.check(comparison())


@pytest.mark.parametrize("name", ["result.json", "cell.json"])
@pytest.mark.parametrize("text", ["", "{", "null", "{}", None])
def test_what_a_crash_of_the_machine_left_of_a_cell_is_run_again(folder, comparison, name, text):
    one, other = Plan(comparison()).final()
    finish(folder, [one, other])
    file = folder.of(one) / name
    file.unlink() if text is None else file.write_text(text)
    folder.check_cells([one, other])
    assert not folder.is_finished(one)
    assert folder.is_finished(other)
    folder.collect([one, other])


def test_a_row_without_a_field_is_named(folder, comparison):
    cells = Plan(comparison()).final()
    finish(folder, cells)
    folder.collect(cells)
    file = folder.path / "results.jsonl"
    rows = read_rows(folder.path)
    for name, value in (("metrics", 3), ("error", ...), ("cell", None)):
        broken = {**rows[1], name: value}
        if value is ...:
            del broken[name]
        file.write_text(f"{json.dumps(rows[0])}\n{json.dumps(broken)}\n")
        with pytest.raises(ConfigError, match=f"is damaged: line 2 has no `{name}`"):
            read_rows(folder.path)


def test_rows_that_are_damaged_are_named(folder, comparison):
    finish(folder, Plan(comparison()).final())
    folder.collect(Plan(comparison()).final())
    with (folder.path / "results.jsonl").open("a") as lines:
        lines.write('{"cell": ')
    with pytest.raises(ConfigError, match=r"results\.jsonl` is damaged: line 3 is no JSON"):
        read_rows(folder.path)


@pytest.mark.parametrize(
    ("output", "relation"), [("a/b", "is"), ("a", "holds"), ("a/b/c", "lies in")]
)
def test_a_folder_that_is_read_is_never_the_output(comparison, output, relation, tmp_path):
    base = tmp_path / "a" / "b"
    base.mkdir(parents=True)
    asked = comparison(model_name_or_path=str(base))
    with pytest.raises(ConfigError, match=f"{relation} `model_name_or_path` '{base}', which"):
        Folder(tmp_path / output).check_reads(asked)
    Folder(tmp_path / "out").check_reads(asked)
