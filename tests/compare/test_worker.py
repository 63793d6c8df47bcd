"""Workers that share a folder: each cell once, whatever dies; the last one reports."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import Counter

import pytest

from balora.compare.command import compare
from balora.compare.folder import Folder, row_of
from balora.compare.lease import Lease
from balora.compare.plan import Plan
from balora.compare.reading import read_comparison
from balora.errors import BaloraError, ConfigError
from balora.rows import read_rows
from support.fake_cells import started, wait_until

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks workers"),
    pytest.mark.usefixtures("script", "views"),
]


def work(out, config=None, **given):
    """Run a worker in this process and return what it shows."""
    shown = []
    texts = {name: str(value) for name, value in given.items()}
    compare(config, {"worker": str(out), **texts}, show=shown.append)
    return "\n".join(shown)


def forked(call):
    """Run a call in a process of its own and return its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads only sleep
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        call()
        status = 0
    except BaloraError as error:
        print(error, file=sys.stderr)  # noqa: T201
    finally:
        os._exit(status)


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cells_of(config):
    plan = Plan(read_comparison(config, {}))
    return [*plan.choosing(), *plan.final()]


def runs(tmp_path):
    """Return how often the cell of each folder was started, in the order of the first starts."""
    lines = (tmp_path / "started.txt").read_text().splitlines()
    return Counter(line.split()[1] for line in lines)


def test_many_workers_begin_choose_and_run_every_cell_once(recipe, tmp_path):
    sweep = {"*": {"learning_rate": [0.1, 0.3, 0.2]}}
    config = recipe({"methods": ["lora", "pissa"], "seeds": [0, 1, 2], "sweep": sweep})
    out = tmp_path / "out"
    workers = [forked(lambda: work(out, config)) for _ in range(6)]
    assert [status_of(pid) for pid in workers] == [0] * 6
    cells = cells_of(config)
    assert runs(tmp_path) == Counter(cell.slug for cell in cells)
    assert {slug.split("--")[0] for slug in [*runs(tmp_path)][:6]} == {"choose"}
    rows = read_rows(out)
    assert [row["cell"] for row in rows] == [cell.key for cell in cells]
    assert [row["error"] for row in rows] == [None] * 12
    # the fake's score is its rate: 0.3 was chosen by every worker alike
    assert {row["fields"]["learning_rate"] for row in rows[6:]} == {0.3}
    choices = json.loads((out / "choices.json").read_text())
    assert choices["lora"]["fields"] == {"learning_rate": 0.3}
    # another worker, or the whole command, finds nothing to do
    assert "12 rows, to lora" in work(out)
    compare(config, {}, show=lambda text: None)
    assert runs(tmp_path) == Counter(cell.slug for cell in cells)


def test_a_worker_that_is_killed_inside_a_cell_gives_it_back(recipe, tmp_path, monkeypatch):
    config, out = recipe({"methods": ["lora", "pissa", "full"]}), tmp_path / "out"
    monkeypatch.setenv("CELL_PISSA", "hang")
    first = forked(lambda: work(out, config))
    wait_until(lambda: "pissa-0" in started(tmp_path))
    second = forked(lambda: work(out))
    assert status_of(second) == 0
    assert started(tmp_path) == ["lora-0", "pissa-0", "full-0"]
    os.kill(first, signal.SIGKILL)
    assert status_of(first) == -signal.SIGKILL
    monkeypatch.delenv("CELL_PISSA")
    # the cell's own process ends with its worker; whoever comes next waits for no heartbeat
    folder = Folder(out)
    wait_until(lambda: not folder.held_cells())
    assert "3 rows" in work(out)
    assert started(tmp_path) == ["lora-0", "pissa-0", "full-0", "pissa-0"]
    assert [row["error"] for row in read_rows(out)] == [None] * 3


@pytest.mark.parametrize("age", [0, 300])
def test_of_another_machines_worker_the_heartbeat_tells(recipe, tmp_path, age):
    config, out = recipe(), tmp_path / "out"
    work(out, config)
    cell = cells_of(config)[0]
    folder = Folder(out)
    shutil.rmtree(folder.of(cell))
    lock = folder.lease_of(cell) / str(len(os.listdir(folder.lease_of(cell))) + 1)
    lock.write_text(json.dumps({"place": "another boot", "processes": ["1 1"]}))
    os.utime(lock, (time.time() - age,) * 2)
    shown = work(out)
    if age:
        assert "2 rows" in shown
    else:
        assert shown == "No cell is free; others still run 1 cell of 2."
    assert started(tmp_path).count("lora-0") == (2 if age else 1)


def test_a_folder_without_a_comparison_is_named_and_left_alone(tmp_path):
    for name in ("missing", "there"):
        out = tmp_path / name
        if name == "there":
            out.mkdir()
        with pytest.raises(ConfigError, match=r"holds no comparison: it has no comparison\.yaml"):
            work(out)
        assert out.exists() == (name == "there")
        assert not out.exists() or not os.listdir(out)


