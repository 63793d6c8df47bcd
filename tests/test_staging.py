"""What is written beside its place: whole or not at all, through kills and full disks."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from balora import staging
from balora.errors import BaloraError, ConfigError
from balora.staging import recover, staged_file, staged_files, staged_folder, work_folder, writing
from support.killing import Kill, every_kill, killed_at
from support.small_disk import mounted_disk


def contents(folder):
    """Return every file below a folder with its bytes; None where there is no folder."""
    if not folder.exists():
        return None
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fill(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


OLD, NEW = {"a": "old " * 50, "b": "old"}, {"a": "new " * 50, "c": "new"}


def encoded(files):
    return {name: text.encode() for name, text in files.items()}


@pytest.fixture(params=["exchange", "two renames"])
def renaming(request, monkeypatch):
    """Replace a folder in one step, and in two, as where the system has no such step."""
    if request.param == "two renames":
        monkeypatch.setattr(staging, "_exchanged", lambda one, other: False)
    return request.param


def replace(place, files=NEW):
    with staged_folder(place) as stage:
        fill(stage, **files)


@pytest.mark.parametrize("there", [None, {}, OLD])
def test_a_folder_is_replaced_as_a_whole(there, renaming, tmp_path):
    place = tmp_path / "place"
    if there is not None:
        fill(place, **there)
    replace(place)
    assert contents(tmp_path) == {f"place/{name}": text for name, text in encoded(NEW).items()}


def test_what_fails_leaves_what_was_there(renaming, tmp_path):
    fill(tmp_path / "place", **OLD)
    before = contents(tmp_path)
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "place") as stage:
        (fill(stage, **NEW), (stage / "gone").read_text())
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("step", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(step, tmp_path, monkeypatch):
    fill(tmp_path / "place", **OLD)
    before, rename, calls = contents(tmp_path), os.rename, []
    monkeypatch.setattr(staging, "_exchanged", lambda one, other: False)

    def fail_once(*paths):
        calls.append(paths)
        if len(calls) == step:
            raise OSError(errno.EBUSY, "busy")
        rename(*paths)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="busy"):
        replace(tmp_path / "place")
    assert contents(tmp_path) == before


def test_a_kill_at_any_write_leaves_the_old_folder_or_the_new_one(renaming, tmp_path):
    place, counts = tmp_path / "place", {"old": 0, "new": 0, "aside": 0}
    fill(place, **OLD)
    for _, killed in every_kill(lambda: replace(place), tmp_path):
        found = contents(place)
        counts["aside" if found is None else "old" if found == encoded(OLD) else "new"] += killed
        assert found in (encoded(OLD), encoded(NEW), None)
        recover(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["place"]
        assert contents(place) == (encoded(OLD) if found is None else found)
        shutil.rmtree(place)
        fill(place, **OLD)
    assert (counts["aside"] > 0) == (renaming == "two renames")
    assert counts["old"] > 5
    assert counts["new"] > 2


def test_files_on_their_way_come_in_after_a_kill(tmp_path):
    place = tmp_path / "place"
    names = ["adapter_config.json", "config.json", "model.safetensors", "tokenizer.json"]

    def move():
        with staged_files(place) as stage:
            fill(stage, **dict.fromkeys(names, "new"))
            fill(stage / "inner", new="new")

    outcomes = set()
    for _ in every_kill(move, tmp_path):
        if place.exists():
            recover(place)
            outcomes.add(frozenset(contents(place).items()))
            assert not any(staging.is_stage(path) for path in place.iterdir())
        shutil.rmtree(place, ignore_errors=True)
        fill(place, **dict.fromkeys(names, "old"))
        fill(place / "inner", old="old")
    new = {**encoded(dict.fromkeys(names, "new")), "inner/new": b"new"}
    old = {**encoded(dict.fromkeys(names, "old")), "inner/old": b"old"}
    assert outcomes == {frozenset(new.items()), frozenset(old.items())}


def test_what_makes_a_folder_valid_goes_last(tmp_path, monkeypatch):
    last = ["model.safetensors", "adapter_model.safetensors", "config.json", "adapter_config.json"]
    moved, rename = [], os.replace
    with staged_files(tmp_path) as stage:
        fill(stage, **dict.fromkeys([*last, "anchor.safetensors", "vocab"], "new"))
        monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(b.name), rename(a, b)))
    assert moved[1:] == ["anchor.safetensors", "vocab", *last]


def test_a_file_is_replaced_through_a_link(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with staged_file(tmp_path / "link") as stage:
        stage.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_the_work_of_a_living_process_is_left_alone(tmp_path):
    with work_folder(tmp_path) as work:
        (work / "new" / "half").write_text("half")
        recover(tmp_path)
        assert (work / "new" / "half").exists()
    assert not work.exists()


def test_the_work_of_a_dead_process_goes_and_what_is_foreign_stays(tmp_path):
    foreign = [".balora-foreign1/notes", ".balora-12345678/new/x", ".tmp-place/x", ".balora-x/y"]
    for name in foreign:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("foreign")
    (tmp_path / ".balora-abcdefgh").write_text("a file")

    def die():
        with work_folder(tmp_path) as work:
            (work / "new" / "half").write_text("half")
            os.kill(os.getpid(), 9)

    before = contents(tmp_path)
    killed_at_once = killed_at(Kill(10**6, False), die, tmp_path)
    assert killed_at_once
    assert contents(tmp_path) != before
    recover(tmp_path)
    assert contents(tmp_path) == before


def test_what_was_moved_aside_is_not_lost_to_another_that_took_its_place(tmp_path, caplog):
    work = tmp_path / ".balora-abcdefgh"
    fill(work, **{"in-use.lock": ""})
    fill(work / "old" / "place", **OLD)
    fill(work / "new" / "place", **NEW)
    fill(tmp_path / "place", other="other")
    recover(tmp_path)
    assert contents(work / "old" / "place") == encoded(OLD)
    assert str(work) in caplog.text
    shutil.rmtree(tmp_path / "place")
    recover(tmp_path)
    assert contents(tmp_path / "place") == encoded(OLD)
    assert not work.exists()


def test_many_at_once_do_not_take_one_anothers_work(tmp_path):
    def write(number):
        with staged_file(tmp_path / f"{number % 4}") as stage:
            stage.write_text("x" * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert contents(tmp_path) == {str(number): b"x" * 1000 for number in range(4)}


def test_a_long_name_has_room(tmp_path):
    replace(tmp_path / ("n" * 255))
    assert contents(tmp_path / ("n" * 255)) == encoded(NEW)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB, where the test may mount one."""
    with mounted_disk(tmp_path / "disk", "256k") as disk:
        yield disk


