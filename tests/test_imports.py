"""The rooms of the package import one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import balora

ROOT = Path(balora.__file__).parent
RUN = {"cli", "quickstart", "__main__", "__init__"}
"""What calls everything else; nothing imports it."""


def room(parts):
    return parts[0].removesuffix(".py")


def imports():
    """Return which room imports which, with the places; imports for annotations do not count."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        own = room(path.relative_to(ROOT).parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
                names = (node.module or "").split(".")
                if names[0] == "balora" and len(names) > 1 and room(names[1:]) != own:
                    found.setdefault((own, room(names[1:])), []).append(
                        f"{path.name}:{node.lineno}"
                    )
    return found


def test_the_rooms_import_one_way():
    edges = {pair: places for pair, places in imports().items() if pair[0] not in RUN}
    graph = {}
    for importer, imported in edges:
        graph.setdefault(importer, set()).add(imported)
    TopologicalSorter(graph).prepare()  # a cycle is an error that names it
    order = list(TopologicalSorter(graph).static_order())
    for lower, upper in (
        ("regularizers", "objective"),
        ("models", "anchored"),
        ("models", "evaluation"),
        ("objective", "fused"),
        ("evaluation", "trainers"),
        ("anchored", "trainers"),
        ("trainers", "compare"),
        ("rows", "report"),
        ("report", "compare"),
    ):
        assert order.index(lower) < order.index(upper)


WITHOUT_TORCH = """
import sys
import balora.config
assert not {"numpy", "yaml"} & sys.modules.keys()
import balora.cli, balora.lab.build, balora.lab.config
from balora.cli_help import train_fields
from balora.schema import packaged_schema
balora.cli.build_parser(), train_fields(), packaged_schema("train")
import balora.report.page, balora.report.plots, balora.report.tables
print({"torch", "transformers", "trl", "datasets"} & sys.modules.keys())
"""


def test_help_settings_schemas_and_reports_need_no_torch():
    """They answer at once, and on a machine that cannot measure."""
    code = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert not {"compare", "trainers", "models"} & {b for a, b in imports() if a == "report"}
