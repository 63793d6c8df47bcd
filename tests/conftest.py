"""Shared fixtures: one seeded generator per test, and no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)  # two workers with a thread pool each get in one another's way


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
