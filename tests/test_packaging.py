"""What is packaged: metadata that others read, and a wheel that works without the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Return the wheel, built of the sources without a network."""
    out, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):  # building writes beside them
        shutil.copy2(ROOT / name, copy)
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", copy / "src", ignore=left_out)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(copy)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return the `balora` of a new environment with the wheel and this one's libraries.

    The libraries are those of the lock that the tests run with; balora itself is the wheel's.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, env=_without_sources())
    site = next((folder / "lib").glob("python*/site-packages"))
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "locked.pth").write_text("\n".join(libraries) + "\n")  # after the wheel's own
    return folder / "bin" / "balora"


def _without_sources() -> dict[str, str]:
    """Return the environment of this process without a path to the source tree."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(balora: Path, words: list[str], folder: Path) -> str:
    """Run an installed command in a folder, without a path to the repository."""
    found = subprocess.run(
        [str(balora), *words],
        cwd=folder,
        env=_without_sources(),
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
    python = installed.with_name("python")
    command = [str(python), "-c", use]
    found = subprocess.run(
        command, cwd="/", env=_without_sources(), capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
