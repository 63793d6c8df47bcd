"""Every code block and command of README.md and docs/ runs here, or says why it does not.

Python runs in this process, on tiny models in the place of those of the hub; commands of balora go
through the command line up to their work; recipes are read as recipes. What a page prints is
``text``. See `support.documents`.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import re
import shutil
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from balora.cli import main
from support.documents import PAGES, ROOT, Block, blocks_of, commands_of
from support.models import make_model, make_tokenizer
from support.training import make_rows

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
OUTPUT = "text"
SHELL = ("bash", "sh", "console")
DRY = ("train", "quickstart", "compare", "lab")
"""Verbs that can say what they would do."""
NOT_DRY = {"--report_only", "--worker", "--slurm"}
MAKE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
EXTRAS = set(
    re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
)
ON_THE_HUB = {
    "meta-llama/Llama-2-7b-hf": "llama",
    "FacebookAI/roberta-base": "bert",
    "encoder": "bert",
}
"""Models of the pages, and the architecture of the tiny ones in their place."""
RECIPE = "model_name_or_path: MODEL\ndataset_name: rows.jsonl\noutput_dir: outputs/run\n"
"""What a page calls `recipe.yaml` without showing it."""


def of(*languages: str) -> list:
    return [pytest.param(one, id=one.name) for one in BLOCKS if one.language in languages]


def test_every_block_can_be_run_or_says_why_not(capsys):
    known = {OUTPUT, "python", "yaml", "json", "jsonl", "csv", "diff", *SHELL}
    bad = [one.name for one in BLOCKS if one.language not in known and not one.reason]
    assert not bad, f"blocks of a language that nothing here runs: {bad}"
    count = Counter("not run" if one.reason else one.language for one in BLOCKS)
    with capsys.disabled():
        sys.stdout.write(f"\n{len(BLOCKS)} blocks of {len(PAGES)} pages: {dict(count)}\n")
    assert count.total() > 30


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Work in an empty folder with the recipes of the repository, and nothing of a run is done."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").symlink_to(ROOT / "recipes")
    Path("benchmarks").symlink_to(ROOT / "benchmarks")
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for name in ("train.jsonl", "test.jsonl", "rows.jsonl"):
        make_rows().to_json(name)
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Let every command come as far as its work: its options and fields are read and checked."""
    given = "balora.config.rules.PathTo.missing"
    monkeypatch.setattr(given, lambda *_: None)  # files of the reader
    monkeypatch.setattr("balora.trainers.preflight.check_run", lambda recipe: [])
    monkeypatch.setattr("balora.lab.command.check_runs", lambda runs: None)


def write_files_of_the_page(block: Block) -> None:
    for other in blocks_of(ROOT / block.page):
        if other.title and other.line <= block.line:
            Path(other.title).write_text(other.code, encoding="utf-8")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("block", of(*SHELL))
def test_commands(block, workplace, monkeypatch, capsys):
    write_files_of_the_page(block)
    for words in commands_of(block.code):
        problem = tried(words, monkeypatch)
        if problem is None and not block.reason:
            pytest.fail(f"{block.name}: nothing here tries `{' '.join(words)}`")
        assert not problem, f"{block.name}: `{' '.join(words)}`: {problem} {capsys.readouterr()}"


def tried(words: list[str], monkeypatch) -> str | None:
    """Return what is wrong with a command, ``""`` if nothing is, and None if it is not ours."""
    first = words[0]
    if first == "balora":
        return tried_balora(words[1:], monkeypatch)
    if first == "make":
        return f"no target {words[1]}" if words[1] not in MAKE else ""
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        return "" if importlib.util.find_spec(words[2]) else f"no module {words[2]}"
    if first == "python" and words[1].startswith(("examples/", "benchmarks/")):
        return "" if (ROOT / words[1]).is_file() else f"no file {words[1]}"
    if words[:2] == ["pip", "install"] and words[-1].startswith("."):
        unknown = set(re.findall(r"\w+", words[-1])) - EXTRAS
        return f"no extra {unknown}" if unknown else ""
    if first in ("cp", "mkdir", "cd", "cat"):
        return ""
    return None


