"""Exports that are killed: the destination is the old folder or the new one, bit for bit."""

from __future__ import annotations

import random
import shutil
import sys
import time

import pytest
import torch

from balora.cli import main
from balora.staging import is_stage
from support.adapters import anchored_model, make_batch, train
from support.killing import every_kill, killed_after
from support.models import make_model, make_tokenizer

FORMS = {"plain": [], "rank": ["--rank", "2"], "merged": ["--merge"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a trained run, beside it the folder `base` of its base."""
    folder = tmp_path_factory.mktemp("run")
    make_model("llama").save_pretrained(folder / "base")
    model = anchored_model("llama")
    train(model, make_batch("llama", torch.Generator().manual_seed(0)))
    model.save_pretrained(folder / "run")
    for name in ("base", "run"):
        make_tokenizer().save_pretrained(folder / name)
    return folder / "run"


def contents(folder):
    """Return every file of a folder with its bytes; None where there is no folder."""
    if not folder.exists():
        return None
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Export:
    """One export into a folder of its own, which an older one may fill."""

    def __init__(self, run, form, place, *, is_new):
        self.place, self.to = place, place / "to"
        self.words = [
            "export",
            str(run),
            "--base",
            str(run.with_name("base")),
            "--to",
            str(self.to),
        ]
        self.words += [*FORMS[form], "--overwrite"]
        place.mkdir()
        assert self() == 0
        self.whole = contents(self.to)
        shutil.rmtree(self.to)
        self.old = None if is_new else {"config.json": b"{}", "model.safetensors": b"old" * 50}
        self.counts = {"kills": 0, "old": 0, "new": 0}
        self.put_back()

    def __call__(self):
        return main(self.words)

    def put_back(self):
        """Make the place what it was before the export."""
        shutil.rmtree(self.place)
        self.place.mkdir()
        if self.old is not None:
            self.to.mkdir()
            for name, content in self.old.items():
                (self.to / name).write_bytes(content)

    def check(self):
        """Check what a kill has left, and that the same command makes up for it."""
        found = contents(self.to)
        assert found in (self.old, self.whole)
        self.counts["kills"] += 1
        self.counts["old" if found == self.old else "new"] += 1
        assert {path.name for path in self.place.iterdir() if not is_stage(path)} <= {"to"}
        assert self() == 0
        assert contents(self.to) == self.whole
        assert [path.name for path in self.place.iterdir()] == ["to"]
        self.put_back()

    def report(self, capfd, what):
        """Print the counts of kills."""
        with capfd.disabled():
            sys.stdout.write(f"\nexport, {what}: {self.counts}\n")


@pytest.mark.slow
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "overwrite"])
@pytest.mark.parametrize("form", FORMS)
def test_a_kill_inside_any_write(run, form, is_new, tmp_path, capfd):
    export = Export(run, form, tmp_path / "place", is_new=is_new)
    for _, killed in every_kill(export, export.place):
        if killed:
            export.check()
        else:
            assert contents(export.to) == export.whole
            export.put_back()
    export.report(capfd, f"{form}, {'new' if is_new else 'over an older one'}, inside every write")
    assert export.counts["old"] > 10
    assert export.counts["new"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_kill_at_any_moment(run, form, tmp_path, capfd):
    export = Export(run, form, tmp_path / "place", is_new=False)
    start = time.monotonic()
    assert not killed_after(600, export)
    seconds = time.monotonic() - start
    export.put_back()
    moments = random.Random(0)
    for _ in range(20):
        if killed_after(moments.uniform(0, seconds), export):
            export.check()
        else:
            export.put_back()
    export.report(capfd, f"{form}, over an older one, at random moments")
    assert export.counts["kills"] >= 5
