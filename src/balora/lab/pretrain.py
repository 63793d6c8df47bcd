"""Pre-train a tiny causal language model on the synthetic world, and write down how.

    python -m balora.lab.pretrain --output DIR --seed 0

Writes the model (safetensors), its tokenizer, ``held_out.txt`` (text it was not trained on) and
``pretrain_log.json`` (settings, versions, loss curve, and the held-out loss of the trained model
next to the same model untrained). The defaults are those of the model that ships with balora.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from balora.evaluation.retention import text_loss
from balora.lab.corpus import build_corpus
from balora.lab.settings import CorpusSettings, PretrainSettings
from balora.lab.tokenizer import INSTRUCTION_WORDING, build_tokenizer

LINES_PER_DOCUMENT = 10
WORDING_REPEATS = 300
logger = logging.getLogger(__name__)


def pretrain(
    settings: PretrainSettings, output: Path, *, command: str | None = None
) -> dict[str, Any]:
    """Train, evaluate on held-out text, and write everything to ``output``.

    Args:
        settings: What decides the model.
        output: A new or empty folder.
        command: What the log shall say it was made with.

    Returns:
        What ``pretrain_log.json`` holds, losses in nats per token.

    Raises:
        FileExistsError: If ``output`` already holds files.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"`{output}` is not empty: choose a new folder or empty this one.")
    corpus = build_corpus(settings.corpus)
    passes = list(corpus.passes(settings.num_passes))
    lines = [line for each in passes for line in each.lines]
    held_out = corpus.held_out_text()
    one_pass = lines[: len(lines) // settings.num_passes]
    wording = list(INSTRUCTION_WORDING) * WORDING_REPEATS
    tokenizer = build_tokenizer([*one_pass, *wording], vocab_size=settings.vocab_size)
    tokenizer.model_max_length = settings.block_size

    set_seed(settings.seed)
    model = build_model(settings, tokenizer)
    untrained_loss = text_loss(model.eval(), tokenizer, held_out, block=settings.block_size)
    started = time.perf_counter()
    history, num_steps = _train(
        model, _packed_blocks(tokenizer, lines, settings.block_size), settings
    )
    seconds = time.perf_counter() - started
    log = {
        "seed": settings.seed,
        **({} if command is None else {"command": command}),
        "settings": asdict(settings),
        "statements": dict(sum((each.tellings for each in passes), Counter())),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "num_parameters": model.num_parameters(),
        "num_steps": num_steps,
        "held_out_loss": text_loss(model.eval(), tokenizer, held_out, block=settings.block_size),
        "held_out_loss_untrained": untrained_loss,
        "loss_curve": [[row["step"], round(row["loss"], 4)] for row in history],
    }
    _write(output, model, tokenizer, held_out, log)
    return log


_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate")


def build_model(settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model in float32, its head tied to its embedding."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_key_value_heads=settings.num_heads,
            max_position_embeddings=settings.block_size,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def documents_of(lines: list[str]) -> list[str]:
    """Return the texts that a model is pre-trained on: lines, a few of them a document."""
    return [
        "\n".join(lines[start : start + LINES_PER_DOCUMENT])
        for start in range(0, len(lines), LINES_PER_DOCUMENT)
    ]


def _packed_blocks(
    tokenizer: PreTrainedTokenizerFast, lines: list[str], block_size: int
) -> list[dict[str, torch.Tensor]]:
    """Return blocks of one stream of documents, each between its two special tokens."""
    documents = documents_of(lines)
    encoded = tokenizer(documents, verbose=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in [*ids, tokenizer.eos_token_id]])
    blocks = stream[: len(stream) // block_size * block_size].view(-1, block_size)
    return [{"input_ids": block, "labels": block} for block in blocks]


def _train(
    model: LlamaForCausalLM, blocks: list[dict[str, torch.Tensor]], settings: PretrainSettings
) -> tuple[list[dict[str, float]], int]:
    """Train in place; return the logged rows that hold a loss, and the steps taken."""
    total = len(blocks) // settings.batch_size if settings.max_steps < 0 else settings.max_steps
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=1,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.batch_size,
            dataloader_drop_last=True,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(0.03 * total),
            weight_decay=0.1,
            adam_beta2=0.98,
            logging_steps=max(1, total // 100),
            save_strategy="no",
            report_to="none",
            seed=settings.seed,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=blocks,
            data_collator=default_data_collator,
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Bar())
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return rows, trainer.state.global_step


class _Bar(ProgressCallback):  # type: ignore[misc]  # transformers is untyped
    """The bar of transformers with the loss on it; the rows of the log go to the log only.

    Where bars are off, as in a file, a line tells of each tenth of the steps.
    """

    tenths = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is None or "loss" not in (logs or {}):
            return
        loss, tenths = (logs or {})["loss"], 10 * state.global_step // state.max_steps
        self.training_bar.set_postfix(loss=f"{loss:.3f}")
        if self.training_bar.disable and tenths > self.tenths:
            self.tenths = tenths
            logger.info(
                "pre-training the lab's model: step %d of %d, loss %.3f",
                state.global_step,
                state.max_steps,
                loss,
            )


def _write(
    output: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    held_out: str,
    log: dict[str, Any],
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    model.to("cpu").save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "held_out.txt").write_text(held_out, encoding="utf-8")
    (output / "pretrain_log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and pre-train."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    defaults = PretrainSettings()
    parser.add_argument("--output", type=Path, required=True, help="a new or empty folder")
    for name in ("seed", "num_passes", "max_steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = PretrainSettings(
        seed=options.seed,
        num_passes=options.num_passes,
        max_steps=options.max_steps,
        corpus=CorpusSettings(seed=options.seed),
    )
    command = f"python -m balora.lab.pretrain --output DIR --seed {options.seed}"
    log = pretrain(settings, options.output, command=command)
    logger.info(
        "held-out loss %.3f nats/token (untrained %.3f), %d steps in %.0f s",
        log["held_out_loss"],
        log["held_out_loss_untrained"],
        log["num_steps"],
        log["seconds"],
    )


if __name__ == "__main__":
    main()
