"""The documents: their sentences, names and targets exist; the site builds without a warning."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from benchmarks.picture import FIGURES, numbers

import balora
from balora.recipes import load_recipe
from balora.recipes.arguments import training_arguments
from balora.report.study import read_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SENTENCES = re.findall(r"^\*\*(.+)\*\*$", TROUBLES, re.M)


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert re.findall(r"^make ([a-z-]+)", README, re.M) == ["quickstart", "test"]
    assert {"quickstart", "test", "check", "docs"} <= set(targets)


def test_public_names_exist():
    assert all(getattr(balora, name) is not None for name in balora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = balora.nothing


def test_links_of_the_readme_lead_somewhere():
    for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md"):
        for target in re.findall(
            r"\]\((?!http)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")
        ):
            assert (ROOT / target).exists(), f"{name}: {target}"


def test_the_picture_shows_the_rows():
    shown = json.loads((FIGURES / "replay.json").read_text(encoding="utf-8"))
    rows = read_study(ROOT / "benchmarks" / "results" / "lab-replay")
    assert shown == numbers(rows), "run `python -m benchmarks.picture`"


@cache
def templates() -> list[re.Pattern[str]]:
    """Return the texts of the code whose values are filled in, whole and up to the first stop."""
    found = set()
    for path in (ROOT / "src" / "balora").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                pieces = [
                    one.value if isinstance(one, ast.Constant) else None for one in node.values
                ]
                text = "".join("\0" if one is None else str(one) for one in pieces)
                found |= {text, *(text[: stop.start() + 1] for stop in re.finditer(r"[.?] ", text))}
    return [
        re.compile(re.escape(text.rstrip(".")).replace("\0", ".*"), re.DOTALL)
        for text in found
        if len(text.replace("\0", "")) > 20
    ]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_of_the_page_on_failures_is_one_of_the_code(sentence):
    assert any(one.fullmatch(sentence.rstrip(".")) for one in templates()), sentence


def test_the_page_on_failures_has_sentences():
    assert len(SENTENCES) >= 20


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("latex2mathml")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(tmp_path)]
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])
        ),
    }
    built = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    pages = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html"))
    assert pages.count("<math ") > 30
    assert not re.findall(r'(?:src|href)="(https?://[^"]*\.(?:js|css|woff2?))"', pages)
    assert "`learning_rate`" not in pages  # rendered, not copied


@pytest.mark.parametrize(
    ("row", "given"),
    [
        ("adapter of a classifier", {"task": "classification"}),
        ("adapter of a language model", {}),
        ("`method: full`, classifier", {"task": "classification", "method": "full"}),
        ("`method: full`, language model", {"method": "full"}),
    ],
)
def test_the_table_of_defaults_says_what_a_silent_recipe_gets(row, given, tmp_path):
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    rate, rank_and_alpha = (cell.strip() for cell in line.split("|")[2:4])
    least = {"model_name_or_path": "base", "dataset_name": "rows.csv", "use_cpu": "true"}
    recipe = load_recipe(None, {**least, "output_dir": str(tmp_path / "out"), **given})
    args = training_arguments(recipe)
    assert args.learning_rate == float(rate)
    if "method" not in given:
        own = recipe.adapter
        assert f"{own.lora_r} and {own.lora_alpha}" == rank_and_alpha
    assert "3 epochs, batches of 8 and a linear schedule without warm-up" in text
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (3, 8)
    assert (args.lr_scheduler_type, args.warmup_steps) == ("linear", 0)
