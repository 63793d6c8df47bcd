"""The examples run as their first lines say, as programs in this process."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from support.models import make_model, make_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., str]:
    """Run an example with some words of a command line; return what it printed."""

    def run(name: str, *words: str) -> str:
        script = str(EXAMPLES / name)
        monkeypatch.setattr("sys.argv", [script, *words])
        capsys.readouterr()
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_sample_text_writes_the_same_text_for_the_same_seed(run, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    texts = []
    for name in ("first.txt", "second.txt"):
        words = [str(tmp_path / "model"), "--out", str(tmp_path / name)]
        words += ["--num_samples", "3", "--max_new_tokens", "8"]
        run("sample_text.py", *words)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert texts[0].strip()


def test_own_loop_learns(run):
    printed = run("own_loop.py", "--steps", "8")
    steps = [
        dict(zip(words[::2], map(float, words[1::2]), strict=True))
        for words in map(str.split, printed.splitlines())
    ]
    assert len(steps) == 8
    assert all(step.keys() == {"task", "consistency", "diversity", "svd"} for step in steps)
    assert steps[0]["consistency"] == 0
    assert steps[-1]["consistency"] > 0
    assert steps[-1]["task"] < steps[0]["task"] - 1
