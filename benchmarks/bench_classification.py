"""Time of a training step of classification, from the second epoch on, next to PiSSA.

    python -m benchmarks.bench_classification --out classification.jsonl
    python -m benchmarks.bench_classification --shape bert-base --lengths 128 --repeats 20
    python -m benchmarks.bench_classification --variants pissa anchored balora --lengths 64

A step is that of the trainers themselves: collate, forward, objective, backward, clip, AdamW. The
model is a BERT of random weights with its own dropout, the adapter is of rank 8.

pissa       transformers' Trainer with PEFT's in-place PiSSA: the yardstick
anchored    BALoraTrainer with every term off: PiSSA with the base untouched
balora      the paper's coefficients, the reference looked up
features    the same with `space: features`
recomputed  balora, were the reference computed anew in every step: what looking it up saves

The claim is that balora takes at most 1.05 of a PiSSA step. It is to hold against `pissa`, which
nothing of ours is in; against `anchored` it says what the terms alone cost. Variants are timed in
turns, one step each per round, and a ratio is taken within a round; the figures are medians.

The first epoch also computes the reference. `first_epoch` is that time for an epoch of
`--epoch_rows` rows, with the digests that keep it from going stale, over the time of the epoch's
steps. Writes one JSON line per length and prints a table.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from benchmarks.measure import (
    in_turns,
    interval,
    machine,
    make_parser,
    quantiles,
    ratios,
    synchronized,
    table_head,
    table_line,
    timed,
    write_rows,
)
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.utils import logging as transformers_logging

from balora.anchored import reference_mode
from balora.config import BALoraConfig
from balora.models.targets import paper_target_modules
from balora.trainers import BALoraTrainer

SHAPES: dict[str, dict[str, int]] = {
    "minilm": {
        "num_hidden_layers": 6,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "bert-base": {},  # the defaults of transformers
    "tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 128,
    },
}
OFF = {"consistency_coef": 0.0, "diversity_coef": 0.0, "svd_coef": 0.0}
PAPER = BALoraConfig.preset("paper", task="nlu")
OBJECTIVES: dict[str, BALoraConfig | None] = {
    "pissa": None,
    "anchored": BALoraConfig(**OFF),
    "balora": PAPER,
    "features": BALoraConfig.preset("paper", task="nlu", space="features"),
    "recomputed": PAPER,
}
YARDSTICKS = ("pissa", "anchored")
NUM_BATCHES = 4
"""Batches of the data set, drawn over and over."""

Step = Callable[[], Any]


def make_model(options: argparse.Namespace) -> PreTrainedModel:
    """Return the model with random weights; always the same ones."""
    torch.manual_seed(options.seed)
    config = AutoConfig.for_model("bert", num_labels=options.classes, **SHAPES[options.shape])
    return AutoModelForSequenceClassification.from_config(config)


def make_rows(length: int, options: argparse.Namespace) -> Dataset:
    """Return random rows of one length."""
    rng = torch.Generator().manual_seed(options.seed)
    vocab_size = SHAPES[options.shape].get("vocab_size", 30522)
    size = (NUM_BATCHES * options.batch, length)
    ids = torch.randint(5, vocab_size, size, generator=rng)
    return Dataset.from_dict(
        {
            "input_ids": ids.numpy(),
            "attention_mask": torch.ones_like(ids).numpy(),
            "labels": torch.randint(options.classes, size[:1], generator=rng).numpy(),
        }
    )


def make_trainer(name: str, rows: Dataset, folder: str, options: argparse.Namespace) -> Trainer:
    """Return the trainer of a variant."""
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        learning_rate=1e-4,
        use_cpu=options.device == "cpu",
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    config = OBJECTIVES[name]
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=8,
        target_modules=paper_target_modules("bert", options.targets),
        init_lora_weights="pissa_niter_8" if config is None else True,
    )
    settings: dict[str, Any] = {"train_dataset": rows, "data_collator": default_data_collator}
    if config is None:
        return Trainer(get_peft_model(make_model(options), lora), args, **settings)
    model = make_model(options)
    return BALoraTrainer(model, args, balora_config=config, peft_config=lora, **settings)


def endless(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """Yield the training batches over and over."""
    loader = trainer.get_train_dataloader()
    return itertools.chain.from_iterable(itertools.repeat(loader))


def make_step(name: str, trainer: Trainer, options: argparse.Namespace) -> Step:
    """Return a function that takes one optimizer step as the training loop does."""
    if isinstance(trainer, BALoraTrainer):
        trainer.prepare()
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    model, optimizer, batches = trainer.model, trainer.optimizer, endless(trainer)
    parameters = [p for p in model.parameters() if p.requires_grad]
    num_items = torch.tensor(options.batch)

    def step() -> None:
        batch = next(batches)
        if name == "recomputed":
            recompute(trainer, batch)
        trainer.training_step(model, batch, num_items)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return synchronized(step, options.device)


def recompute(trainer: BALoraTrainer, batch: dict[str, Any]) -> None:
    """Run the model of step 0 on a batch, as a reference that is not kept would."""
    with reference_mode(trainer.model):
        trainer.model(**{name: batch[name] for name in ("input_ids", "attention_mask")})


def measure(length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one length."""
    rows = make_rows(length, options)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: make_trainer(name, rows, folder, options) for name in options.variants}
        steps = {name: make_step(name, trainers[name], options) for name in options.variants}
        for step in (*steps.values(), *steps.values()):  # what is kept is made by the first
            step()
        seconds = in_turns(steps, repeats=options.repeats, seed=options.seed)
        over = {name: ratios(seconds, name) for name in YARDSTICKS if name in seconds}
        first_epoch = None
        if "balora" in trainers:
            first_epoch = first_epoch_share(trainers["balora"], seconds["balora"], options)
    return {
        "shape": options.shape,
        "batch": options.batch,
        "length": length,
        "targets": options.targets,
        "classes": options.classes,
        "seconds": {name: quantiles(times) for name, times in seconds.items()},
        "over": over,
        "first_epoch": first_epoch,
        **machine(options.device),
    }


