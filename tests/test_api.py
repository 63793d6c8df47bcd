"""The Python interface as docs/api.md shows it: every example runs, every name is in one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel

import balora
from support.models import make_model, make_tokenizer
from support.training import make_rows

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)```", PAGE, re.M | re.S))
NAMES = set(balora.__all__) - {"__version__"}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Return what the examples take for granted, and work in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    make_model("bert", num_labels=2).save_pretrained("encoder")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained("encoder")
    ids = torch.tensor([[5, 17, 40, 9, 61], [33, 8, 50, 12, 7]])
    return {
        "model": make_model("llama"),
        "tokenizer": tokenizer,
        "rows": make_rows(),
        "texts": Dataset.from_dict({"text": ["abc", "de", "fgh", "ij"] * 4, "label": [0, 1] * 8}),
        "input_ids": ids,
        "labels": ids,
    }


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name, given, capsys):
    exec(EXAMPLES[name], given)
    if name == "Text generation":
        assert given["trainer"].state.global_step == 2
        assert Path("outputs/sft/adapter_model.safetensors").is_file()
    if name == "Classification":
        assert given["trainer"].state.global_step == 2
    if name == "Your own loop":
        assert given["terms"].consistency == 0
        assert PeftModel.from_pretrained(make_model("llama"), "outputs/tuned")
    if name == "What is refused":
        comment = re.search(r"# (objective: .*)", EXAMPLES[name])[1]
        assert capsys.readouterr().out.strip() == comment


def test_every_name_is_in_the_table_and_in_an_example():
    table = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", PAGE, re.M))))
    assert table == NAMES
    used = set(re.findall(r"\w+", " ".join(EXAMPLES.values())))
    assert used >= NAMES


def test_importing_balora_loads_nothing_else():
    program = "import sys, balora; print({'torch', 'transformers', 'peft'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert printed.stdout.strip() == "set()"
