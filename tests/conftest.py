"""Shared fixtures: one seeded generator per test, and no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture
def rng() -> torch.Generator:
    """One generator per test, always from the same seed."""
    return torch.Generator().manual_seed(0)
