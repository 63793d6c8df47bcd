"""The quickstart: a short run here; the whole run is `make quickstart`, which CI calls."""

from __future__ import annotations

import pytest

from balora.cli import main
from balora.quickstart import quickstart
from balora.recipes import load_recipe

FEW = {
    **{"max_steps": "3", "disable_tqdm": "true"},
    **{"replay_num_texts": "32", "replay_length": "16"},
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    return quickstart({**FEW, "output_dir": str(folder)}), folder


def test_table_has_the_paper_and_the_recommended_setting_beside_one_another(printed):
    text, folder = printed
    for word in (
        "before",
        "paper",
        "recommended",
        "change",
        "exact match",
        "KL to",
        "entropy",
        "retained text",
    ):
        assert word in text
    kl = next(line for line in text.splitlines() if line.startswith("KL to")).split()
    before, paper, _, recommended, _ = map(float, kl[-5:])
    assert before == 0 < recommended
    assert paper > 0
    card = (folder / "README.md").read_text()
    for when in ("before", "after"):
        for metric in ("exact match", "loss on retained text (nats/token)"):
            assert f"| {when}: {metric} |" in card
    assert load_recipe(folder.with_name("out-paper") / "recipe.yaml").adapter.preset == "paper"


def test_a_setting_of_the_users_is_trained_alone(tmp_path):
    given = {"max_steps": "1", "disable_tqdm": "true", "output_dir": str(tmp_path / "out")}
    text = quickstart({**given, "method": "lora"})
    assert "after" in text
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


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
