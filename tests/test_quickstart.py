"""The quickstart: a short run here; the whole run is `make quickstart`, which CI calls."""

from __future__ import annotations

import pytest

from balora.cli import main
from balora.quickstart import quickstart


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    text = quickstart({"max_steps": "3", "output_dir": str(folder), "disable_tqdm": "true"})
    return text, folder


def test_table_has_before_and_after_and_what_changed(printed):
    text, _ = printed
    for word in ("before", "after", "change", "exact match", "KL to", "entropy", "retained text"):
        assert word in text
    kl = next(line for line in text.splitlines() if line.startswith("KL to")).split()
    assert float(kl[-3]) == 0.0
    assert float(kl[-2]) > 0.0


def test_adapter_loads_in_plain_peft_with_the_trained_logits(printed):
    text, folder = printed
    assert f"The adapter is in {folder}, a plain LoRA" in text
    error = text.split("differ from the trained model's by ")[1].split(":")[0]
    assert float(error) <= 1e-5
    assert not list(folder.glob(".tmp*"))


def test_output_that_exists_is_refused(printed, capsys):
    _, folder = printed
    assert main(["quickstart", "--output_dir", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
