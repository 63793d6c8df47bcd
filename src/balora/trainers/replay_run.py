"""Replay in a run: what is refused, where its texts come from, and which micro-step it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.anchored import reference_mode
from balora.cache import default_cache
from balora.config.parts import refuse
from balora.config.replay import GENERATED, ReplayConfig
from balora.errors import ConfigError
from balora.models.adapter import inner_model
from balora.models.head import head_of
from balora.models.limits import max_positions
from balora.replay.library import generated_texts, texts_of
from balora.replay.start import start_of
from balora.replay.swap import swap_of
from balora.replay.texts import REPLAY_FILE, ReplayTexts
from balora.trainers.memory import readable
from balora.trainers.replay import ProcessShare, Replay

logger = logging.getLogger(__name__)


class MicroSteps(TrainerCallback):  # type: ignore[misc]
    """Counts the micro-steps of an optimizer step."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> int:
        """Return the number of the micro-step that begins, counted from 0."""
        self._count += 1
        return self._count - 1

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer before the first micro-step of an optimizer step."""
        self._count = 0


def check_replay(trainer: Any) -> dict[int, int]:
    """Refuse what cannot work before a text is generated: the start, the length, the pairs.

    Returns:
        The partner of every token that balanced replay swaps; empty without pairs.

    Raises:
        ConfigError: Naming the setting.
        DataError: If the texts of a file cannot be used.
    """
    config: ReplayConfig = trainer.replay_config
    if not config.is_on:
        return {}
    model, tokenizer = inner_model(trainer.model), trainer.processing_class
    positions = max_positions(model)
    if config.replay_length > positions:
        refuse(
            "replay",
            [
                f"`replay_length` is {config.replay_length}, but the model has {positions} "
                "positions; lower it"
            ],
        )
    if config.replay == GENERATED:
        start_of(config.replay_prompt, tokenizer, model)
    return swap_of(config.replay_swap or (), tokenizer)


def prepare_replay(trainer: Any, checkpoint: Path | None, *, swap: Mapping[int, int]) -> Replay:
    """Return the replay of a run, ready to train: the texts, and what they are compared with.

    The first process generates or reads the texts and writes ``replay.jsonl`` into the output
    folder; a resumed run takes those of its checkpoint.

    Args:
        trainer: A trainer of text generation whose `replay_config` is on.
        checkpoint: To go on from; ``None`` for a run that begins.
        swap: From :func:`check_replay`.

    Raises:
        ConfigError: If the hidden states have no place, or the texts cannot be generated.
        DataError: If the texts of a file cannot be used.
    """
    config, args = trainer.replay_config, trainer.args
    with args.main_process_first(desc="replay texts"):
        texts = _texts(trainer, checkpoint)
    replay = Replay(
        config,
        texts,
        pad_token_id=trainer.processing_class.pad_token_id or 0,
        swap=swap,
        process=ProcessShare(args.process_index, args.world_size),
    )
    model = inner_model(trainer.model)
    replay.prepare_reference(
        model,
        folder=default_cache() / "replay",
        num_micro_steps=args.gradient_accumulation_steps,
        autocast=trainer.accelerator.autocast,
        is_head_trained=head_of(model).is_trained,
        device=args.device,
        show_progress=args.process_index == 0 and not args.disable_tqdm,
    )
    if args.process_index == 0:
        logger.info("%s", describe(replay))
    return replay


def describe(replay: Replay) -> str:
    """Return one line for the log: the texts, their tokens, and where their reference lies."""
    num_tokens = replay.texts.num_scored(range(len(replay.texts)))
    text = f"Replay: {len(replay.texts)} texts, {num_tokens} scored tokens"
    if not replay.config.needs_reference:
        return f"{text}, with cross-entropy."
    name, num_bytes = replay.place
    if name == "live":
        return f"{text}; their reference is computed again in every step that replays."
    where = "in memory" if name == "memory" else "in a file mapped into memory"
    return f"{text}; their reference, {readable(num_bytes)} of hidden states, lies {where}."


def keep_texts(trainer: Any, checkpoint: Path) -> None:
    """Put the texts of a run into a checkpoint, as a hard link where that is possible."""
    own, kept = Path(trainer.args.output_dir) / REPLAY_FILE, checkpoint / REPLAY_FILE
    if trainer.replay is None or trainer.args.process_index > 0:
        return
    kept.unlink(missing_ok=True)
    try:
        os.link(own, kept)
    except OSError:  # another device, a file system without links, a file that is gone
        trainer.replay.texts.write(kept, trainer.processing_class)


def _texts(trainer: Any, checkpoint: Path | None) -> ReplayTexts:
    config, model, tokenizer = (
        trainer.replay_config,
        inner_model(trainer.model),
        trainer.processing_class,
    )
    own = Path(trainer.args.output_dir) / REPLAY_FILE
    vocab_size = model.get_input_embeddings().num_embeddings
    show_progress = trainer.args.process_index == 0 and not trainer.args.disable_tqdm
    if checkpoint is not None:  # what the run was trained with, whatever has changed since
        kept = checkpoint / REPLAY_FILE
        if not kept.is_file():
            raise ConfigError(
                f"`{checkpoint}` has no {REPLAY_FILE}, so the texts that the run replays are lost. "
                "Start from the beginning, or leave `replay` out."
            )
        return texts_of(str(kept), config, tokenizer, vocab_size)
    if config.replay == GENERATED:
        with reference_mode(model):
            texts = generated_texts(model, tokenizer, config, show_progress=show_progress)
    else:
        texts = texts_of(config.replay, config, tokenizer, vocab_size)
    if trainer.args.process_index == 0:
        own.parent.mkdir(parents=True, exist_ok=True)
        texts.write(own, tokenizer)
    return texts
