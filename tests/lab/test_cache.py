"""Folders kept by recipe: built once, whole or not at all, never changed."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from balora.errors import BaloraError, ConfigError
from balora.lab.cache import cache_key, cached, default_cache

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
    with pytest.raises(ConfigError, match=r"record\.json is missing or damaged; remove the folder"):
        get(tmp_path)
    assert (entry / "file.txt").read_text() == "mine"


def test_a_recipe_with_tuples_is_found_again(tmp_path):
    assert get(tmp_path, {"sizes": (1, 2)}) == get(tmp_path, {"sizes": (1, 2)})


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BaloraError, match=r"cannot be written: .* set BALORA_CACHE"):
        get(tmp_path / "file" / "root")


def test_the_variable_moves_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("BALORA_CACHE")
    assert default_cache() == Path.home() / ".cache" / "balora"


def test_what_a_killed_process_left_goes_once_it_is_old(tmp_path):
    old, new = tmp_path / ".building-old", tmp_path / ".building-new"
    for folder in (old, new):
        (folder / "entry").mkdir(parents=True)
    os.utime(old, (0, 0))
    get(tmp_path)
    assert names(tmp_path) == [".building-new", cache_key(RECIPE)]
