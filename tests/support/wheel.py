"""The wheel, and an environment that has it and no path to the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.documents import ROOT


def build_wheel(out: Path, sources: Path) -> Path:
    """Build the wheel of a copy of the sources, beside which building writes, without a network.

    Args:
        out: An empty folder for the wheel.
        sources: An empty folder for the copy.
    """
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, sources)
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", sources / "src", ignore=left_out)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(sources)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def install_wheel(wheel: Path, folder: Path) -> Path:
    """Make an environment with the wheel and this one's libraries, and return its `bin`.

    The libraries are those of the lock that the tests run with; balora itself is the wheel's.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    place = folder / "bin"
    install = [str(place / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, env=clean_environment())
    site = next((folder / "lib").glob("python*/site-packages"))
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "locked.pth").write_text("\n".join(libraries) + "\n")  # after the wheel's own
    where = [str(place / "python"), "-c", "import balora; print(balora.__file__)"]
    found = subprocess.run(
        where, check=True, capture_output=True, text=True, cwd="/", env=clean_environment()
    )
    assert Path(found.stdout.strip()).is_relative_to(site), found.stdout
    return place


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without a path to the source tree."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
