"""Runs that are killed inside any write or at any moment, and completed by the same command.

What they leave is what the uninterrupted run leaves, bit for bit, and nothing else.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open

from balora.cli import main
from balora.staging import recover
from balora.trainers.checkpoint import checkpoints
from balora.trainers.reference import REFERENCE_FILE
from support.classification import save_body
from support.classification_runs import rows_of, write
from support.killing import every_kill, killed_after
from support.models import make_model, make_tokenizer

pytestmark = pytest.mark.slow

NUM_RANDOM = 12
COMMON = {
    "save_strategy": "steps",
    "logging_steps": "2",  # a row may lie between two checkpoints
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "2",
    "learning_rate": "1e-2",
    "lr_scheduler_type": "cosine",
    "lora_r": "2",
    "lora_alpha": "2",
    "disable_tqdm": "true",
}
KINDS = {
    "generation": {"preset": "iclr2026", "svd_k": "1"},
    "classification": {"task": "classification", "lr_scheduler_type": "linear"},
}


ENDED, KILLED = "run-1", "run-2"  # of one length: those of files are compared
SHORT = {"max_steps": "4", "save_steps": "2"}
LONG = {"max_steps": "12", "save_steps": "3"}


@pytest.fixture(scope="module", params=KINDS)
def fields(request, tmp_path_factory):
    """Return the fields of a run of either kind, without its length."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "generation":
        # with dropout, so that the random state counts
        make_model("llama", attention_dropout=0.1).save_pretrained(root / "base")
        rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(15)]
        data = {"dataset_name": write(root / "rows.jsonl", rows)}
    else:
        save_body(root / "base", "bert")
        data = {
            "dataset_name": write(root / "train.jsonl", rows_of("single")),
            "eval_dataset_name": write(root / "test.jsonl", rows_of("single", 7)),
        }
    make_tokenizer().save_pretrained(root / "base")
    return COMMON | KINDS[request.param] | data | {"model_name_or_path": str(root / "base")}


def call(fields, out, *options):
    words = [f"--{name}={value}" for name, value in (fields | {"output_dir": str(out)}).items()]
    return main(["train", *words, *options])


def is_over(out, fields):
    """Say whether a run has left the last of its files."""
    return (out / ("results.json" if "task" in fields else "environment.json")).exists()


def complete(fields, out):
    """Give the same command again as its user would: to go on where there is a checkpoint."""
    if is_over(out, fields):
        # the kill came after the last file: an empty work folder is left, which the next command
        # into this folder removes first
        recover(out)
        return
    anew = ("--overwrite",) if out.exists() and any(out.iterdir()) else ()
    options = ("--resume_from_checkpoint", "true") if checkpoints(out) else anew
    assert call(fields, out, *options) == 0, options


def left_by(out):
    """Return the content of every file of a run, times and places left out."""
    return {
        str(path.relative_to(out)): _timeless(path, out)
        for path in out.rglob("*")
        if path.is_file()
    }


def _timeless(path: Path, out: Path):
    if path.name == "training_args.bin":
        return None  # holds the options of the call
    if path.name in ("optimizer.pt", "scheduler.pt") or path.suffix == ".pth":
        return path.stat().st_size  # the adapters that follow from them are compared
    if path.name == REFERENCE_FILE:  # the order of its metadata is drawn anew in each process
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            return file.metadata(), [(name, file.get_tensor(name).tolist()) for name in names]
    text = path.read_bytes().replace(out.name.encode(), b"NAME")
    if path.name not in ("trainer_state.json", "results.json", "run.json"):
        return text
    content = json.loads(text)
    for row in content.get("log_history", []):
        for name in [name for name in row if name.endswith(("_runtime", "_per_second"))]:
            del row[name]
    content.pop("wall_seconds", None)
    content.pop("files", None)
    content.get("progress", {}).pop("seconds", None)
    for part in ("arguments", "recipe"):
        if isinstance(content.get(part), dict):
            for name in ("resume_from_checkpoint", "overwrite", "output_dir"):
                content[part].pop(name, None)
    return content


def check(fields, whole, out):
    complete(fields, out)
    found, expected = left_by(out), left_by(whole)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name
    shutil.rmtree(out)


def test_killed_before_and_inside_every_write(fields, tmp_path, capsys):
    fields, whole, out = fields | SHORT, tmp_path / ENDED, tmp_path / KILLED
    assert call(fields, whole) == 0
    counts = {"before a write": 0, "inside a write": 0}
    for kill, killed in every_kill(partial(call, fields, out), tmp_path):
        counts["inside a write" if kill.half else "before a write"] += killed
        check(fields, whole, out)
    with capsys.disabled():
        print(f"\n{fields.get('task', 'generation')}: killed {counts}")  # noqa: T201
    assert counts["before a write"] > 150
    assert counts["inside a write"] > 40


def test_killed_at_any_moment(fields, tmp_path, capsys):
    fields, whole, out = fields | LONG, tmp_path / ENDED, tmp_path / KILLED
    start = time.monotonic()
    assert not killed_after(600, partial(call, fields, whole))
    seconds = time.monotonic() - start
    generator, killed = random.Random(0), 0
    for _ in range(NUM_RANDOM):
        killed += killed_after(generator.uniform(0, seconds), partial(call, fields, out))
        if generator.random() < 0.5 and not is_over(out, fields):  # and once more
            again = partial(complete, fields, out)
            killed += killed_after(generator.uniform(0, seconds), again)
        check(fields, whole, out)
    with capsys.disabled():
        print(f"\n{fields.get('task', 'generation')}: killed at {killed} random moments")  # noqa: T201
    assert killed > NUM_RANDOM // 2
