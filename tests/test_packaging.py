"""What is packaged: metadata that others read, and a wheel that works without the repository."""

from __future__ import annotations

import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from support.wheel import clean_environment

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
VERSIONS = ("3.11", "3.12", "3.13")
"""Older ones have no release of the trl that is needed."""


def test_the_citation_has_what_its_format_requires():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cff.keys()
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] in ("software", "dataset")
    assert cff["version"] == PROJECT["version"]
    assert cff["license"] == PROJECT["license"]
    for work in (cff, *cff["references"]):
        assert work["authors"]
        for author in work["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
    for reference in cff["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
    assert "2408.04556" in cff["references"][0]["url"]


def test_the_versions_of_python_are_named():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert tuple(named) == VERSIONS
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"
    assert SETTINGS["tool"]["mypy"]["python_version"] == VERSIONS[0]  # types are checked by it


def test_every_extra_is_documented():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for name in PROJECT["optional-dependencies"]:
        assert re.search(rf"^\| `{name}` \|", text, re.M), name


def run(place: Path, words: list[str], folder: Path) -> str:
    """Run the command of an environment in a folder, without a path to the repository."""
    found = subprocess.run(
        [str(place / "balora"), *words],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_the_wheel_has_the_assets_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("assets/tiny_lm/model.safetensors", "schemas/train.json", "py.typed"):
        assert f"balora/{part}" in names
    assert "balora/report/templates/report.html.jinja" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_the_wheel_alone_runs_the_quickstart_from_an_empty_folder(installed, tmp_path):
    where = run(installed, ["env"], tmp_path)
    assert "balora commit" not in where  # it is no source tree that runs
    few = ["--max_steps=3", "--replay_num_texts=32", "--replay_length=16"]
    printed = run(installed, ["quickstart", *few], tmp_path)
    assert "loss on retained text" in printed
    use = printed[printed.index("from peft import PeftModel") :]
    command = [str(installed / "python"), "-c", use]
    found = subprocess.run(
        command, cwd="/", env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
