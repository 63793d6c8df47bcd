"""Damaged files of a base or a run, by command: status 2, one sentence, nothing written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from balora.cli import main
from support.models import make_model, make_tokenizer

TRAIN = {
    "dataset_name": "rows.jsonl",
    "max_steps": "1",
    "lora_r": "2",
    "lora_alpha": "2",
    "disable_tqdm": "true",
    "save_strategy": "no",
    "model_name_or_path": "base",
}


def options(**fields):
    return [f"--{name}={value}" for name, value in fields.items()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with rows, a base and a run of it."""
    folder = tmp_path_factory.mktemp("whole")
    rows = [{"prompt": f"{i}+{i}=", "completion": f"{2 * i}"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model("llama").save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", *options(**TRAIN, output_dir="run")]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(whole, tmp_path / "work"))


COMMANDS = {
    "train": ["train", *options(**TRAIN, output_dir="new")],
    "eval": ["eval", "run", "--base", "base", "--dataset_name", "rows.jsonl"],
    "export": ["export", "run", "--base", "base", "--to", "new"],
    "merge": ["export", "run", "--base", "base", "--to", "new", "--merge"],
}
READ = {
    "base/config.json": ["train", "eval", "export", "merge"],
    "base/model.safetensors": ["train", "eval", "merge"],
    "base/tokenizer.json": ["train"],
    "base/tokenizer_config.json": ["train"],
    "run/adapter_config.json": ["eval", "export", "merge"],
    "run/adapter_model.safetensors": ["eval", "export", "merge"],
    "run/tokenizer.json": ["eval"],
}


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def empty(path):
    path.write_bytes(b"")


def of_another_shape(path):
    path.write_text("[1]")


@pytest.mark.parametrize("damage", [cut, empty, of_another_shape])
@pytest.mark.parametrize(("file", "command"), [(f, c) for f, cs in READ.items() for c in cs])
def test_a_damaged_file_is_named(file, command, damage, work, capsys):
    damage(Path(file))
    capsys.readouterr()
    assert main(COMMANDS[command]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("balora: ")
    assert file in said
    assert not Path("new").exists()


class Payload:
    """Leaves a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("command", ["train", "eval", "merge"])
def test_a_payload_in_the_weights_does_not_run(command, work, capsys):
    Path("base/model.safetensors").unlink()
    torch.save({"x": Payload()}, "base/pytorch_model.bin")
    assert main(COMMANDS[command]) == 2
    said = capsys.readouterr().err
    assert "base/pytorch_model.bin" in said
    assert "weights_only" not in said
    assert not Path("ran").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_figures_are_shown_where_their_file_cannot_be_written(work, capsys):
    assert main([*COMMANDS["eval"], "--json", "/dev/full"]) == 1
    shown = capsys.readouterr()
    assert "run" in shown.out
    said = shown.err.strip().splitlines()[-1]
    assert said.startswith("balora: `--json` '/dev/full' cannot be written: no space left")