def first_epoch_share(
    trainer: BALoraTrainer, seconds: list[float], options: argparse.Namespace
) -> dict[str, float]:
    """Return what the reference adds to the first epoch, over the time of the epoch's steps."""
    parts = [timed(synchronized(trainer.prepare, options.device))[0] for _ in range(3)]
    few = trainer.train_dataset
    trainer.train_dataset = few.select(range(options.batch))
    digests = [timed(synchronized(trainer.prepare, options.device))[0] for _ in range(3)]
    trainer.train_dataset = few
    # two sizes tell the time of a batch from what is paid once
    per_batch = (sorted(parts)[1] - sorted(digests)[1]) / (NUM_BATCHES - 1)
    once = max(sorted(digests)[1] - per_batch, 0.0)
    num_batches = -(-options.epoch_rows // options.batch)
    epoch = quantiles(seconds)["median"] * num_batches
    return {
        "epoch_rows": options.epoch_rows,
        "seconds_per_batch": round(per_batch, 4),
        "seconds_once": round(once, 4),
        "share": round((once + per_batch * num_batches) / epoch, 4),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown: medians, in brackets the percentiles and the runs."""
    columns = ["Length", "Variant", "Seconds per step", *(f"Over {y}" for y in rows[0]["over"])]
    lines = [table_head(columns)]
    for row in rows:
        for name, figures in row["seconds"].items():
            over = [interval(ratio[name]) for ratio in row["over"].values()]
            lines.append(table_line([str(row["length"]), name, interval(figures, " s"), *over]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure every length, print the table."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="minilm")
    add("--lengths", type=int, nargs="+", default=[32, 64, 128], help="tokens of a row")
    add("--batch", type=int, default=32, help="rows of a step")
    add("--classes", type=int, default=2)
    add("--targets", choices=["query_value", "query_key_value", "all"], default="all")
    add("--variants", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), metavar="VARIANT")
    add("--repeats", type=int, default=30, help="rounds")
    add("--epoch_rows", type=int, default=8551, help="rows of an epoch; those of CoLA")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    rows: list[dict[str, Any]] = []
    for length in options.lengths:
        rows.append(measure(length, options))
        write_rows(options.out, rows)
    print(table(rows))
    for row in rows:
        if row["first_epoch"]:
            share = row["first_epoch"]["share"]
            print(f"length {row['length']}: the reference adds {share:.1%} to the first epoch")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft reads it
        main()
