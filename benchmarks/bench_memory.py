"""Peak host memory of the start of a run: plain LoRA, and BA-LoRA from the principal components.

    python -m benchmarks.bench_memory --out bench_memory.jsonl
    python -m benchmarks.bench_memory --layers 4 --width 256

Writes one JSON line per method and prints a table. A Llama of about 200M parameters is made once;
in each round each method then loads it, builds the trainer and computes what it needs before the
first step (the factor of the head, the start of the adapter) in a process of its own. Anonymous
memory is what a process needs for itself, sampled while it works; the pages of the mapped files of
weights come and go with the machine's cache and are in the resident peak alone. Plain LoRA is the
yardstick: the start may take 1.1 times its anonymous memory, and the bytes of the anchor.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.measure import (
    interval,
    machine,
    make_parser,
    quantiles,
    status_mib,
    table_head,
    table_line,
    write_rows,
)

METHODS = {
    "lora": {
        "adapter_init": "lora",
        **dict.fromkeys(("consistency_coef", "diversity_coef", "svd_coef"), 0.0),
    },
    "balora": {},
}


class Sampler(threading.Thread):
    """Keeps the largest anonymous memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        """Look every two milliseconds."""
        while True:
            self.peak = max(self.peak, status_mib("RssAnon") or 0.0)
            time.sleep(0.002)


def make(folder: Path, layers: int, width: int) -> int:
    """Write a random Llama and a tokenizer, and return its number of parameters."""
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=int(width * 2.75),
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=32_000,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    vocab = {"<s>": 1, "</s>": 2, "<unk>": 0, "a": 3, "b": 4}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return int(model.num_parameters())


def start(folder: Path, method: str, rank: int) -> dict[str, Any]:
    """Return the peak memory of this process once everything before the first step is there."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig

    from balora.config import BALoraConfig
    from balora.trainers import BALoraSFTTrainer
    from balora.trainers.memory import memory_report

    sampler = Sampler()
    sampler.start()
    begin = time.perf_counter()
    config = BALoraConfig(**METHODS[method])
    trainer = BALoraSFTTrainer(
        str(folder),
        SFTConfig(output_dir=str(folder / method), use_cpu=True, bf16=False),
        balora_config=config,
        peft_config=LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"),
        train_dataset=Dataset.from_list([{"prompt": "a", "completion": "b"}]),
    )
    trainer.prepare()
    seconds = time.perf_counter() - begin
    time.sleep(0.05)
    return {
        "anonymous_mib": round(sampler.peak, 1),
        "resident_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "anchor_mib": round(memory_report(trainer.model).anchor / 2**20, 1),
        "seconds": round(seconds, 1),
    }


def in_own_process(folder: Path, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what :func:`start` returns in a new process."""
    words = ["--case", method, "--folder", str(folder), "--rank", str(options.rank)]
    words += ["--threads", str(options.threads)]
    command = [sys.executable, "-m", "benchmarks.bench_memory", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--layers", type=int, default=12)
    add("--width", type=int, default=1024)
    add("--rank", type=int, default=16)
    add("--repeats", type=int, default=3)
    add("--case", choices=METHODS, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


COLUMNS = ["Method", "Anonymous, MiB", "Resident, MiB", "Anchor, MiB", "Of plain LoRA's + anchor"]


def row_of(found: dict[str, list[dict[str, Any]]], method: str) -> dict[str, Any]:
    """Return the quantiles of a method's figures over the rounds, and of its share in each."""
    own, yardstick = found[method], found["lora"]
    shares = [
        figures["anonymous_mib"] / (plain["anonymous_mib"] + figures["anchor_mib"])
        for figures, plain in zip(own, yardstick, strict=True)
    ]
    names = ("anonymous_mib", "resident_mib", "seconds")
    return {
        **{name: quantiles([figures[name] for figures in own]) for name in names},
        "anchor_mib": own[0]["anchor_mib"],
        "share": quantiles(shares),
    }


def main() -> None:
    """Measure both methods, print a table and write the rows."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.case is not None:
        print(json.dumps(start(options.folder, options.case, options.rank)))
        return
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        number = make(folder, options.layers, options.width)
        for _ in range(options.repeats):
            for method in METHODS:
                found[method].append(in_own_process(folder, method, options))
    case = {"num_parameters": number, "rank": options.rank}
    rows = [{"method": m, **case, **row_of(found, m), **machine()} for m in METHODS]
    write_rows(options.out, rows)
    print(table_head(COLUMNS))
    for row in rows:
        cells = [interval(row[name]) for name in ("anonymous_mib", "resident_mib")]
        print(table_line([row["method"], *cells, str(row["anchor_mib"]), interval(row["share"])]))


if __name__ == "__main__":
    main()