MUCH = torch.zeros(200_000)


def save_tokenizer(path):
    words = {f"word number {i} of a long vocabulary": i for i in range(20_000)}
    Tokenizer(models.WordLevel(words, "word number 0 of a long vocabulary")).save(str(path))


WRITERS = {
    "text": lambda path: path.write_text("x" * 800_000),
    "tensors": lambda path: save_file({"x": MUCH}, path),
    "torch": lambda path: torch.save(MUCH, path),
    "old torch": lambda path: torch.save(MUCH, path, _use_new_zipfile_serialization=False),
    "tokenizer": save_tokenizer,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_one_sentence_and_gives_the_space_back(write, small_disk):
    place = small_disk / "place"
    fill(place, **OLD)
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(BaloraError) as caught, writing("place", "`--to`"):
        with staged_folder(place) as stage:
            write(stage / "file")
    assert str(caught.value).startswith("`--to` 'place' cannot be written: no space left on the")
    assert caught.value.exit_status == 1
    assert contents(small_disk) == {f"place/{name}": text for name, text in encoded(OLD).items()}
    del caught  # its frames hold torch's open file
    gc.collect()
    assert shutil.disk_usage(small_disk).free == free


def test_what_is_not_about_writing_passes(tmp_path):
    errors = [
        ValueError("size"),
        RuntimeError("CUDA error"),
        ConfigError("wrong"),
        FileNotFoundError(errno.ENOENT, "gone", str(tmp_path / "x")),
        PermissionError(errno.EACCES, "denied", "/elsewhere"),
    ]
    for error in errors:
        with pytest.raises(type(error)) as caught, writing(tmp_path, "`--to`"):
            raise error
        assert caught.value is error


def test_a_place_that_becomes_read_only_is_said(tmp_path):
    error = OSError(errno.EROFS, "Read-only file system", str(tmp_path / "x"))
    with pytest.raises(BaloraError, match="cannot be written: Read-only"), writing(tmp_path, "`a`"):
        raise error
