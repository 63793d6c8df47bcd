"""Where a run may write, and what it leaves where it is refused or the disk is full."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from balora.cli import main
from balora.errors import ConfigError
from balora.recipes import load_recipe
from balora.trainers.place import output_folder
from support.models import make_model, make_tokenizer
from support.small_disk import mounted_disk


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "base"
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def work(model, tmp_path, monkeypatch):
    """Stand in a folder with a base, data in a folder and in a file, and a template."""
    work = tmp_path / "work"
    shutil.copytree(model, work / "models" / "base")
    rows = "".join(
        json.dumps({"prompt": f"{i}+{i}=", "completion": f"{2 * i}"}) + "\n" for i in range(8)
    )
    (work / "data" / "folder").mkdir(parents=True)
    for name in ("data/folder/train.jsonl", "data/rows.jsonl", "rows.jsonl"):
        (work / name).write_text(rows)
    shutil.copytree(model, work / "templates" / "template")
    monkeypatch.chdir(work)
    return work


FIELDS = {
    "model_name_or_path": "models/base",
    "dataset_name": "rows.jsonl",
    "output_dir": "out",
    "max_steps": "2",
    "lora_r": "2",
    "lora_alpha": "2",
    "disable_tqdm": "true",
    "save_strategy": "no",
}


def train(**fields):
    return main(["train", *(f"--{name}={value}" for name, value in (FIELDS | fields).items())])


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


READ = {
    "model_name_or_path": "models/base",
    "dataset_name": "data/folder",
    "eval_dataset_name": "data/folder",
    "chat_template_path": "templates/template",
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("relation", ["is", "holds", "lies in"])
@pytest.mark.parametrize("by_link", [False, True])
def test_a_folder_that_is_read_is_never_written_into(name, relation, by_link, work, capsys):
    path = Path(READ[name])
    output = {"is": path, "holds": path.parent, "lies in": path / "a" / "b"}[relation]
    if by_link:
        Path("link").symlink_to(path.parent)
        output = Path("link", *output.parts[1:])
    before = tree(work)
    assert train(**{name: path}, output_dir=output, overwrite="true") == 2
    said = capsys.readouterr().err
    assert f"`output_dir` '{output}' {relation} `{name}` '{path}', which is read" in said
    assert said.count("\n") == 1
    assert tree(work) == before


def test_data_may_lie_around_but_not_under_a_name_that_is_written(work):
    Path("out").mkdir()
    for name in ("out/rows.jsonl", "out/results.json", "out/checkpoint-2.jsonl"):
        shutil.copy("rows.jsonl", name)
    for name in ("rows.jsonl", "data/rows.jsonl", "out/rows.jsonl", "out/checkpoint-2.jsonl"):
        with output_folder(load_recipe(None, {**FIELDS, "dataset_name": name})):
            pass
    recipe = load_recipe(None, {**FIELDS, "dataset_name": "out/results.json"})
    with pytest.raises(
        ConfigError, match=r"`dataset_name` 'out/results\.json' lies in `output_dir`"
    ):
        output_folder(recipe).__enter__()
    sets = "[{name: a, dataset_name: models/base}]"
    classes = {"task": "sst2", "model_name_or_path": "gpt2", "output_dir": "models/base"}
    recipe = load_recipe(None, {**classes, "out_of_domain": sets})
    with pytest.raises(ConfigError, match="is `dataset_name` of `out_of_domain`, `a`"):
        output_folder(recipe).__enter__()


PLACES = {
    "rows.jsonl": "is a file; name a folder",
    "rows.jsonl/x": "cannot be written: 'rows.jsonl' is a file",
    "/proc/balora/out": "cannot be written: No such file or directory",
    "nowhere": "is a link to nothing",
    "nowhere/x": "cannot be written: 'nowhere' is a link to nothing",
    "n" * 300: "cannot be written: File name too long",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_cannot_be_made_is_named(place, work, capsys):
    Path("nowhere").symlink_to("gone")
    before = tree(work)
    assert train(output_dir=place) == 2
    assert capsys.readouterr().err.startswith(f"balora: `output_dir` {place!r} {PLACES[place]}")
    assert tree(work) == before


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(
    "fields",
    [{"lora_r": "99"}, {"model_name_or_path": "models/gone"}, {"dataset_name": "gone.jsonl"}],
    ids=["rank", "model", "data"],
)
def test_what_is_refused_leaves_nothing_behind(fields, is_there, work):
    if is_there:
        Path("new/deep/out").mkdir(parents=True)
    before = tree(work)
    assert train(output_dir="new/deep/out", **fields) == 2
    assert tree(work) == before


def test_a_run_that_fails_before_it_has_saved_leaves_nothing_behind(work, monkeypatch):
    before = tree(work)
    monkeypatch.setattr("balora.trainers.sft.BALoraSFTTrainer.train", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(output_dir="new/out")
    assert tree(work) == before


def test_the_quickstart_leaves_nothing_behind_either(work, capsys):
    before = tree(work)
    assert main(["quickstart", "--output_dir=new/out", "--lora_r=9999"]) == 2
    assert "`lora_r`" in capsys.readouterr().err
    assert tree(work) == before


@pytest.fixture
def small_disk(work):
    with mounted_disk(work / "disk", "2m") as disk:
        yield disk


@pytest.mark.parametrize("room", [60, 150, 300])
def test_a_full_disk_is_one_sentence_and_what_was_saved_is_whole(room, small_disk, capsys):
    fields = {"output_dir": "disk/out", "save_strategy": "steps", "save_steps": "1", "lora_r": "4"}
    (small_disk / "filling").write_bytes(b"x" * (2048 - room) * 1024)
    assert train(**fields) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("balora: `output_dir` 'disk/out")
    assert "cannot be written: no space left on the disk" in said
    left = [path for path in small_disk.rglob("*") if path.is_file() and path.name != "filling"]
    folders = {path.parent for path in left}
    unfinished = {path for path in folders if not (path / "trainer_state.json").is_file()}
    assert unfinished <= {Path("disk/out").absolute()}
    assert (small_disk / "out").exists() == bool(folders - unfinished)
    assert not list(small_disk.rglob(".balora-*"))


def test_weights_that_are_not_finite_leave_nothing_behind(work):
    base = make_model("llama")
    base.lm_head.weight.data[3] = torch.nan
    base.save_pretrained("models/nan")
    make_tokenizer().save_pretrained("models/nan")
    before = tree(work)
    assert train(model_name_or_path="models/nan", output_dir="new/out") != 0
    assert tree(work) == before
