"""The Python interface as docs/api.md shows it: every name is in the table and in an example."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import balora

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)```", PAGE, re.M | re.S))
NAMES = set(balora.__all__) - {"__version__"}


def test_every_name_is_in_the_table_and_in_an_example():
    table = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", PAGE, re.M))))
    assert table == NAMES
    used = set(re.findall(r"\w+", " ".join(EXAMPLES.values())))
    assert used >= NAMES


def test_importing_balora_loads_nothing_else():
    program = "import sys, balora; print({'torch', 'transformers', 'peft'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert printed.stdout.strip() == "set()"
