"""MkDocs hooks: the pages that are made of the code and of other files, and the equations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from equations import with_mathml
from mkdocs.structure.files import File, Files
from recipe_fields import recipe_page

ROOT = Path(__file__).resolve().parents[2]


def on_config(config: Any) -> Any:
    """List the pages that the navigation of mkdocs.yml does not name after the guides."""
    named = set(re.findall(r"[\w/]+\.md", str(config["nav"])))
    rest = sorted({path.name for path in (ROOT / "docs").glob("*.md")} - named)
    (guides,) = (part["Guides"] for part in config["nav"] if "Guides" in part)
    guides += rest
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that have no file in `docs`: they are made anew in every build."""
    made = {
        "recipe.md": recipe_page(),
        "contributing.md": of_the_root("CONTRIBUTING.md"),
        "changelog.md": of_the_root("CHANGELOG.md"),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def of_the_root(name: str) -> str:
    """Return a page of the repository's root, with links that lead from `docs`."""
    return re.sub(r"\]\(docs/", "](", (ROOT / name).read_text(encoding="utf-8"))


def on_page_content(html: str, **_: Any) -> str:
    """Render the equations of a page."""
    return with_mathml(html)