def tried_balora(words: list[str], monkeypatch) -> str:
    """Run a command of balora as far as its work, and return what is wrong with it."""
    verb, is_dry = words[0], words[0] in DRY and not NOT_DRY & {*words}
    if is_dry:
        words = [*words, "--dry_run"] if "--dry_run" not in words else words
        return "" if main(words) == 0 else "refused:"
    monkeypatch.setattr("balora.cli._" + verb, reads_options)
    from balora.cli import build_parser

    build_parser.cache_clear()
    try:
        return "" if main(words) == 0 else "refused:"
    finally:
        build_parser.cache_clear()


def reads_options(given: Namespace, rest: list[str]) -> None:
    """Read what a command is given, as it does before its work."""
    from balora.cli import runs_and_fields
    from balora.config import options
    from balora.errors import ConfigError
    from balora.evaluation.bench.run import bench_config
    from balora.recipes import CLASSIFICATION
    from balora.recipes.load import known_fields

    own = getattr(options, f"{given.command.capitalize()}Options", None)
    if own:
        options.read_options(own, given)
    _, fields = runs_and_fields(rest)
    if given.command == "bench":
        bench_config(fields)
    elif (
        unknown := fields.keys()
        - known_fields().keys()
        - known_fields(CLASSIFICATION).keys()
        - {"report_only", "baseline", "worker", "study", "slurm"}
    ):
        raise ConfigError(f"no field {unknown}.")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("block", of("yaml"))
def test_recipes(block, workplace, capsys):
    content = yaml.safe_load(block.code)
    if block.reason:
        return
    verb = "compare" if {"compare", "lab"} & content.keys() else "train"
    missing = {**yaml.safe_load(RECIPE), **content}
    Path("shown.yaml").write_text(yaml.safe_dump(missing), encoding="utf-8")
    assert main([verb, "--config", "shown.yaml", "--dry_run"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("block", of("json", "jsonl", "csv"))
def test_data(block):
    lines = [block.code] if block.language == "json" else block.code.splitlines()
    if block.language == "csv":
        assert len({len(row) for row in csv.reader(lines)}) == 1
    else:
        assert all(json.loads(line) for line in lines)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Return a folder with tiny models by the names of those of the hub."""
    place = tmp_path_factory.mktemp("hub")
    for name, architecture in ON_THE_HUB.items():
        make_model(architecture, num_labels=2).save_pretrained(place / name)
        make_tokenizer().save_pretrained(place / name)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    get_peft_model(make_model("llama"), lora).save_pretrained(place / "outputs" / "run")
    return place


def given() -> dict:
    """Return what a block of Python may take for granted."""
    tokenizer = make_tokenizer()
    ids = torch.tensor([[5, 17, 40, 9, 61], [33, 8, 50, 12, 7]])
    return {
        "model": make_model("llama"),
        "tokenizer": tokenizer,
        "rows": make_rows(),
        "texts": Dataset.from_dict({"text": ["abc", "de", "fgh", "ij"] * 4, "label": [0, 1] * 8}),
        "input_ids": ids,
        "labels": ids,
    }


SECTIONS = list(
    dict.fromkeys((one.page, one.section) for one in BLOCKS if one.language == "python")
)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("page", "section"), SECTIONS)
def test_python(page, section, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(hub, tmp_path, dirs_exist_ok=True)
    names = given()
    for block in blocks_of(ROOT / page):
        if block.language != "python" or block.section != section:
            continue
        program = compile(block.code, block.name, "exec")
        if block.reason:
            continue
        capsys.readouterr()
        exec(program, names)
        printed = capsys.readouterr().out
        for promised in re.findall(r"^\s*print\(.*\)  # (.*)$", block.code, re.M):
            assert promised in printed


@pytest.mark.parametrize("block", of("diff"))
def test_both_sides_of_a_difference_are_programs_whose_names_exist(block):
    for side, other in ("+-", "-+"):
        lines = [line for line in block.code.splitlines() if not line.startswith(other)]
        tree = ast.parse("\n".join(line[1:].removeprefix(" ") for line in lines))
        for one in ast.walk(tree):
            if isinstance(one, ast.ImportFrom):
                module = importlib.import_module(one.module)
                assert all(hasattr(module, name.name) for name in one.names), (side, one.module)
