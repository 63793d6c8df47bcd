"""The helper of the kill tests: it kills inside every write, and nowhere else."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from support.killing import every_kill, killed_after


def states(folder, call):
    """Return what each kill left in the folder: the files' sizes."""
    found = []
    for kill, killed in every_kill(call, folder):
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        found.append((kill.half, sizes if killed else "end"))
        for path in folder.iterdir():
            path.unlink()
    return found


def test_every_write_is_killed_before_and_inside(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def call():
        (tmp_path / "elsewhere").write_text("not counted")
        (folder / "stage").write_text("0123456789")
        (folder / "stage").read_text()
        os.replace(folder / "stage", folder / "a")
        save_file({"x": torch.ones(100)}, folder / "b")
        torch.save(torch.ones(100), folder / "c")
        (folder / "none").unlink(missing_ok=True)
        (folder / "c").unlink()

    first, *found = states(folder, call)
    assert first == (False, "end")
    whole = [sizes for half, sizes in found if not half]
    # the kill before the file that is not there leaves what the one after it leaves
    assert [set(sizes) for sizes in whole] == [set(), {"stage"}, {"a"}, {"a", "b"}, set("abc")]
    assert whole[1] == {"stage": 10}
    b, c = whole[-1]["b"], whole[-1]["c"]
    half = [sizes for half, sizes in found if half]
    assert half == [{"stage": 5}, {"a": 10, "b": b // 2}, {"a": 10, "b": b, "c": c // 2}]


def test_a_call_is_killed_after_a_time_or_ends_before():
    assert killed_after(0.05, lambda: time.sleep(60))
    assert not killed_after(0.5, lambda: None)


def test_a_call_that_fails_by_itself_is_an_error():
    def fail():
        sys.stdout.write("what it printed")
        raise ValueError("its own")

    with pytest.raises(AssertionError, match=r"(?s)what it printed.*ValueError: its own"):
        killed_after(0.5, fail)
