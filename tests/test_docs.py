"""What the README promises: its commands parse, its recipes load, its names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import balora
from balora.cli import build_parser, main, runs_and_fields
from balora.cli_help import EXAMPLES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^`?(balora [^`\n#|]+)", README.replace("| `", "\n`"), re.M)))


def test_the_readme_names_commands():
    assert sum(command.startswith("balora train --config") for command in COMMANDS) >= 6


@pytest.fixture
def offline(monkeypatch):
    """Leave out of a dry run what asks the hub for models and data."""
    monkeypatch.setattr("balora.trainers.preflight.check_run", lambda recipe: None)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("balora train --config")])
def test_train_commands_of_the_readme_resolve(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main([*shlex.split(command)[1:], "--dry_run"]) == 0
    assert "method: balora" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if " | " not in c and "train" not in c])
def test_other_commands_of_the_readme_parse(command):
    _, rest = build_parser().parse_known_args(shlex.split(command)[1:])
    runs_and_fields(rest)


def test_the_lab_of_the_documents_has_the_fields_it_is_given(monkeypatch):
    asked = []
    monkeypatch.setattr("balora.lab.command.lab", lambda *given, **_: asked.append(given) or "")
    commands = [c for c in COMMANDS if c.startswith("balora lab")]
    commands += re.findall(r"^  (balora lab.*)$", EXAMPLES["lab"], re.M)
    assert len(commands) > 3
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    runs, _, fields = (list(column) for column in zip(*asked, strict=True))
    assert [*map(len, runs)] == [0, 0, 0, 2]
    assert fields == [{"noise_rate": "0.2"}, {}, {"noise_rate": "0.4", "world_seed": "1"}, {}]


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert re.findall(r"^make ([a-z-]+)", README, re.M) == ["quickstart", "test"]
    assert {"quickstart", "test", "check"} <= set(targets)


def test_public_names_exist():
    assert all(getattr(balora, name) is not None for name in balora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = balora.nothing


def test_links_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "AGENTS.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.usefixtures("offline")
def test_the_comparison_in_the_documents_runs(tmp_path, capsys):
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(re.search(r"```yaml\n(.*?)```", page, re.S)[1], encoding="utf-8")
    assert main(["compare", "--config", str(recipe), "--dry_run"]) == 0
    assert capsys.readouterr().out.endswith("56 cells\n")
