"""Cells in processes of their own: what is run, what dies, what goes on. No model is trained."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

import pytest

from balora.cli import main as balora
from balora.compare import runner
from balora.compare.config import CompareConfig
from balora.compare.folder import Folder, RefusedError, row_of
from balora.compare.plan import Plan
from balora.compare.process import command_of, failure
from balora.compare.runner import Runner
from balora.errors import ConfigError
from balora.rows import read_rows
from support.fake_cells import has_ended, started, wait_until


@pytest.fixture
def folder(tmp_path):
    found = Folder(tmp_path / "out")
    found.path.mkdir()
    return found


def run(folder, cells, jobs=1, **options):
    Runner(folder, CompareConfig(jobs=jobs, **options)).run(cells, cells, title="Comparing")


@pytest.mark.usefixtures("script")
def test_cells_run_once_and_a_failed_one_again(folder, comparison, monkeypatch, tmp_path, capsys):
    cells = Plan(comparison({"methods": ["lora", "pissa", "full"], "seeds": [0]})).final()
    monkeypatch.setenv("CELL_PISSA", "kill")
    run(folder, cells)
    assert started(tmp_path) == ["lora-0", "pissa-0", "full-0"]
    rows = read_rows(folder.path)
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["error"] == "killed by signal 9 SIGKILL (out of memory?)"
    assert rows[1]["metrics"] == {}
    assert (
        "balora: pissa/seed-0 failed: killed by signal 9 SIGKILL (out of memory?); its log is "
        f"{folder.of(cells[1]) / 'log.txt'}\n"
    ) in capsys.readouterr().err
    assert "working" in (folder.of(cells[1]) / "log.txt").read_text()
    monkeypatch.delenv("CELL_PISSA")
    run(folder, cells)
    assert started(tmp_path) == ["lora-0", "pissa-0", "full-0", "pissa-0"]
    assert [row["error"] for row in read_rows(folder.path)] == [None, None, None]


@pytest.mark.usefixtures("script")
def test_the_error_of_a_cell_is_its_own_sentence(folder, comparison, monkeypatch):
    cells = Plan(comparison({"methods": ["lora", "pissa"]})).final()
    monkeypatch.setenv("CELL_LORA", "raise")
    monkeypatch.setenv("CELL_PISSA", "silent")  # ends well and leaves nothing
    run(folder, cells)
    assert [row["error"] for row in read_rows(folder.path)] == [
        "the data are wrong",
        "exit status 0: working",
    ]


@pytest.mark.usefixtures("script")
def test_what_the_first_cell_is_refused_for_ends_the_comparison(folder, comparison, monkeypatch):
    cells = Plan(comparison({"methods": ["lora", "pissa"]})).final()
    monkeypatch.setenv("CELL_PISSA", "refuse")
    run(folder, cells)  # one has finished: it is that cell's alone
    assert [row["error"] for row in read_rows(folder.path)] == [
        None,
        "`lora_r` is 99, which is too large.",
    ]
    others = Folder(folder.path / "other"), Folder(folder.path / "third")
    for other in others:
        other.path.mkdir()
    with pytest.raises(RefusedError, match="pissa/seed-0: `lora_r` is 99, which is too large"):
        run(others[0], cells[1:])
    monkeypatch.setenv("CELL_PISSA", "hang")
    monkeypatch.setenv("CELL_LORA", "refuse")
    with pytest.raises(RefusedError, match="lora/seed-0: "):
        run(others[1], cells, jobs=2)  # what runs beside it ends


@pytest.mark.usefixtures("script")
def test_a_comparison_that_is_refused_leaves_nothing_and_says_why_in_one_line(
    recipe, model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CELL_LORA", "refuse")
    (tmp_path / "there").mkdir()
    for where in ("new/folder", "there"):
        path = recipe(model_name_or_path=model_folder, output_dir=str(tmp_path / where))
        before = sorted(tmp_path.rglob("*"))
        assert balora(["compare", "--config", str(path)]) == 2
        lines = re.split(r"[\r\n]+", capsys.readouterr().err)
        assert [line for line in lines if line.startswith("balora:")] == [
            "balora: lora/seed-0: `lora_r` is 99, which is too large."
        ]
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("script")
def test_as_many_run_at_a_time_as_there_are_jobs(folder, comparison, monkeypatch):
    cells = Plan(comparison({"methods": ["lora", "pissa", "full"], "seeds": [0, 1]})).final()
    most = []
    fill = Runner._fill

    def counting(self, waiting, impossible):
        fill(self, waiting, impossible)
        most.append(len(self._running))

    monkeypatch.setattr(Runner, "_fill", counting)
    run(folder, cells, jobs=2)
    assert max(most) == 2
    assert len(read_rows(folder.path)) == 6


@pytest.mark.usefixtures("script")
def test_models_are_removed_where_they_are_not_kept(folder, comparison):
    cells = Plan(comparison()).final()
    run(folder, cells[:1])
    run(folder, cells, keep_models=False)
    assert (folder.of(cells[0]) / "run").is_dir()
    assert not (folder.of(cells[1]) / "run").exists()


@pytest.fixture
def interruptible():
    """Let an interrupt raise, also where the shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("script", "interruptible")
