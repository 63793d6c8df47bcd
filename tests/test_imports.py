"""What needs no torch imports none."""

from __future__ import annotations

import subprocess
import sys

from support.imports import room_imports

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
    assert not {"compare", "trainers", "models"} & room_imports()["report"]


def test_the_objective_needs_torch_alone():
    """Who trains with a loop of their own waits for nothing else."""
    code = (
        "import sys, balora.objective, balora.fused, balora.regularizers\n"
        "print({'transformers', 'peft', 'trl', 'datasets'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
