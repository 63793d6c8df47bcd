"""What preparing rows for training costs, beside trl's own trainer.

    python -m benchmarks.bench_prepare --rows 20000 100000 --out prepare.jsonl

The rows are pairs of text, 40 and 60 words drawn from 5,000, in one JSONL file, with a tokenizer of
bytes that were merged. Each is prepared into an empty cache, in each round once by balora (read,
checked and laid out, then `BALoraSFTTrainer._prepare_dataset`) and once by trl (``load_dataset``,
then `SFTTrainer._prepare_dataset`), in random order:

    ratio = balora / trl, round by round

in seconds of the clock and of the processor; on a loaded machine the second is the one to read. The
claim is a ratio of at most 1.1.

Writes one JSON line for each number of rows and prints a table.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import trl
from benchmarks.bench_data import write_file
from benchmarks.measure import (
    interval,
    machine,
    make_parser,
    quantiles,
    table_head,
    table_line,
    write_rows,
)
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from balora.config import DataConfig
from balora.data import load_examples
from balora.trainers.sft import BALoraSFTTrainer

WAYS = ("balora", "trl")


def make_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Return a tokenizer of 4,000 tokens, trained on the rows."""
    made = ByteLevelBPETokenizer()
    made.train(str(file), vocab_size=4000, special_tokens=["</s>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="</s>")


def prepared(way: str, file: Path, trainer: SFTTrainer) -> int:
    """Read and prepare the rows of a file and return how many there are."""
    if way == "balora":
        config = DataConfig(dataset_name=str(file), prompt_template="none")
        rows = load_examples(config, split="train").dataset
    else:
        rows = datasets.load_dataset("json", data_files=str(file), split="train")
        rows = rows.rename_columns({"query": "prompt", "response": "completion"})
    args = trainer.args
    return len(trainer._prepare_dataset(rows, trainer.processing_class, args, False, None, "train"))


def make_trainers(file: Path, folder: Path) -> dict[str, SFTTrainer]:
    """Return a trainer of each way on a model of one layer; it does not train."""
    tokenizer = make_tokenizer(file)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    few = datasets.Dataset.from_list([{"prompt": "w1", "completion": " w2"}] * 2)
    made = {}
    for way, kind in (("balora", BALoraSFTTrainer), ("trl", SFTTrainer)):
        args = SFTConfig(str(folder / way), bf16=False, use_cpu=True, max_length=512)
        given = {"train_dataset": few, "processing_class": tokenizer}
        if way == "balora":
            from peft import LoraConfig

            given["peft_config"] = LoraConfig(r=2, target_modules="all-linear")
        made[way] = kind(LlamaForCausalLM(config), args, **given)
    return made


def timed(call: Callable[[], int]) -> tuple[float, float]:
    """Return the seconds of the clock and of the processor that a call takes, in a fresh cache."""
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        start = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(num_rows: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the row of one number of rows."""
    file = write_file("pairs", folder, num_rows=num_rows, seed=options.seed)
    trainers = make_trainers(file, folder)
    order = random.Random(options.seed)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in order.sample(WAYS, len(WAYS)):
            found[way].append(timed(lambda way=way: prepared(way, file, trainers[way])))
    pairs = list(zip(found["balora"], found["trl"], strict=True))
    return {
        "benchmark": "prepare",
        "rows": num_rows,
        "seconds": {way: quantiles([clock for clock, _ in found[way]]) for way in WAYS},
        "cpu_seconds": {way: quantiles([cpu for _, cpu in found[way]]) for way in WAYS},
        "ratio": quantiles([one[0] / other[0] for one, other in pairs]),
        "cpu_ratio": quantiles([one[1] / other[1] for one, other in pairs]),
        **machine(),
        "threads": options.threads,
        "datasets": datasets.__version__,
        "trl": trl.__version__,
    }


def main() -> None:
    """Measure every number of rows, write a line for each, and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in options.rows:
            rows.append(measure(number, options, Path(folder)))
            write_rows(options.out, rows)
    print(table_head(["Rows", "balora", "trl", "balora / trl", "CPU: balora / trl"]))
    for row in rows:
        cells = [str(row["rows"]), *(interval(row["seconds"][way], " s") for way in WAYS)]
        print(table_line([*cells, interval(row["ratio"]), interval(row["cpu_ratio"])]))


if __name__ == "__main__":
    main()