def test_an_interrupt_ends_what_runs_and_records_no_failure(
    folder, comparison, monkeypatch, tmp_path
):
    cells = Plan(comparison({"methods": ["lora", "pissa"]})).final()
    monkeypatch.setenv("CELL_PISSA", "hang")

    def interrupt():
        wait_until(lambda: "pissa-0" in started(tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(folder, cells)
    thread.join()
    pid = (tmp_path / "started.txt").read_text().split()[-1]
    assert has_ended(pid)
    assert folder.row(cells[0])["error"] is None
    assert folder.row(cells[1]) is None
    monkeypatch.delenv("CELL_PISSA")
    run(folder, cells)
    assert started(tmp_path) == ["lora-0", "pissa-0", "pissa-0"]
    assert [row["error"] for row in read_rows(folder.path)] == [None, None]


@pytest.mark.usefixtures("script", "interruptible", "views")
def test_what_is_overwritten_stays_until_a_cell_has_finished_in_its_place(
    recipe, model_folder, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    fields = {"model_name_or_path": model_folder, "output_dir": str(out)}
    assert balora(["compare", "--config", str(recipe(**fields))]) == 0
    (out / "plots").mkdir()
    (out / "plots" / "curve.svg").write_text("a figure")
    (out / "notes.txt").write_text("not a comparison's")

    def files():
        found = (path for path in out.rglob("*") if path.is_file() and ".lease" not in str(path))
        return {str(path.relative_to(out)): path.read_bytes() for path in found}

    old = files()
    again = ["compare", "--config", str(recipe(**fields, max_steps=3)), "--overwrite"]
    for what, status in (("refuse", 2), ("interrupt", 1)):
        monkeypatch.setenv("CELL_LORA", what)
        assert balora(again) == status
        assert files() == old
    # one that fails and one that finishes: the new comparison stands
    monkeypatch.setenv("CELL_LORA", "raise")
    assert balora(again) == 1
    rows = read_rows(out)
    assert [row["error"] for row in rows] == ["the data are wrong", None]
    assert "max_steps: 3" in (out / "comparison.yaml").read_text()
    assert "plots/curve.svg" not in files()
    assert files()["notes.txt"] == old["notes.txt"]
    assert not [path for path in out.iterdir() if path.name.startswith(".replaced")]


STUDY = """
import pathlib, sys
from balora.compare import process, runner
from balora.compare.cells import Cell
from balora.compare.config import CompareConfig
from balora.compare.folder import Folder
script, out, *methods = sys.argv[1:]
process.command_of = lambda folder, *rest: [sys.executable, script, str(folder)]
runner.visible_devices = list
cells = [
    Cell(stage="final", condition="", method=m, seed=0, fields={}, recipe={}) for m in methods
]
runner.Runner(Folder(pathlib.Path(out)), CompareConfig()).run(cells, cells, title="")
"""


def test_a_study_that_is_killed_loses_the_running_cell_alone(script, folder, tmp_path):
    command = [sys.executable, "-c", STUDY, str(script), str(folder.path), "lora", "pissa", "full"]
    environment = {**os.environ, "CELL_PISSA": "hang"}
    study = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: "pissa-0" in started(tmp_path))
    study.kill()
    study.wait()
    pid = (tmp_path / "started.txt").read_text().split()[-1]
    wait_until(lambda: has_ended(pid))  # it must not write into a folder that another run takes
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert started(tmp_path) == ["lora-0", "pissa-0", "pissa-0", "full-0"]
    assert [row["error"] for row in read_rows(folder.path)] == [None] * 3


CHILD = """
import os, time
from balora.compare.cell import _end_with_parent
_end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {CHILD!r}]).wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_a_cell_dies_with_its_parent_also_where_its_input_stays_open():
    reading, writing = os.pipe()
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
        wait_until(lambda: has_ended(pid))
    os.close(reading)
    os.close(writing)


def test_threads_are_shared_and_a_users_number_stands(folder, monkeypatch):
    monkeypatch.setattr(runner, "num_cores", lambda: 8)
    monkeypatch.setattr(runner, "visible_devices", list)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def threads(jobs):
        made = Runner(folder, CompareConfig(jobs=jobs))
        return made.environment(0)["OMP_NUM_THREADS"]

    assert [threads(jobs) for jobs in (1, 3, 20)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(3) == "5"


def test_several_devices_are_taken_in_turns(folder, monkeypatch):
    monkeypatch.setattr(runner, "visible_devices", lambda: ["4", "6"])
    made = Runner(folder, CompareConfig(jobs=3))
    assert [made.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["4", "6", "4"]
    monkeypatch.setattr(runner, "visible_devices", lambda: ["4"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in Runner(folder, CompareConfig()).environment(0)


def test_a_cell_gets_as_many_devices_as_it_has_processes(folder, monkeypatch):
    monkeypatch.setattr(runner, "visible_devices", lambda: ["0", "1", "2", "3", "4"])
    made = Runner(folder, CompareConfig(jobs=3, devices=2))
    devices = [made.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(3)]
    assert devices == ["0,1", "2,3", "0,1"]
    with pytest.raises(ConfigError, match="`devices` is 8, but this machine has 5; lower it"):
        Runner(folder, CompareConfig(devices=8))


def test_a_launcher_stands_before_the_cell_and_must_be_there(folder):
    words = command_of(folder.path, Taken("lease/1"), "torchrun --nproc_per_node 2")
    assert words[:5] == ["torchrun", "--nproc_per_node", "2", "-m", "balora.compare.cell"]
    assert words[-2:] == ["--lease", "lease/1"]
    with pytest.raises(ConfigError, match=r"`launcher` is 'tochrun -n 2', but .* no command 'toch"):
        Runner(folder, CompareConfig(launcher="tochrun -n 2"))
    with pytest.raises(ConfigError, match="`launcher` is ''; name a program"):
        CompareConfig(launcher="''")
    with pytest.raises(ConfigError, match=r"no shell reads .no closing quotation.; mend"):
        CompareConfig(launcher="torchrun 'x")


class Taken(NamedTuple):
    file: str


@pytest.mark.parametrize(
    ("status", "log", "sentence"),
    [
        (-9, "balora: an old line", "killed by signal 9 SIGKILL (out of memory?)"),
        (-11, "", "killed by signal 11 SIGSEGV"),
        (1, "10%\r20%\rbalora: `x` is wrong\nsome noise at exit\n", "`x` is wrong"),
        (3, "Traceback\nlast words\n", "exit status 3: last words"),
        (4, "", "exit status 4"),
    ],
)
def test_failures_in_a_sentence(status, log, sentence):
    assert failure(status, log) == sentence


def test_rows_of_finished_cells_are_not_touched_by_a_later_run(script, folder, comparison):
    (cell,) = Plan(comparison({"methods": ["lora"]})).final()
    folder.prepare(cell)
    folder.write_row(cell, row_of(cell, metrics={"kl": 7.0}))
    run(folder, [cell])
    assert json.loads((folder.path / "results.jsonl").read_text())["metrics"] == {"kl": 7.0}
