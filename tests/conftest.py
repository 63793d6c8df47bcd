"""Shared fixtures: one seeded generator per test, no network, the same examples on any machine."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# rows of tests do not stay in the user's cache, which `datasets` looks through at every map
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="balora-tests-")

import pytest
import torch
from hypothesis import settings

from support.wheel import build_wheel, install_wheel

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

# a deadline would fail on a busy machine
settings.register_profile("balora", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("balora")

torch.set_num_threads(1)  # two workers with a thread pool each get in one another's way
os.fsync = lambda _: None  # no test cuts the power, and a disk takes its time


def pytest_collection_finish() -> None:
    """Keep what is imported out of garbage collections; every training asks for one."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> torch.Generator:
    """One generator per test, always from the same seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """A folder with real data and models beside the checkout, for the tests that are opt-in."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("BALORA_SHARED", default))
    if not folder.is_dir():
        pytest.skip("needs the real data: set BALORA_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Return the wheel, built of the sources without a network."""
    return build_wheel(tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """Return the `bin` of a new environment with the wheel and this one's libraries."""
    return install_wheel(wheel, tmp_path_factory.mktemp("environment"))
