"""An independent yardstick: lm-evaluation-harness writes the same answers and gives the same score.

Opt-in: `pip install lm-eval`, which is no requirement of ours, and the real data. Its own tasks
need the hub, so the task is of our own making: our prompts, its filters, its metric.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from balora.cli import main
from balora.config.values import dump_mapping

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"
    ),
]
NUM_ROWS, NUM_TOKENS = 50, 24
# the filter of its gsm8k, and one that finds something in what so small a model writes
FILTERS = {"strict-match": r"#### (\-?[0-9\.\,]+)", "first-word": r"([A-Za-z]+)"}
HARNESS = """
import json, sys
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

model = HFLM(pretrained=sys.argv[1], dtype="float32", device="cpu", batch_size=8)
manager = TaskManager(include_path=sys.argv[2], include_defaults=False)
found = lm_eval.simple_evaluate(model, tasks=["as_we_ask"], task_manager=manager)
samples = found["samples"]["as_we_ask"]
answers = {s["doc"]["id"]: s["resps"][0][0] for s in samples if s["filter"] == "first-word"}
print(json.dumps({"answers": answers, "scores": found["results"]["as_we_ask"]}))
"""


def test_both_write_the_same_and_score_the_same(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(shared_data / "models" / "stories260K")
    lines = (shared_data / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()[-1000:]
    # where a prompt does not fit into the model, each cuts it in its own way
    shortest = sorted(lines, key=lambda line: len(json.loads(line)["question"]))[:NUM_ROWS]
    (tmp_path / "problems.jsonl").write_text("\n".join(shortest) + "\n")
    words = ["--base", model, "--gsm8k.dataset_name", "problems.jsonl", "--eval_batch_size", "8"]
    words += ["--max_new_tokens", str(NUM_TOKENS), "--output_dir", "out", "--benchmarks", "gsm8k"]
    assert main(["bench", *words]) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "out/base/gsm8k.jsonl").read_text().splitlines()
    ]
    assert len(rows) == NUM_ROWS
    asked = [{"id": r["id"], "prompt": r["prompt"], "gold": gold(r)} for r in rows]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    told = harness(tmp_path, model)
    assert told["answers"] == {row["id"]: row["text"] for row in rows}
    for name, pattern in FILTERS.items():
        right = [
            first(pattern, row["text"]) == one["gold"] for row, one in zip(rows, asked, strict=True)
        ]
        assert told["scores"][f"exact_match,{name}"] == pytest.approx(sum(right) / NUM_ROWS)
    assert told["scores"]["exact_match,first-word"] == pytest.approx(0.5)


def gold(row):
    """Return what counts as right: of every second row the first word of our own answer."""
    return first(FILTERS["first-word"], row["text"]) if int(row["id"]) % 2 else "another"


def first(pattern, text):
    found = re.findall(pattern, text)
    return found[0] if found else "[invalid]"


def harness(folder, model):
    task = {
        "task": "as_we_ask",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "asked.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{gold}}",
        "generation_kwargs": {
            "until": ["### Instruction:"],
            "do_sample": False,
            "max_gen_toks": NUM_TOKENS,
        },
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {
                "name": name,
                "filter": [
                    {"function": "regex", "regex_pattern": pattern},
                    {"function": "take_first"},
                ],
            }
            for name, pattern in FILTERS.items()
        ],
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "as_we_ask.yaml").write_text(dump_mapping(task))
    words = [sys.executable, "-c", HARNESS, model, str(folder / "tasks")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
