"""A lab whose pre-training is killed: its entry is whole or not there; the next call builds it."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time

import pytest

from balora.lab.build import LAB_FILE, build_lab
from balora.lab.config import LabConfig
from balora.staging import is_stage
from support.killing import every_kill, killed_after

CONFIG = LabConfig(
    num_people=4,
    num_stories=5,
    num_passes=1,
    max_steps=2,
    batch_size=2,
    vocab_size=300,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=2,
    num_train=6,
    num_test=2,
    label_noise=0.5,
)


def contents(cache):
    """Return every file of the finished entries: bytes, of a log what was not measured in time."""
    found = {}
    for path in cache.rglob("*"):
        relative = path.relative_to(cache)
        if path.is_file() and not any(map(is_stage, [path, *path.parents])):
            found[str(relative)] = path.read_bytes()
            if path.name in (LAB_FILE, "pretrain_log.json"):
                log = json.loads(path.read_bytes())
                found[str(relative)] = {k: v for k, v in log.items() if "seconds" not in k}
    return found


@pytest.fixture
def build(tmp_path):
    """Return a call that builds the lab in a cache of its own, and what it builds undisturbed."""
    cache = tmp_path / "cache"

    def call():
        build_lab(CONFIG, cache=cache)

    call()
    whole = contents(cache)
    shutil.rmtree(cache)
    return call, cache, whole


def check(cache, whole):
    """Check that every entry that is there is whole: the model's, then the task's in it."""
    found = contents(cache) if cache.exists() else {}
    model = {name: content for name, content in whole.items() if "/tasks/" not in name}
    assert found in ({}, model, whole)


def make_up(call, cache, whole):
    """Check that the same call leaves what one that was not killed leaves, and nothing else."""
    call()
    assert contents(cache) == whole
    assert not [path for path in cache.rglob("*") if is_stage(path)]


@pytest.mark.slow
def test_a_kill_inside_any_write(build, capfd):
    call, cache, whole = build
    cache.mkdir()
    kills = 0
    for kill, killed in every_kill(call, cache):
        kills += killed
        check(cache, whole)
        if kill.step % 8 == 0 or not killed:
            make_up(call, cache, whole)
        shutil.rmtree(cache)
        cache.mkdir()
    with capfd.disabled():
        sys.stdout.write(f"\nlab, inside every write: {kills} kills, no entry torn\n")
    assert kills > 50


@pytest.mark.slow
def test_a_kill_at_any_moment(build, capfd):
    call, cache, whole = build
    start = time.monotonic()
    assert not killed_after(600, call)
    seconds = time.monotonic() - start
    shutil.rmtree(cache)
    moments, kills = random.Random(0), 0
    for _ in range(12):
        killed = killed_after(moments.uniform(0, seconds), call)
        kills += killed
        check(cache, whole)
        if not killed:
            shutil.rmtree(cache, ignore_errors=True)
    make_up(call, cache, whole)
    with capfd.disabled():
        sys.stdout.write(f"\nlab, at random moments: {kills} kills, no entry torn\n")
    assert kills >= 3
