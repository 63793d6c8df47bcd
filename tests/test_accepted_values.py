"""Every number that a dry run takes, at its extremes: two steps end well, or in one sentence."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from balora.cli import main
from balora.config.values import dump_mapping
from balora.recipes import CLASSIFICATION, GENERATION, known_fields
from support.bad_values import extremes
from support.classification import save_body
from support.models import make_model, make_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of libraries, on values that nobody sets
]
STARTS_PROCESSES = ("dataloader_num_workers", "dataset_num_proc")
"""As many as are asked for."""
RUN = {
    **{"output_dir": "out", "lora_r": 2, "lora_alpha": 2, "max_steps": 2, "disable_tqdm": True},
    "per_device_train_batch_size": 2,
}
GENERATES = {"model_name_or_path": "base", "dataset_name": "rows.jsonl"}
CLASSIFIES = {
    **{"task": "classification", "model_name_or_path": "encoder", "dataset_name": "cls.jsonl"},
    "eval_dataset_name": "cls.jsonl",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    make_model("llama").save_pretrained(tmp_path / "base")
    save_body(tmp_path / "encoder", "bert")
    for name in ("base", "encoder"):
        make_tokenizer().save_pretrained(tmp_path / name)
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(8)]
    labelled = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(8)]
    for name, content in (("rows", rows), ("cls", labelled)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [GENERATION, CLASSIFICATION], ids=["generation", "classification"])
def test_what_a_dry_run_takes_does_not_fail_in_the_middle(kind, place, capsys):
    base = {**RUN, **(GENERATES if kind is GENERATION else CLASSIFIES)}
    known = known_fields(kind)
    if kind is CLASSIFICATION:  # those of the trainer are in the other as well
        known = {n: entry for n, entry in known.items() if n not in known_fields(GENERATION)}
    wrong, counts = [], Counter()
    for name, entry in known.items():
        if name in STARTS_PROCESSES or name == "max_steps":
            continue
        for value in extremes(entry.annotation):
            Path("recipe.yaml").write_text(dump_mapping({**base, name: value}))
            if main(["train", "--config", "recipe.yaml", "--dry_run"]) == 0:
                problem = _run(counts)
                if problem is not None:
                    wrong.append(f"{name}: {value}: {problem}")
            else:
                counts["refused by the dry run"] += 1
            capsys.readouterr()
            shutil.rmtree("out", ignore_errors=True)
    with capsys.disabled():
        print(f"\n{dict(counts)}")  # noqa: T201
    assert not wrong, "\n".join(wrong)


def _run(counts):
    """Train and count how it ended; say what was wrong where it ended in no sentence."""
    try:
        status = main(["train", "--config", "recipe.yaml"])
    except Exception as error:  # noqa: BLE001  every one of them is what is looked for
        return f"{type(error).__name__}: {error}"
    counts["trained" if status == 0 else "ended in a sentence"] += 1
    return "refused, though the dry run took it" if status == 2 else None
