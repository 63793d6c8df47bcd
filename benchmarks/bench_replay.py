"""Time of a run with replay in every n-th step next to the same run without, and of its texts.

    python -m benchmarks.bench_replay --out benchmarks/results/replay.jsonl
    python -m benchmarks.bench_replay --shapes llama --steps 8 --repeats 3

`quickstart` is the embedded model with the batch of its recipe; other shapes have random weights.
Runs are whole calls of the trainer, in turns, one of each per round. `kept` takes the reference of
texts that were read before; `live` computes it in every step, as a run does where it reads a text
for the first time. The first call of each, which also makes texts, hidden states and the start of
the adapter, is timed alone. `generate` is
transformers' own, of as many texts of the same length from the same model, in batches of 16. Writes
one JSON line per measurement and prints a table.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.measure import (
    in_turns,
    interval,
    machine,
    make_parser,
    quantiles,
    ratios,
    table_head,
    table_line,
    timed,
    write_rows,
)
from benchmarks.step_models import Workload, make_model
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig

from balora.assets import asset_path
from balora.config import BALoraConfig
from balora.config.replay import ReplayConfig
from balora.replay.generate import generate_texts
from balora.replay.start import start_of
from balora.replay.texts import ReplayTexts
from balora.trainers import BALoraSFTTrainer

QUICKSTART = "quickstart"
VARIANTS = {"plain": None, "kept": "memory", "live": "live"}
"""Where the reference of replay is, by name of a run; None is a run without replay."""
OFF = {"consistency_coef": 0.0, "diversity_coef": 0.0, "svd_coef": 0.0}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, rows of one length, and the replay beside them."""

    shape: str
    steps: int
    every: int
    batch: int
    length: int
    rank: int = 16
    replay_texts: int = 64
    replay_batch: int = 16
    replay_length: int = 96

    def make_model(self) -> PreTrainedModel:
        """Return the model, on the CPU in float32."""
        if self.shape == QUICKSTART:
            return AutoModelForCausalLM.from_pretrained(asset_path("tiny_lm"))
        return make_model(Workload(shape=self.shape, length=self.length))


def case_of(shape: str, steps: int, every: int) -> Case:
    """Return the workload of a shape: the quickstart's batch, or 4 rows of 256 tokens."""
    if shape == QUICKSTART:
        return Case(shape, steps, every, batch=16, length=96)
    return Case(
        shape, steps, every, batch=4, length=256, replay_texts=8, replay_batch=4, replay_length=256
    )


def make_run(case: Case, folder: Path, reference: str | None) -> Callable[[], None]:
    """Return a call that trains once more; the first call also makes texts and reference."""
    model = case.make_model()
    vocab = model.config.get_text_config().vocab_size
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocab, (case.batch * case.steps, case.length), generator=rng).tolist()
    replay = ReplayConfig(
        replay="generated",
        replay_num_texts=case.replay_texts,
        replay_length=case.replay_length,
        replay_batch_size=case.replay_batch,
        replay_every=case.every,
        replay_reference=reference or "auto",
    )
    trainer = BALoraSFTTrainer(
        model,
        SFTConfig(
            output_dir=str(folder),
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            max_steps=case.steps,
            per_device_train_batch_size=case.batch,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        balora_config=BALoraConfig(**OFF),
        replay_config=replay if reference else None,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=case.rank,
            lora_alpha=case.rank,
            target_modules="all-linear",
        ),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        processing_class=AutoTokenizer.from_pretrained(asset_path("tiny_lm")),
    )
    return trainer.train


def time_runs(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Return a row for the run without replay and one for each place of its reference."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: make_run(case, Path(folder, name), place) for name, place in VARIANTS.items()}
        first = {name: timed(run)[0] for name, run in runs.items()}  # texts, reference, warm-up
        seconds = in_turns(runs, repeats=repeats)
    return [
        {
            "measurement": "run",
            "variant": name,
            **dataclasses.asdict(case),
            "seconds": quantiles(seconds[name]),
            "first_run_seconds": round(first[name], 2),
            "ratio_to": {"plain": ratios(seconds, "plain")[name]},
        }
        for name in runs
    ]


def time_texts(case: Case, repeats: int, batch: int = 16) -> list[dict[str, Any]]:
    """Return rows of the texts of this project and of transformers' own `generate`."""
    model = case.make_model().eval()
    tokenizer = AutoTokenizer.from_pretrained(asset_path("tiny_lm"))
    start = start_of(None, tokenizer, model)
    number, length = case.replay_texts, case.replay_length
    ours = partial(
        generate_texts,
        model,
        tokenizer,
        start,
        num_texts=number,
        length=length,
        seed=0,
        show_progress=False,
    )
    tokens: dict[str, int] = {}

    def own() -> None:
        texts: ReplayTexts = ours()
        tokens["replay"] = texts.num_scored(range(number))

    def theirs() -> None:
        found = 0
        for first in range(0, number, batch):
            ids = torch.tensor([start.input_ids] * min(batch, number - first))
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=length - len(start.input_ids),
                pad_token_id=0,
            )
            found += int(written.shape[0] * (written.shape[1] - ids.shape[1]))
        tokens["generate"] = found

    seconds = in_turns({"replay": own, "generate": theirs}, repeats=repeats)
    return [
        {
            "measurement": "texts",
            "variant": name,
            "shape": case.shape,
            "texts": number,
            "length": length,
            "batch": batch if name == "generate" else None,
            "seconds": quantiles(seconds[name]),
            "texts_per_second": round(number / quantiles(seconds[name])["median"], 2),
            "scored_or_drawn_tokens": tokens[name],
            "ratio_to": {"generate": ratios(seconds, "generate")[name]},
        }
        for name in seconds
    ]


def main() -> None:
    """Measure what the options ask for."""
    parser = make_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", default=[QUICKSTART, "llama"])
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps of a run")
    parser.add_argument("--every", type=int, default=4, help="steps between two with replay")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        case = case_of(shape, options.steps, options.every)
        rows += time_runs(case, options.repeats) + time_texts(case, options.repeats)
    print(table_head(["shape", "measurement", "variant", "seconds", "ratio"]))
    for row in rows:
        (yardstick, ratio), *_ = row["ratio_to"].items()
        cells = [row["shape"], row["measurement"], row["variant"], interval(row["seconds"], "s")]
        print(table_line([*cells, f"{interval(ratio)} to {yardstick}"]))
    write_rows(options.out, [{**row, **machine()} for row in rows])


if __name__ == "__main__":
    main()
