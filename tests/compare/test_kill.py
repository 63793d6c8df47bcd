"""Comparisons that are killed: the same command then gives the rows of one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from balora.compare import runner
from balora.compare.command import compare
from balora.compare.folder import row_of
from balora.errors import ConfigError
from balora.rows import read_rows
from support.killing import every_kill

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes"),
]
TIMES = ("train_seconds", "evaluation_seconds", "seconds", "peak_memory_mib")


def rows_of(out):
    """Return the rows without what differs from run to run."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.fixture
def quick(monkeypatch):
    """Put a runner that trains nothing in the place of the real one."""

    def run(self, cells, reported, *, title, **rest):
        for cell in cells:
            if not self.folder.is_finished(cell):
                self.folder.prepare(cell)
                score = len(cell.key) / 100 + cell.seed / 7
                self.folder.write_row(cell, row_of(cell, metrics={"exact_match": score}))
                self.folder.collect(reported)
        self.folder.collect(reported)

    monkeypatch.setattr(runner.Runner, "run", run)
    monkeypatch.setattr(runner, "visible_devices", list)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "overwritten"])
def test_the_command_is_killed_at_each_of_its_writes(recipe, tmp_path, is_new, monkeypatch, capsys):
    monkeypatch.setattr("balora.report.page.write_report", lambda study: None)
    sweep = {"lora": {"learning_rate": [0.1, 0.2]}}

    def written(steps):
        path = recipe({"methods": ["lora"], "seeds": [0], "sweep": sweep}, max_steps=steps)
        return path.rename(tmp_path / f"{steps}-steps.yaml")

    old, new = written(3), written(2)
    out, kept = tmp_path / "out", tmp_path / "kept"

    def run(path=new, **given):
        compare(path, given, show=lambda text: None)

    def results():
        return rows_of(out), (out / "table.csv").read_bytes(), sorted(os.listdir(out))

    run()
    expected = results()
    shutil.rmtree(out)
    run(old)
    (out / "notes.txt").write_text("mine")
    replaced = results()
    shutil.copytree(out, kept)
    given = {} if is_new else {"overwrite": "true"}

    def restore():
        shutil.rmtree(out, ignore_errors=True)
        if not is_new:
            shutil.copytree(kept, out)

    restore()
    counts = Counter()
    for _, killed in every_kill(lambda: run(**given), out):
        counts["kills"] += killed
        is_old = not is_new
        if is_old:  # the old results are as they were, or the new ones are gone on with
            try:
                run(old)
            except ConfigError as error:
                assert "`max_steps` is 2 there and 3 here" in str(error)  # noqa: PT017
                is_old = False
            else:
                assert results() == replaced
            counts["old whole" if is_old else "new whole"] += killed
        run(**(given if is_old else {}))
        rows, table, names = results()
        assert (rows, table) == expected[:2]
        assert set(names) - {"notes.txt"} == set(expected[2])
        assert is_new or (out / "notes.txt").read_text() == "mine"
        restore()
    with capsys.disabled():
        print(f"\n{'new' if is_new else 'overwritten'}: {dict(counts)}")  # noqa: T201
    assert counts["kills"] > 30, counts
    assert is_new or (counts["old whole"] > 20 and counts["new whole"] > 5), counts


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start(path):
    command = [sys.executable, "-m", "balora", "compare", "--config", str(path)]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def assert_ends_well(path):
    with start(path) as process:
        text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text


def cells_at_work(out):
    """Return the processes of cells below a folder by their number."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().decode().split("\0")
            state = (place / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if "balora.compare.cell" in words and str(out) in " ".join(words) and state != "Z":
                found.append(int(place.name))
    return found


def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_parent_cell_and_group_are_killed_at_random_moments(recipe, model_folder, tmp_path, capsys):
    def written(name):
        fields = {"model_name_or_path": model_folder, "output_dir": str(tmp_path / name)}
        asked = {"methods": ["lora", "balora"], "seeds": [0], "jobs": 2, "max_new_tokens": 4}
        path = recipe(asked, max_steps=30, save_strategy="steps", save_steps=10, **fields)
        return path.rename(tmp_path / f"{name}.yaml"), tmp_path / name

    path, out = written("whole")
    assert_ends_well(path)
    expected = rows_of(out)
    rng, told, counts = random.Random(0), {}, Counter()
    for kind in ("parent", "cell", "group", "terminate"):
        path, out = written(kind)
        process = start(path)
        wait_until(lambda out=out: len(cells_at_work(out)) == 2)
        time.sleep(rng.uniform(0.0, 12.0))
        victims = cells_at_work(out)
        if kind == "parent":
            process.kill()
        elif kind == "cell":
            for victim in victims[:1]:
                os.kill(victim, signal.SIGKILL)
        elif kind == "group":
            for victim in (process.pid, *victims):
                os.killpg(victim, signal.SIGKILL)
        else:
            process.terminate()
        text, _ = process.communicate(timeout=300)
        if victims or kind != "cell":
            assert process.returncode == {"cell": 1, "terminate": 143}.get(kind, -9), text
        if kind == "terminate":
            assert text.rstrip().endswith(
                "balora: terminated; the same command resumes the comparison, without "
                "`--overwrite` if a cell had finished"
            )
        # no orphan goes on writing
        wait_until(lambda out=out: not cells_at_work(out), 5.0)
        told[kind] = {str(p): p.stat().st_mtime_ns for p in out.rglob("*")}
        time.sleep(0.5)
        assert told[kind] == {str(p): p.stat().st_mtime_ns for p in out.rglob("*")}
        assert_ends_well(path)
        assert rows_of(out) == expected, kind
        assert read_rows(out)[0]["error"] is None
        counts["kills while a cell worked"] += bool(victims)
        counts["the same rows afterwards"] += 1
    with capsys.disabled():
        print(f"\nparent, cell, group, terminate: {dict(counts)}")  # noqa: T201
