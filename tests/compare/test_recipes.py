"""The comparison recipes that ship: every cell of them is a run that `balora train` accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from balora.cli import main
from balora.compare.comparison import read_comparison
from balora.compare.plan import Plan

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = [
    path
    for path in sorted(FOLDER.glob("*.yaml"))
    if "\ncompare:" in path.read_text(encoding="utf-8")
]
LABS = [path for path in RECIPES if "\nlab:" in path.read_text(encoding="utf-8")]
WORLDS = [FOLDER / "lab.yaml", FOLDER / "lab_replay.yaml"]


def test_these_are_there():
    assert [path.name for path in RECIPES] == [
        "gsm8k_replay.yaml",
        "lab.yaml",
        "lab_coefficients.yaml",
        "lab_large.yaml",
        "lab_replay.yaml",
    ]


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.name)
def test_every_cell_can_be_trained(path, capsys):
    assert main(["compare", "--config", str(path), "--dry_run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert int(last.removesuffix(" cells")) > 20


def test_replay_on_a_model_that_the_user_names_has_its_methods_and_seeds():
    given = {"model_name_or_path": "MODEL", "retention_file": "stories.txt"}
    config = read_comparison(FOLDER / "gsm8k_replay.yaml", given).config
    assert config.seeds == [0, 1, 2]
    assert {"full+replay", "lora+replay", "pissa+replay"} <= set(config.methods or ())


@pytest.mark.parametrize("path", WORLDS, ids=lambda path: path.name)
def test_a_study_has_the_methods_seeds_and_worlds_that_it_needs(path):
    comparison = read_comparison(path, {})
    config = comparison.config
    assert config.seeds == [0, 1, 2, 3, 4]
    assert {"base", "full", "lora", "pissa", "balora"} <= set(config.methods or ())
    labs = [comparison.lab_of(name) or {} for name in comparison.conditions]
    worlds = [(lab["world_seed"], lab["noise_rate"]) for lab in labs]
    # one world for each rate of noise, and two others to confirm what was chosen in the first
    assert worlds == [(0, 0.0), (0, 0.2), (0, 0.4), (1, 0.2), (2, 0.2)]


def test_every_learning_rate_of_the_lab_is_chosen():
    plan = Plan(read_comparison(FOLDER / "lab.yaml", {}))
    tried = {(cell.method, cell.fields["learning_rate"]) for cell in plan.choosing()}
    assert len(tried) == 3 * 10
