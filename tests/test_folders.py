"""Where output may go: nothing that is read, and nothing that is foreign, is ever touched."""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from balora.errors import BaloraError, ConfigError
from balora.files import write_text
from balora.folders import Read, check_apart, check_not_overwritten, made_folder, new_folder
from balora.staging import staged_folder
from support.killing import Kill, killed_at


def tree(folder):
    """Return everything below a folder: bytes of files, targets of links, None for folders."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def make(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))


def export(to, *, overwrite=False, reads=()):
    with new_folder(to, "`--to`", overwrite=overwrite, reads=reads) as stage:
        make(stage / "adapter_config.json", stage / "new")


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Run in a folder of its own, below the one that is compared."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.mark.parametrize("name", ["new", "new/er/est", "n" * 255, "a b", "../cwd/new"])
def test_a_new_folder_appears(name):
    export(Path(name))
    assert sorted(os.listdir(name)) == ["adapter_config.json", "new"]


@pytest.mark.parametrize("mark", ["adapter_config.json", "config.json"])
def test_an_export_or_a_model_is_replaced_on_request_only(mark):
    make(
        Path("out", mark), Path("out/model-00001-of-00002.safetensors"), Path("out/tokenizer.model")
    )
    before = tree(Path("out"))
    with pytest.raises(ConfigError, match=r"`--to` 'out' exists\. Name another folder, or pass"):
        export(Path("out"))
    assert tree(Path("out")) == before
    export(Path("out"), overwrite=True)
    assert sorted(os.listdir("out")) == ["adapter_config.json", "new"]


def test_an_empty_folder_is_taken():
    Path("out").mkdir()
    export(Path("out"))
    assert sorted(os.listdir("out")) == ["adapter_config.json", "new"]


FOREIGN = {
    "thesis": ["out/chapter1.tex"],
    "model and more": ["out/config.json", "out/notes.txt"],
    "run": ["out/adapter_config.json", "out/recipe.yaml"],
    "checkpoints": ["out/adapter_config.json", "out/checkpoint-2/x"],
    "folder with the name of a file": ["out/config.json", "out/tokenizer.json/x"],
    "weights alone": ["out/model.safetensors"],
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_anything_else_is_refused_and_untouched(files, overwrite, tmp_path):
    make(*map(Path, files))
    before = tree(tmp_path)
    foreign = re.escape(Path(files[-1]).parts[1])
    with pytest.raises(ConfigError, match=f"`--to` 'out' holds `{foreign}`, which no export"):
        export(Path("out"), overwrite=overwrite)
    assert tree(tmp_path) == before


def wrong_places(tmp_path):
    make(Path("file"), Path("full/config.json"))
    Path("link").symlink_to("full")
    Path("nowhere").symlink_to("gone")
    Path("loop").symlink_to("loop")
    return {
        ".": "is the folder you are in",
        "..": "is the folder you are in, or holds it",
        "/": "is the folder you are in, or holds it",
        str(tmp_path / "cwd"): "is the folder you are in",
        "file": "is a file",
        "link": "is a link",
        "nowhere": "is a link",
        "loop": "is a link",
        "file/below": "cannot be written: 'file' is a file",
        "/proc/balora/out": "cannot be written: No such file",
        "n" * 300: "cannot be written: File name too long",
        "n/" * 3000: "cannot be written: File name too long",
        "a\0b": "cannot be written: it has a null character",
        "nowhere/below": "cannot be written",
        "loop/below": "cannot be written",
    }


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_cannot_work_is_one_sentence(overwrite, tmp_path):
    places = wrong_places(tmp_path)
    before = tree(tmp_path)
    for place, problem in places.items():
        with pytest.raises(ConfigError) as caught:
            export(Path(place), overwrite=overwrite)
        said = str(caught.value)
        assert f"`--to` {str(Path(place))!r} {problem}" in said
        assert said.endswith(".")
        assert "\n" not in said
        assert caught.value.exit_status == 2
        assert tree(tmp_path) == before


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a disk that is read-only")
def test_a_disk_that_takes_no_files_is_one_sentence():
    with pytest.raises(ConfigError, match=r"`--to` '/sys/.*' cannot be written: "):
        export(Path("/sys/kernel/balora"))


@pytest.mark.parametrize("relation", ["is", "holds", "lies in"])
@pytest.mark.parametrize("way", ["path", "link", "dots"])
def test_what_is_read_is_never_the_output(relation, way, tmp_path):
    make(Path("a/b/config.json"))
    read = {"is": "a/b", "holds": "a/b", "lies in": "a"}[relation]
    output = {"is": "a/b", "holds": "a", "lies in": "a/b/c"}[relation]
    Path("way").symlink_to("a")
    if way == "link":
        output = output.replace("a", "way", 1)
    elif way == "dots":
        output = f"x/../{output}"
    before = tree(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_apart(
            Path(output), "`output_dir`", [Read("`--base`", "gpt2"), Read("`--base`", read)]
        )
    assert f"`output_dir` '{output}' {relation} `--base` '{read}'" in str(caught.value)
    assert tree(tmp_path) == before


def test_what_lies_beside_is_no_matter():
    make(Path("a/base/config.json"))
    reads = [Read("`--base`", "a/base"), Read("`--base`", "a/base-2"), Read("`--base`", "org/name")]
    for output in ("a/out", "a/base-out", "org", "a/basement/x", "b"):
        check_apart(Path(output), "`output_dir`", reads)


def test_a_data_file_may_lie_in_the_output_but_not_where_it_is_written_over():
    make(Path("out/rows.jsonl"), Path("out/results.json"), Path("out/cells/x/rows.jsonl"))
    Path("link.json").symlink_to("out/results.json")
    written = re.compile(r"results\.json|cells")
    for name in ("out/rows.jsonl", "rows.jsonl", "../rows.jsonl", "out", "hub/id"):
        check_not_overwritten(Path("out"), "`a`", [Read("`b`", name)], written)
    for name in ("out/results.json", "link.json", "out/cells/x/rows.jsonl"):
        with pytest.raises(ConfigError, match=f"`b` '{name}' lies in `a` 'out', where it would be"):
            check_not_overwritten(Path("out"), "`a`", [Read("`b`", name)], written)


def test_folders_that_were_made_go_again_where_it_fails_and_others_stay(tmp_path):
    Path("there").mkdir()
    before = tree(tmp_path)
    for name in ("there", "there/a/b", "new/a/b"):
        with pytest.raises(ZeroDivisionError), made_folder(Path(name), "`output_dir`"):
            assert Path(name).is_dir() * (1 / 0)
        assert tree(tmp_path) == before
    with pytest.raises(FileNotFoundError), made_folder(Path("new/a"), "`output_dir`"):
        (make(Path("new/a/file")), Path("gone").read_text())
    assert Path("new/a/file").is_file()


def test_a_folder_that_gets_files_meanwhile_is_not_replaced():
    Path("out").mkdir()
    with pytest.raises(ConfigError, match="holds `mine`"):
        with new_folder(Path("out"), "`--to`", overwrite=True):
            make(Path("out/mine"))
    assert os.listdir("out") == ["mine"]
    assert os.listdir() == ["out"]


def test_what_a_killed_call_moved_aside_is_back_before_it_is_asked_for(tmp_path, monkeypatch):
    from balora import staging

    monkeypatch.setattr(staging, "_exchanged", lambda one, other: False)
    make(Path("out/config.json"))
    old = tree(Path("out"))

    def replace():
        with staged_folder(Path("out").absolute()) as stage:
            make(stage / "config.json")

    step = 1
    while Path("out").exists() and tree(Path("out")) == old:
        step += 1
        assert killed_at(Kill(step, False), replace, tmp_path)
    assert not Path("out").exists()
    with pytest.raises(ConfigError, match="`--to` 'out' exists"):
        export(Path("out"))
    assert tree(Path("out")) == old


def test_several_threads_write_into_one_new_folder(tmp_path):
    """What one of them tries a folder with is not taken for what a killed process has left."""
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def write(folder, number):
        with made_folder(folder, "`--to`"):
            write_text(folder / f"{number}.txt", "text")

    try:
        with ThreadPoolExecutor(4) as pool:
            for turn in range(30):
                done = [pool.submit(write, tmp_path / str(turn), i) for i in range(4)]
                assert [one.result() for one in done] == [None] * 4
    finally:
        sys.setswitchinterval(switch)
    assert len([*tmp_path.glob("*/*.txt")]) == 30 * 4


def test_a_full_disk_is_a_failed_run(monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(BaloraError, match="`--to` 'new/x' cannot be written: no space") as caught:
        export(Path("new/x"))
    assert caught.value.exit_status == 1
    assert os.listdir() == []
