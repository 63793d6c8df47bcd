"""The quickstart: a short run here; the whole run is `make quickstart`, which CI calls."""

from __future__ import annotations

import pytest

from balora.assets import asset_path
from balora.cli import main
from balora.config.values import read_mapping
from balora.quickstart import _recipes, quickstart
from balora.recipes import load_recipe
from balora.recipes.load import parse_overrides

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


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        ({}, {"paper": None, "recommended": 4}),
        ({"replay_every": "2"}, {"paper": None, "recommended": 2}),
        ({"preset": "paper"}, {"after": None}),
        ({"replay": "null"}, {"after": None}),
        ({"preset": "paper", "replay": "generated", "replay_every": "2"}, {"after": 2}),
    ],
)
def test_replay_of_the_embedded_recipe_is_that_of_the_recommended_setting_alone(given, columns):
    content = read_mapping(asset_path("quickstart/recipe.yaml")) | {"model_name_or_path": "m"}
    content["dataset_name"] = str(asset_path("quickstart/train.jsonl"))
    recipes = _recipes(content, parse_overrides(content, given))
    every = {
        name: None if recipe.replay.replay is None else recipe.replay.replay_every
        for name, recipe in recipes.items()
    }
    assert every == columns


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
