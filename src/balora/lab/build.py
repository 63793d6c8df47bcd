"""The laboratory on disk: the pre-trained model and the task's files, each built once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from balora.cache import cached, default_cache
from balora.lab.config import LabConfig
from balora.lab.corpus import Corpus, build_corpus
from balora.lab.planted import PlantedWorld
from balora.lab.settings import PretrainSettings
from balora.lab.task import Rows, jsonl, task_rows

LAB_FILE, TASK_FILE = "lab.json", "task.json"
_MODEL, _TASKS = "model", "tasks"
_TRAIN, _TEST, _NOISY = "train.jsonl", "test.jsonl", "noisy.jsonl"
logger = logging.getLogger(__name__)


class BuiltLab(NamedTuple):
    """What a comparison takes its cells from."""

    model: Path
    """Folder of the pre-trained model and its tokenizer."""
    world: PlantedWorld
    """What is true, and what the text that the model read made of it."""
    train_file: Path
    """Rows to train on: instruction and output."""
    test_file: Path
    """Held-out rows of the same task; all right."""
    retention_file: Path
    """Clean text of the world that the model was not pre-trained on."""
    noisy_file: Path | None
    """Rows of the training file with a wrong answer, and their ``true_output``; None without."""


def build_lab(config: LabConfig, *, cache: Path | None = None) -> BuiltLab:
    """Return the laboratory of the settings; what is not in the cache is built and kept there.

    The model and the text are in ``<cache>/lab/<key>``, the key a hash of the settings of the world
    and of the pre-training, and of the text they give: a world made otherwise is another entry. The
    task's files are in a folder of that entry, by the settings of the task. ``lab.json`` has the
    whole recipe, versions, seconds, the loss curve and the held-out loss.

    Args:
        config: The world, the pre-training and the task.
        cache: Where it is kept; None takes ``$BALORA_CACHE``, else ``~/.cache/balora``.

    Raises:
        ConfigError: If the entry in the cache was made by another recipe, or is damaged.
        BaloraError: If the cache cannot be written.
    """
    settings, task = config.pretraining(), config.task()
    corpus, rows = build_corpus(settings.corpus), task_rows(task)
    recipe = {**asdict(settings), "text": _digest_of_text(corpus)}
    of_task = {**asdict(task), "rows": _digest(*map(jsonl, rows))}
    root = (default_cache() if cache is None else cache) / "lab"
    entry = cached(root, recipe, record=LAB_FILE, build=lambda folder: _pretrain(settings, folder))
    files = cached(
        entry / _TASKS, of_task, record=TASK_FILE, build=lambda folder: _write(rows, folder)
    )
    return BuiltLab(
        model=entry / _MODEL,
        world=corpus.planted,
        train_file=files / _TRAIN,
        test_file=files / _TEST,
        retention_file=entry / _MODEL / "held_out.txt",
        noisy_file=files / _NOISY if (files / _NOISY).exists() else None,
    )


def _digest_of_text(corpus: Corpus) -> str:
    """Return a hash of the text that the code makes of the settings: changed code is noticed."""
    return _digest(corpus.held_out_text(), *next(corpus.passes(1)).lines)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _pretrain(settings: PretrainSettings, folder: Path) -> Mapping[str, Any]:
    # torch only where there is something to train
    from balora.lab.pretrain import pretrain

    logger.info("Pre-training the lab's model; it is kept for the next time.")
    log = pretrain(settings, folder / _MODEL)
    return {name: value for name, value in log.items() if name not in ("seed", "settings")}


def _write(rows: Rows, folder: Path) -> Mapping[str, Any]:
    files = {_TRAIN: rows.train, _TEST: rows.test, **({_NOISY: rows.noisy} if rows.noisy else {})}
    for name, content in files.items():
        (folder / name).write_text(jsonl(content), encoding="utf-8", newline="\n")
    return {"num_noisy": len(rows.noisy)}
