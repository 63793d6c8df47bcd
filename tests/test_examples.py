"""The examples run as their first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.models import make_model, make_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_sample_text_writes_the_same_text_for_the_same_seed(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    texts = []
    for name in ("first.txt", "second.txt"):
        words = [str(tmp_path / "model"), "--out", str(tmp_path / name)]
        words += ["--num_samples", "3", "--max_new_tokens", "8"]
        script = str(EXAMPLES / "sample_text.py")
        subprocess.run([sys.executable, script, *words], check=True, capture_output=True)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert texts[0].strip()


def test_own_loop_learns():
    command = [sys.executable, str(EXAMPLES / "own_loop.py"), "--steps", "8"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    steps = [
        dict(zip(words[::2], map(float, words[1::2]), strict=True))
        for words in map(str.split, printed.splitlines())
    ]
    assert len(steps) == 8
    assert all(step.keys() == {"task", "consistency", "diversity", "svd"} for step in steps)
    assert steps[0]["consistency"] == 0
    assert steps[-1]["consistency"] > 0
    assert steps[-1]["task"] < steps[0]["task"] - 1
