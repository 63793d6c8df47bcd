"""`balora compare` as a whole: real runs once, faked ones for what can happen to them."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest

from balora.compare import command, runner
from balora.compare.command import compare
from balora.compare.folder import row_of
from balora.compare.lease import Lease
from balora.config.values import read_mapping
from balora.data import examples
from balora.errors import BaloraError, ConfigError, DataError
from balora.report import page
from balora.rows import read_rows
from support.comparison import ROWS, write_rows
from support.usage import rows_read_by


class Shown(list):
    """What was shown, and a command that collects it."""

    def run(self, path, **given):
        self.clear()
        compare(path, {name: str(value) for name, value in given.items()}, show=self.append)
        return "\n".join(self)


@contextmanager
def held(lock):
    """Hold a lock of a folder as another process would."""
    lease = Lease.take(lock)
    yield lease
    lease.release()


@pytest.fixture
def shown():
    return Shown()


@pytest.fixture
def faked(monkeypatch):
    """Put a runner in the place of the real one: figures by a function of the cell."""
    ran = []
    figures = {"of": lambda cell: {"metrics": {"exact_match": 0.5}}}

    def run(self, cells, reported, *, title, waits=True, impossible=None):
        for cell in cells:
            if cell.key in (impossible or {}):
                self.folder.prepare(cell)
                self.folder.write_row(cell, row_of(cell, error=impossible[cell.key]))
            elif not self.folder.is_finished(cell):
                ran.append(cell)
                self.folder.prepare(cell)
                self.folder.write_row(cell, row_of(cell, **figures["of"](cell)))
        self.folder.collect(reported)

    monkeypatch.setattr(runner.Runner, "run", run)
    return ran, figures


def test_text_generation_from_recipe_to_table(
    recipe, model_folder, views, shown, tmp_path, monkeypatch
):
    path = recipe(
        {"methods": ["lora", "pissa"], "jobs": 2, "max_new_tokens": 4, "keep_models": False},
        model_name_or_path=model_folder,
        dataset_name=write_rows(tmp_path / "train.jsonl", ROWS),
        eval_dataset_name=write_rows(tmp_path / "test.jsonl", ROWS[:4]),
    )
    text = shown.run(path)
    out = tmp_path / "out"
    assert "2 rows, to lora" in text
    assert str(out / "results.jsonl") in text
    assert str(out / "report.html") in text
    assert views == [("tables", out), ("report", out)]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == ["lora/seed-0", "pissa/seed-0"]
    assert all(row["error"] is None and row["metrics"]["kl"] > 0 for row in rows)
    assert all(row["peak_memory_mib"] > 100 and row["seconds"] > 0 for row in rows)
    assert not list(out.glob("cells/*/run"))
    assert len(list(out.glob("cells/*/details.json"))) == 2
    monkeypatch.chdir("/")  # what is printed reads them from anywhere
    assert rows_read_by(text) == rows
    # the folder's own recipe asks for the same, and nothing is left to run
    before = (out / "results.jsonl").stat().st_mtime_ns
    assert shown.run(out / "comparison.yaml") == text
    assert (out / "results.jsonl").stat().st_mtime_ns > before
    assert [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()] == rows


@pytest.fixture
def unchecked(monkeypatch):
    """Leave out of a dry run what builds the runs: their model is not there."""
    monkeypatch.setattr("balora.trainers.preflight.check_run", lambda recipe: None)


@pytest.mark.usefixtures("unchecked")
def test_dry_run_lists_the_cells_and_writes_nothing(recipe, shown, tmp_path):
    sweep = {"lora": {"learning_rate": [0.1, 0.2]}}
    text = shown.run(recipe({"methods": ["lora", "base"], "sweep": sweep}), dry_run=True)
    assert text.splitlines() == [
        "choose/lora/seed-0/learning_rate=0.1",
        "choose/lora/seed-0/learning_rate=0.2",
        "lora/seed-0",
        "base",
        "4 cells",
    ]
    assert not (tmp_path / "out").exists()


def test_dry_run_reads_data_that_methods_share_once_and_tells_once(
    recipe, model_folder, shown, tmp_path, monkeypatch, caplog
):
    turns = [
        {"role": role, "content": f"{role} {i}"} for i in "ab" for role in ("user", "assistant")
    ]
    data = write_rows(tmp_path / "chats.jsonl", [{"messages": turns}] * 4)
    read, tokenized = [], []
    checked, mapped = examples._check_rows, datasets.Dataset.map

    def check(where, layout):
        read.append(where.name)
        return checked(where, layout)

    def map_rows(self, *args, **options):
        tokenized.append(options.get("desc"))
        return mapped(self, *args, **options)

    monkeypatch.setattr(examples, "_check_rows", check)
    monkeypatch.setattr(datasets.Dataset, "map", map_rows)
    compared = {
        "methods": ["lora", "pissa", "balora"],
        "conditions": {"whole": {}, "short": {"dataset_train_split": "train[:2]"}},
    }
    fields = {"dataset_name": data, "eval_dataset_name": data, "prompt_template": "alpaca"}
    path = recipe(compared, model_name_or_path=model_folder, **fields)
    assert shown.run(path, dry_run=True).endswith("\n6 cells")
    # to train on and to evaluate on, under two conditions, whatever the number of methods
    assert len(read) == 4
    assert tokenized.count("Formatting rows") == 4
    notes = [text for text in caplog.messages if "takes the first pair" in text]
    assert len(notes) == len(set(notes)) == 2


def test_wrong_recipes_fail_before_anything_is_written(recipe, shown, tmp_path):
    with pytest.raises(ConfigError, match=r"pissa: .*`learning_rat` is no field"):
        shown.run(recipe({"settings": {"pissa": {"learning_rat": 1}}}))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="`--dry_run` must be true or false, got the text `3`"):
        shown.run(recipe(), dry_run=3)


@pytest.mark.usefixtures("faked")
def test_a_judge_that_is_away_leaves_finished_cells_and_a_report(recipe, shown, views, monkeypatch):
    def away(*_):
        raise ConfigError("the server cannot be reached.")

    monkeypatch.setattr("balora.compare.stages.judge_answers", away)
    with pytest.raises(BaloraError, match="reached; every answer is kept, and the same") as caught:
        shown.run(recipe())
    assert caught.value.exit_status == 1
    assert [what for what, _ in views] == ["tables", "report"]
    assert "2 rows, to lora" in shown[0]


@pytest.mark.usefixtures("views")
def test_a_sweep_chooses_on_held_out_rows_and_the_choice_is_run(recipe, faked, shown, tmp_path):
    ran, figures = faked
    # the middle one is best on the rows held out; in the final runs everything is worse
    scores = {1: 0.2, 2: 0.9, 3: 0.4}

    def measured(cell):
        score = scores[cell.recipe["learning_rate"]] if cell.stage == "choose" else 0.0
        return {"metrics": {"exact_match": score}}

    figures["of"] = measured
    data = write_rows(tmp_path / "train.jsonl", ROWS)
    compared = {
        "methods": ["base", "lora", "pissa"],
        "seeds": [3, 4],
        "sweep": {"lora": {"learning_rate": [1, 2, 3]}},
        "held_out_fraction": 0.25,
    }
    shown.run(recipe(compared, dataset_name=data))
    assert [cell.key for cell in ran if cell.stage == "choose"] == [
        f"choose/lora/seed-3/learning_rate={rate}" for rate in (1, 2, 3)
    ]
    final = {cell.key: cell for cell in ran if cell.stage == "final"}
    assert list(final) == ["base", "lora/seed-3", "pissa/seed-3", "lora/seed-4", "pissa/seed-4"]
    assert final["lora/seed-4"].recipe["learning_rate"] == 2
    assert final["lora/seed-4"].recipe["dataset_name"] == data
    out = tmp_path / "out"
    choice = json.loads((out / "choices.json").read_text())["lora"]
    assert (choice["fields"], choice["metric"]) == ({"learning_rate": 2}, "exact_match")
    assert [run["value"] for run in choice["tried"]] == [0.2, 0.9, 0.4]
    parts = {
        name: len((out / "held_out" / name).read_text().splitlines())
        for name in ("fit.jsonl", "held_out.jsonl")
    }
    assert parts == {"fit.jsonl": 6, "held_out.jsonl": 2}
    assert next(c for c in ran if c.stage == "choose").recipe["dataset_name"] == str(
        out / "held_out" / "fit.jsonl"
    )
    rows = read_rows(out)
    assert [row["stage"] for row in rows] == ["choose"] * 3 + ["final"] * 5
    assert rows[4]["fields"] == {"learning_rate": 2}


@pytest.mark.usefixtures("views")
def test_each_model_gets_what_its_own_sweep_has_chosen(recipe, faked, shown, tmp_path):
    ran, figures = faked
    best = {"one": 1, "two": 2, "three": None}

    def measured(cell):
        model = cell.condition.partition("/")[0]
        if best[model] is None:
            return {"error": "out of memory"}
        return {"metrics": {"exact_match": float(cell.recipe["learning_rate"] == best[model])}}

    figures["of"] = measured
    compared = {
        "methods": ["lora"],
        "seeds": [0],
        "models": {name: {"model_name_or_path": f"x/{name}"} for name in best},
        "conditions": {"short": {}, "long": {"max_steps": 3}},
        "sweep": {"*": {"learning_rate": [1, 2]}},
    }
    fields = {"model_name_or_path": None, "dataset_name": write_rows(tmp_path / "t.jsonl", ROWS)}
    with pytest.raises(BaloraError, match="4 cells failed"):
        shown.run(recipe(compared, **fields))
    final = {cell.key: cell.recipe["learning_rate"] for cell in ran if cell.stage == "final"}
    assert final == {
        "one/short/lora/seed-0": 1,
        "one/long/lora/seed-0": 1,
        "two/short/lora/seed-0": 2,
        "two/long/lora/seed-0": 2,
    }
    choices = json.loads((tmp_path / "out" / "choices.json").read_text())
    rates = {name: (one["fields"] or {}).get("learning_rate") for name, one in choices.items()}
    assert rates == {"one/lora": 1, "two/lora": 2, "three/lora": None}
    files = {cell.recipe["dataset_name"] for cell in ran if cell.stage == "choose"}
    assert len(files) == 3  # the rows could be each model's own
    assert all(len(Path(file).read_text().splitlines()) == 7 for file in files)


@pytest.mark.usefixtures("views")
def test_a_method_whose_sweep_chose_nothing_fails_and_the_others_go_on(
    recipe, faked, shown, tmp_path
):
    ran, figures = faked

    def measured(cell):
        is_lost = cell.stage == "choose" and cell.method == "lora"
        return {"error": "out of memory"} if is_lost else {"metrics": {"exact_match": 0.5}}

    figures["of"] = measured
    sweep = {"*": {"learning_rate": [1, 2]}}
    path = recipe({"sweep": sweep}, dataset_name=write_rows(tmp_path / "train.jsonl", ROWS))
    with pytest.raises(BaloraError, match="3 cells failed, the first is choose/lora"):
        shown.run(path)
    rows = {row["cell"]: row for row in read_rows(tmp_path / "out")}
    assert "its sweep chose nothing: 2 of 2 runs failed" in rows["lora/seed-0"]["error"]
    assert rows["pissa/seed-0"]["error"] is None
    assert rows["pissa/seed-0"]["fields"] == {"learning_rate": 1}  # the first of equals
    assert "lora/seed-0: its sweep chose nothing" in "\n".join(shown)
    # once the runs that failed are made up for, what they choose is run
    ran.clear()
    figures["of"] = lambda cell: {"metrics": {"exact_match": 0.5}}
    shown.run(path)
    assert [cell.key for cell in ran] == [
        "choose/lora/seed-0/learning_rate=1",
        "choose/lora/seed-0/learning_rate=2",
        "lora/seed-0",
    ]


@pytest.mark.usefixtures("views")
def test_rows_stay_in_the_results_while_a_new_method_chooses(
    recipe, faked, shown, tmp_path, monkeypatch
):
    compared = {"methods": ["lora"], "sweep": {"*": {"learning_rate": [1, 2]}}}
    data = write_rows(tmp_path / "train.jsonl", ROWS)
    shown.run(recipe(compared, dataset_name=data))

    def killed(self, cells, reported, *, title, **rest):
        self.folder.collect(reported)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.Runner, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        shown.run(recipe({**compared, "methods": ["lora", "pissa"]}, dataset_name=data))
    rows = read_rows(tmp_path / "out")
    assert [row["stage"] for row in rows] == ["choose", "choose", "final"]


def test_failed_cells_are_status_1_after_everything_is_written(recipe, faked, views, shown):
    _, figures = faked
    figures["of"] = lambda cell: {"error": "killed by signal 9"} if cell.method == "lora" else {}
    with pytest.raises(BaloraError, match="1 cell failed, the first is lora/seed-0") as error:
        shown.run(recipe())
    assert error.value.exit_status == 1
    assert [name for name, _ in views] == ["tables", "report"]
    assert "  lora/seed-0: killed by signal 9" in "\n".join(shown)


@pytest.mark.usefixtures("views")
def test_another_recipe_is_refused_and_overwrite_starts_anew(recipe, faked, shown, tmp_path):
    ran, _ = faked
    shown.run(recipe())
    with pytest.raises(ConfigError, match="`weight_decay` is not set there and"):
        shown.run(recipe(), weight_decay=0.5)
    ran.clear()
    shown.run(recipe(), seeds="0,1")
    assert [cell.key for cell in ran] == ["lora/seed-1", "pissa/seed-1"]
    ran.clear()
    shown.run(recipe(), weight_decay=0.5, overwrite=True)
    assert [cell.key for cell in ran] == ["lora/seed-0", "pissa/seed-0"]
    assert read_mapping(tmp_path / "out" / "comparison.yaml")["weight_decay"] == 0.5
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2


@pytest.mark.usefixtures("views", "faked")
def test_report_only_runs_nothing_and_takes_another_baseline(recipe, shown, tmp_path, monkeypatch):
    path = recipe()
    with pytest.raises(ConfigError, match="holds no comparison"):
        shown.run(path, report_only=True)
    shown.run(path)
    monkeypatch.setattr(command, "run_cells", None)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    text = shown.run(None, report_only=True, output_dir=moved, baseline="pissa")
    assert "2 rows, to pissa" in text
    assert read_mapping(moved / "comparison.yaml")["compare"]["baseline"] == "pissa"
    with pytest.raises(ConfigError, match="so `--max_steps` cannot act"):
        shown.run(None, report_only=True, output_dir=moved, max_steps=3)


@pytest.mark.usefixtures("faked")
def test_without_matplotlib_there_are_results_and_a_hint(recipe, views, shown, monkeypatch):
    def missing(folder):
        raise page.MissingPackageError("jinja2 is not installed: `pip install 'balora[report]'`.")

    monkeypatch.setattr(page, "write_report", missing)
    text = shown.run(recipe())
    assert "2 rows" in text
    assert "No report: jinja2 is not installed: `pip install 'balora[report]'`. Then" in text


@pytest.mark.usefixtures("views", "faked")
def test_two_at_once_in_a_folder_are_refused(recipe, shown, tmp_path):
    path = recipe()
    shown.run(path)
    with (
        held(tmp_path / "out" / ".lease"),
        pytest.raises(ConfigError, match="is in use by another `balora compare`"),
    ):
        shown.run(path)


@pytest.mark.usefixtures("views", "faked")
def test_a_cell_that_outlives_its_comparison_is_waited_for_and_then_refused(
    recipe, shown, tmp_path, monkeypatch
):
    monkeypatch.setattr(command, "_PATIENCE_SECONDS", 0.3)
    path = recipe()
    shown.run(path)
    cells = tmp_path / "out" / "cells"
    cell = next(entry for entry in cells.iterdir() if entry.is_dir())
    lease = Lease.take(cells / f"{cell.name}.lease")
    with pytest.raises(ConfigError, match="or of a worker, is still run in"):
        shown.run(path, overwrite=True)
    assert "2 rows" in shown.run(path)  # nothing is left to run
    monkeypatch.setattr(command, "_PATIENCE_SECONDS", 20)
    threading.Timer(0.3, lease.release).start()
    assert "2 rows" in shown.run(path, overwrite=True)


@pytest.mark.usefixtures("views")
def test_the_lab_is_built_once_for_each_condition(recipe, faked, shown, tmp_path, monkeypatch):
    import dataclasses
    import types
    from typing import NamedTuple

    @dataclasses.dataclass(frozen=True)
    class TinyLab:
        noise_rate: float = 0.0

    class Built(NamedTuple):
        model: Path
        train_file: Path
        test_file: Path

    built = []

    def build_lab(config):
        built.append(config)
        return Built(*(tmp_path / f"{what}-{config.noise_rate}" for what in ("m", "a", "b")))

    modules = {
        "config": {"lab_config": lambda mapping: TinyLab(**mapping), "LabConfig": TinyLab},
        "build": {"build_lab": build_lab},
    }
    for name, members in modules.items():
        module = types.ModuleType(f"balora.lab.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, f"balora.lab.{name}", module)
    ran, _ = faked
    own = dict.fromkeys(("model_name_or_path", "dataset_name", "eval_dataset_name"))
    conditions = {"clean": {}, "noise": {"lab": {"noise_rate": 0.4}}}
    shown.run(recipe({"methods": ["base", "lora"], "conditions": conditions}, lab={}, **own))
    assert built == [TinyLab(), TinyLab(0.4)]
    assert [(cell.key, Path(cell.recipe["model_name_or_path"]).name) for cell in ran] == [
        ("clean/base", "m-0.0"),
        ("clean/lora/seed-0", "m-0.0"),
        ("noise/base", "m-0.4"),
        ("noise/lora/seed-0", "m-0.4"),
    ]


@pytest.mark.usefixtures("views", "faked")
def test_a_wrong_path_removes_nothing(recipe, shown, tmp_path):
    shown.run(recipe())
    rows = (tmp_path / "out" / "results.jsonl").read_bytes()
    for switch in ("overwrite", "dry_run"):
        with pytest.raises(DataError, match=r"tain\.jsonl, which does not exist"):
            shown.run(recipe(), dataset_name="tain.jsonl", **{switch: True})
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == rows
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2


@pytest.mark.usefixtures("views", "faked", "unchecked")
def test_dry_run_says_what_the_run_would_refuse(recipe, shown):
    shown.run(recipe())
    with pytest.raises(ConfigError, match="holds another comparison: `weight_decay`"):
        shown.run(recipe(), weight_decay=0.5, dry_run=True)
    assert shown.run(recipe({"methods": ["lora"]}), dry_run=True).endswith("\n1 cell")


@pytest.mark.usefixtures("views", "faked")
def test_a_report_leaves_a_comparison_that_runs_as_it_is(recipe, shown, tmp_path):
    shown.run(recipe())
    asked = {"report_only": True, "output_dir": tmp_path / "out"}
    with held(tmp_path / "out" / ".lease"):
        assert "2 rows, to lora" in shown.run(None, **asked)
        with pytest.raises(ConfigError, match="is in use by another"):
            shown.run(None, **asked, baseline="pissa")
    assert "2 rows, to lora" in shown.run(None, **asked)
    with pytest.raises(ConfigError, match="so `--overwrite` cannot act"):
        shown.run(None, **asked, overwrite=True)


@pytest.mark.usefixtures("views", "faked")
def test_finished_cells_that_are_left_out_are_counted(recipe, shown, caplog):
    shown.run(recipe(), seeds="0,1")
    assert not caplog.messages
    shown.run(recipe(), methods="lora", sweep="{pissa: {lora_r: [2, 3]}}")
    assert (
        "`sweep` of `pissa` is of none of the methods lora, so it does nothing" in caplog.messages
    )
    assert any(message.startswith("3 cells of other methods, seeds") for message in caplog.messages)


@pytest.mark.usefixtures("views", "faked")
def test_a_folder_that_cannot_be_written_is_named(recipe, shown, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: Not a directory; name another"):
        shown.run(recipe(), output_dir=tmp_path / "file" / "out")


@pytest.mark.usefixtures("faked")
def test_the_table_is_shown_where_the_report_cannot_be_written(recipe, views, shown, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_report", full)
    with pytest.raises(BaloraError, match=r"cannot be written: .*No space left on device"):
        shown.run(recipe())
    assert "2 rows" in shown[0]
