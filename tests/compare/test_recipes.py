"""The comparison recipes that ship: every cell of them is a run that `balora train` accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from balora.cli import main
from balora.compare.plan import Plan
from balora.compare.reading import read_comparison

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
        "figure1.yaml",
        "gsm8k_replay.yaml",
        "lab.yaml",
        "lab_balanced.yaml",
        "lab_coefficients.yaml",
        "lab_large.yaml",
        "lab_replay.yaml",
        "lab_replay_sweep.yaml",
        "table2.yaml",
        "table3.yaml",
        "table4.yaml",
    ]


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.name)
def test_every_cell_can_be_trained(path, capsys):
    assert main(["compare", "--config", str(path), "--dry_run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert int(last.removesuffix(" cells")) >= 8


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
    methods = set(config.methods or ())
    assert {"base", "full", "lora", "pissa"} <= methods
    assert methods & {"balora", "balora-replay"}  # the paper's coefficients alone
    labs = [comparison.lab_of(name) or {} for name in comparison.conditions]
    worlds = [(lab["world_seed"], lab["noise_rate"]) for lab in labs]
    # one world for each rate of noise, and two others to confirm what was chosen in the first
    assert worlds == [(0, 0.0), (0, 0.2), (0, 0.4), (1, 0.2), (2, 0.2)]


def test_every_learning_rate_of_the_lab_is_chosen():
    plan = Plan(read_comparison(FOLDER / "lab.yaml", {}))
    tried = {(cell.method, cell.fields["learning_rate"]) for cell in plan.choosing()}
    assert len(tried) == 3 * 10


# models, conditions, methods and seeds; one cell that each must have; figures of the paper
PAPER = {
    "table2": (3 * 3 * 4 * 3, "Gemma-7B/WizardLM/balora/seed-2", 3 * 4 * 6),
    "table3": (2 * 8 * 4 * 3, "RoBERTa-large/stsb/full/seed-0", 1 * 4 * 9),
    "table4": (2 * 8 * 3 * 3, "GPT2-XL/rte/pissa/seed-1", 0),
    "figure1": (6 * 2 * 3, "LLaMA-3-8B/CodeFeedback/lora/seed-0", 3 * 3 * 2),
}


@pytest.mark.parametrize("name", PAPER)
def test_a_table_of_the_paper_is_one_comparison(name, monkeypatch):
    """Every cell is a recipe that can be trained; data and models of the hub are not asked for."""
    monkeypatch.chdir(FOLDER.parent)
    monkeypatch.setattr("balora.compare.plan.benchmark_files", lambda bench: {})
    number, key, num_reported = PAPER[name]
    plan = Plan(read_comparison(FOLDER / f"{name}.yaml", {}))
    plan.check()
    cells = {cell.key: cell for cell in plan.final()}
    assert len(cells) == number
    assert key in cells
    config = plan.comparison.config
    values = (config.reference or {}).get("values", {})
    figures = [f for methods in values.values() for own in methods.values() for f in own.values()]
    assert len(figures) == num_reported


def test_the_averages_of_the_paper_are_those_of_its_columns():
    for name in ("table2", "table3"):
        config = read_comparison(FOLDER / f"{name}.yaml", {}).config
        columns = (config.summary or {})[f"Table {name[-1]}"]
        for model, methods in (config.reference or {})["values"].items():
            for method, own in methods.items():
                mean = sum(own[column] for column in columns) / len(columns)
                # one is printed as 88.86, which the recipe says
                is_known = (model, method) == ("DeBERTa-v3-base", "full")
                assert is_known or own["average"] == pytest.approx(mean, abs=0.006)


def test_ranks_and_tasks_of_the_tables_are_the_papers():
    plan = Plan(read_comparison(FOLDER / "table2.yaml", {}))
    ranks = {
        c.partition("/")[0]: plan.comparison.recipe_of(c)["lora_r"]
        for c in plan.comparison.conditions
    }
    assert ranks == {"LLaMA-2-7B": 128, "Mistral-7B": 64, "Gemma-7B": 64}
    rows = Plan(read_comparison(FOLDER / "table3.yaml", {})).comparison
    rte = rows.recipe_of("DeBERTa-v3-base/rte")
    assert (rte["num_train_epochs"], rte["lora_alpha"], rte["learning_rate"]) == (50, 8, 1e-4)
    assert rte["lora_target_modules"] == "all"
