"""Folders kept by recipe: built once, whole or not at all, never changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from balora.cache import cache_key, cached, default_cache
from balora.errors import BaloraError, ConfigError
from balora.staging import is_stage
from support.killing import every_kill, killed_after

RECIPE = {"size": 3, "rate": 0.0, "world": {"seed": 1}}


class Builder:
    """Writes a file and counts how often."""

    def __init__(self, content="mine"):
        self.content = content
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "file.txt").write_text(self.content)
        return {"seconds": 1.5}


def get(root, recipe=RECIPE, build=None):
    return cached(root, recipe, record="record.json", build=build or Builder())


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_the_key_goes_by_the_values():
    assert cache_key(RECIPE) == cache_key({"world": {"seed": 1}, "rate": 0, "size": 3.0})
    others = [
        {**RECIPE, "size": 4},
        {**RECIPE, "world": {"seed": 2}},
        {**RECIPE, "more": None},
        {**RECIPE, "rate": False},
    ]
    assert len({cache_key(recipe) for recipe in (RECIPE, *others)}) == 5


def test_an_entry_is_built_once_with_its_record(tmp_path):
    build = Builder()
    entry = get(tmp_path / "new" / "root", build=build)
    assert get(tmp_path / "new" / "root", build=build) == entry
    assert build.calls == 1
    assert names(entry) == ["file.txt", "record.json"]
    assert json.loads((entry / "record.json").read_text()) == {"recipe": RECIPE, "seconds": 1.5}
    assert names(entry.parent) == [cache_key(RECIPE)]


def test_another_recipe_is_another_entry_and_the_first_stays(tmp_path):
    first = get(tmp_path)
    other = get(tmp_path, {**RECIPE, "size": 4}, Builder("other"))
    assert first != other
    assert (first / "file.txt").read_text() == "mine"
    assert (other / "file.txt").read_text() == "other"


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        get(tmp_path, build=fail)
    assert names(tmp_path) == []
    assert get(tmp_path).is_dir()


def test_nothing_is_in_place_before_it_is_whole(tmp_path):
    seen = []

    def look(folder):
        seen.extend(name for name in names(tmp_path) if not name.startswith("."))
        return {}

    get(tmp_path, build=look)
    assert seen == []


def test_of_two_that_build_at_once_the_first_to_finish_stays(tmp_path):
    inside = threading.Barrier(2, timeout=30)

    def build(folder):
        inside.wait()  # neither finishes before both have begun
        (folder / "file.txt").write_text(str(folder))
        return {"by": str(folder)}

    with ThreadPoolExecutor(2) as pool:
        entries = list(pool.map(lambda _: get(tmp_path, build=build), range(2)))
    assert entries[0] == entries[1]
    record = json.loads((entries[0] / "record.json").read_text())
    assert (entries[0] / "file.txt").read_text() == record["by"]
    assert names(tmp_path) == [cache_key(RECIPE)]


def test_an_entry_of_another_recipe_is_refused_with_the_difference(tmp_path):
    entry = get(tmp_path)
    content = {"recipe": {**RECIPE, "size": 9, "world": {"seed": 2}}}
    (entry / "record.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"`size` \(9, not 3\), `seed` \(2, not 1\)"):
        get(tmp_path)
    assert json.loads((entry / "record.json").read_text()) == content


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_damaged_entry_is_refused_and_left_alone(tmp_path, content):
    entry = get(tmp_path)
    (entry / "record.json").unlink()
    if content is not None:
        (entry / "record.json").write_text(content)
    with pytest.raises(
        ConfigError, match=r"record\.json` is (missing|damaged).* Remove the folder"
    ):
        get(tmp_path)
    assert (entry / "file.txt").read_text() == "mine"


def test_a_recipe_with_tuples_is_found_again(tmp_path):
    assert get(tmp_path, {"sizes": (1, 2)}) == get(tmp_path, {"sizes": (1, 2)})


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        BaloraError, match=r"the cache \(set by BALORA_CACHE\) .* cannot be written: "
    ):
        get(tmp_path / "file" / "root")


def test_the_variable_moves_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("BALORA_CACHE")
    assert default_cache() == Path.home() / ".cache" / "balora"


def test_what_a_killed_process_left_goes_at_once_and_what_a_living_one_builds_stays(tmp_path):
    get(tmp_path)

    def die(folder):
        (folder / "half.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    other = {**RECIPE, "size": 4}
    assert killed_after(60, lambda: get(tmp_path, other, die))
    assert len(names(tmp_path)) == 2
    get(tmp_path)  # it is there and nothing is built
    assert names(tmp_path) == [cache_key(RECIPE)]

    def look(folder):
        get(tmp_path)
        (folder / "file.txt").write_text("mine")
        return {}

    assert names(get(tmp_path, other, look)) == ["file.txt", "record.json"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BaloraError, match=r"BALORA_CACHE\) .* cannot be written: no space left"):
        get(tmp_path / "root", build=fill)
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_build_that_is_killed_at_any_write_is_made_up_for(tmp_path, capfd):
    get(tmp_path)
    whole = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    shutil.rmtree(tmp_path / cache_key(RECIPE))
    kills = 0
    for _, killed in every_kill(lambda: get(tmp_path) and None, tmp_path):
        kills += killed
        entries = [path for path in tmp_path.iterdir() if not is_stage(path)]
        found = {p.relative_to(tmp_path): p.read_bytes() for e in entries for p in e.iterdir()}
        assert found in ({}, whole)
        assert get(tmp_path) == tmp_path / cache_key(RECIPE)
        again = {
            p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
        }
        assert again == whole
        shutil.rmtree(tmp_path / cache_key(RECIPE))
    with capfd.disabled():
        sys.stdout.write(f"\ncache: {kills} kills, nothing torn, nothing left behind\n")
    assert kills > 10
