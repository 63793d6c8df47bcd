"""Files that appear as a whole."""

from __future__ import annotations

import json
import os
import threading

import pytest

from balora.cli import main
from balora.errors import ConfigError
from balora.files import finite, read_filled_text, write_json, write_text


def test_finite_reaches_into_lists():
    assert finite({"a": [1.0, float("nan"), {"b": float("-inf")}], "c": (2, "nan")}) == {
        "a": [1.0, None, {"b": None}],
        "c": [2, "nan"],
    }


def test_json_has_null_for_what_it_cannot_hold(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("inf"), "é": 1})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"x": None, "é": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_fails_to_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_lines_end_in_line_feeds(tmp_path):
    write_text(tmp_path / "a.txt", "a\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"a\nb\n"


def test_what_is_no_regular_file_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_text, args=(pipe, "figures"), daemon=True)
    writer.start()
    assert pipe.read_text() == "figures"
    writer.join(10)
    assert pipe.is_fifo()


@pytest.mark.parametrize("command", ["eval", "lab"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    command, tmp_path, capsys
):
    base = ["--base", "some/model"] if command == "eval" else []
    for name, reason in (("none/a.json", "there is no folder"), (".", "which is a folder")):
        assert main([command, "run", *base, "--json", str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err


def test_a_text_that_must_be_filled_is_not_only_space(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" \n\t\n")
    with pytest.raises(ConfigError, match=r"`retention_file` is '.*a.txt', which is empty; name a"):
        read_filled_text(path, "`retention_file`")
    path.write_text(" x")
    assert read_filled_text(path, "`retention_file`") == " x"
