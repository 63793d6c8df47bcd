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
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from balora.evaluation import text_loss
from balora.lab.corpus import CorpusSettings, build_corpus
from balora.lab.tokenizer import INSTRUCTION_WORDING, build_tokenizer

LINES_PER_DOCUMENT = 10
WORDING_REPEATS = 300
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainSettings:
    """Everything that decides what the model becomes."""

    seed: int = 0
    """Draws the world, its texts, the first weights and the order of training."""
    num_passes: int = 27
    """Passes through the training sentences, composed anew each time."""
    max_steps: int = -1
    """Optimizer steps; -1 trains on all passes."""
    vocab_size: int = 1024
    """Pieces of the tokenizer at most."""
    hidden_size: int = 128
    """Width of the model."""
    intermediate_size: int = 384
    """Width inside the MLP."""
    num_layers: int = 4
    """Decoder layers."""
    num_heads: int = 4
    """Attention heads."""
    block_size: int = 256
    """Tokens of one packed training block, and the longest sequence that the model accepts."""
    batch_size: int = 8
    """Blocks per step."""
    learning_rate: float = 4e-3
    """Peak of the cosine schedule."""
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    """The world and its text; its seed is `seed`."""


def pretrain(settings: PretrainSettings, output: Path) -> dict[str, Any]:
    """Train, evaluate on held-out text, and write everything to ``output``.

    Returns:
        What ``pretrain_log.json`` holds, losses in nats per token.

    Raises:
        FileExistsError: If ``output`` already holds files.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"`{output}` is not empty: choose a new folder or empty this one.")
    corpus = build_corpus(settings.corpus)
    lines = corpus.train_lines(settings.num_passes)
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
        "command": f"python -m balora.lab.pretrain --output DIR --seed {settings.seed}",
        "settings": asdict(settings),
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


def _packed_blocks(
    tokenizer: PreTrainedTokenizerFast, lines: list[str], block_size: int
) -> list[dict[str, torch.Tensor]]:
    """Return blocks of one stream of documents, each between its two special tokens."""
    documents = [
        "\n".join(lines[start : start + LINES_PER_DOCUMENT])
        for start in range(0, len(lines), LINES_PER_DOCUMENT)
    ]
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
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return rows, trainer.state.global_step


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
    log = pretrain(settings, options.output)
    logger.info(
        "held-out loss %.3f nats/token (untrained %.3f), %d steps in %.0f s",
        log["held_out_loss"],
        log["held_out_loss_untrained"],
        log["num_steps"],
        log["seconds"],
    )


if __name__ == "__main__":
    main()