def test_another_version_or_plan_is_refused(recipe, tmp_path):
    config, out = recipe(), tmp_path / "out"
    work(out, config)
    with pytest.raises(ConfigError, match="another comparison: `max_steps` is 2 there and 3 here"):
        work(out, config, max_steps=3)
    with pytest.raises(ConfigError, match="another plan: the cell full/seed-0 is not there"):
        work(out, config, methods="lora,full")
    with pytest.raises(ConfigError, match="another plan, of 2 cells and not 1"):
        work(out, config, methods="lora", baseline="lora")
    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(rows + rows)
    with pytest.raises(ConfigError, match="lora/seed-0 is not there as it is here; other options"):
        work(out)
    (tmp_path / "train.jsonl").write_text(rows)
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, "balora": "0.0.7"}))
    with pytest.raises(ConfigError, match=r"begun by balora 0\.0\.7 and this is .*; install the"):
        work(out)
    (out / "plan.json").write_text('{"balora": "0.0')
    with pytest.raises(ConfigError, match=r"plan\.json.*`balora compare --config` writes"):
        work(out)
    assert started(tmp_path) == ["lora-0", "pissa-0"]


def test_what_cannot_act_beside_it_is_named(recipe, tmp_path):
    out = tmp_path / "out"
    work(out, recipe(), jobs=2)
    assert "2 rows" in work(out, jobs=3, devices=2)
    with pytest.raises(ConfigError, match="so `--max_steps` cannot act without `--config`"):
        work(out, max_steps=3)
    with pytest.raises(ConfigError, match="names the folder already; leave `--output_dir` out"):
        work(out, output_dir="elsewhere")
    with pytest.raises(ConfigError, match="`--worker` and `--overwrite` cannot both act"):
        work(out, overwrite="true")
    with pytest.raises(ConfigError, match="`--worker` needs the folder that the workers share"):
        work("true")


def test_workers_leave_a_failed_cell_to_the_whole_command(recipe, tmp_path, monkeypatch):
    config, out = recipe(), tmp_path / "out"
    monkeypatch.setenv("CELL_PISSA", "raise")
    with pytest.raises(BaloraError, match="1 cell failed, the first is pissa/seed-0") as error:
        work(out, config)
    assert f"`balora compare --config {out / 'comparison.yaml'}` runs them again" in str(
        error.value
    )
    monkeypatch.delenv("CELL_PISSA")
    with pytest.raises(BaloraError, match="1 cell failed"):
        work(out)
    assert started(tmp_path) == ["lora-0", "pissa-0"]
    compare(out / "comparison.yaml", {}, show=lambda text: None)
    assert started(tmp_path) == ["lora-0", "pissa-0", "pissa-0"]
    assert [row["error"] for row in read_rows(out)] == [None, None]


def test_a_worker_says_that_its_own_cell_failed_where_others_are_at_work(
    recipe, tmp_path, monkeypatch
):
    config, out = recipe(), tmp_path / "out"
    monkeypatch.setenv("CELL_LORA", "raise")
    monkeypatch.setenv("CELL_PISSA", "hang")
    other = forked(lambda: work(out, config))
    wait_until(lambda: "pissa-0" in started(tmp_path))
    lora, pissa = cells_of(config)
    shutil.rmtree(Folder(out).of(lora))
    with pytest.raises(BaloraError, match="1 cell failed here; "):
        work(out)
    # meanwhile the rows so far can be reported
    shown = []
    with pytest.raises(BaloraError, match="1 cell failed"):
        compare(None, {"report_only": "true", "output_dir": str(out)}, show=shown.append)
    assert "1 rows" in shown[0]
    os.kill(other, signal.SIGTERM)
    status_of(other)
    wait_until(lambda: not Folder(out).held_cells())
    assert Folder(out).row(pissa) is None


def test_the_whole_command_waits_for_what_workers_run(recipe, tmp_path, caplog):
    config, out = recipe(), tmp_path / "out"
    cell = cells_of(config)[0]
    folder = Folder(out)
    lease = Lease.take(folder.lease_of(cell))

    told = "waiting for cells that others run, of which the first is lora/seed-0"

    def other():
        wait_until(lambda: told in caplog.messages)
        folder.prepare(cell)
        folder.write_row(cell, row_of(cell, metrics={"kl": 7.0}))
        lease.release()

    out.joinpath("comparison.yaml").write_text(read_comparison(config, {}).to_yaml())
    caplog.set_level("INFO", logger="balora")
    thread = threading.Thread(target=other)
    thread.start()
    compare(config, {}, show=lambda text: None)
    thread.join()
    assert started(tmp_path) == ["pissa-0"]
    assert [row["metrics"]["kl"] for row in read_rows(out)] == [7.0, 1.0]


def test_two_folders_of_one_name_are_not_taken_for_a_shared_one(recipe, tmp_path):
    config = recipe({"methods": ["lora"], "baseline": "lora"})
    here, there = tmp_path / "here" / "out", tmp_path / "there" / "out"
    study = work(here, config, study="new")
    assert work(here, study="new") == study
    for _ in range(2):  # a machine of its own: nothing is there, then another study of that name
        with pytest.raises(ConfigError, match=f"`--study` is {study}, but `--worker` ") as error:
            work(there, config, study=study)
        assert "machines do not share it: name a folder on a file system" in str(error.value)
        other = work(there, config, study="new")
    assert f"holds the study {other} on {platform.node()}" in str(error.value)
    assert not (tmp_path / "started.txt").exists()
    assert "1 row" in work(here, study=study)
    folder = Folder(here)
    folder.write_plan(cells_of(config))  # as when seeds are added
    assert folder.study == study
    (here / "plan.json").unlink()  # as when all is replaced
    assert work(here, config, study="new") != study


def test_a_study_is_for_workers_alone(recipe):
    for other in ({}, {"slurm": "{timeout_min: 5}"}):
        with pytest.raises(ConfigError, match="so it acts beside `--worker` alone"):
            compare(recipe(), {"study": "new", **other}, show=lambda text: None)
