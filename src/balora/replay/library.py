"""Where the texts of a run come from: generated once per model and settings, or a data source."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.cache import cached, default_cache
from balora.config.replay import ReplayConfig
from balora.data.sources import find_local, load_rows
from balora.errors import DataError
from balora.models.digests import digest_of_tensors
from balora.replay.generate import generate_texts
from balora.replay.start import start_of
from balora.replay.texts import IGNORED, REPLAY_FILE, ReplayText, ReplayTexts, tokenized_text

logger = logging.getLogger(__name__)

_RECORD = "recipe.json"
_VERSION = 1
"""Of the way in which texts are generated."""


def generated_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: ReplayConfig,
    *,
    show_progress: bool = True,
) -> ReplayTexts:
    """Return the texts that a model writes, from the cache where it has written them before.

    The cache is `$BALORA_CACHE`, else ``~/.cache/balora``, under a key of everything that decides
    the texts: weights, config, tokenizer, start, number, length and seed.

    Args:
        model: The pre-trained model, in eval mode, with any adapter switched off.
        tokenizer: Its tokenizer.
        config: With `replay` generated.
        show_progress: Whether to draw a bar.

    Raises:
        ConfigError: If the model has no start, or the entry in the cache is damaged.
    """
    start = start_of(config.replay_prompt, tokenizer, model)
    logger.info("Replay texts begin with %s.", start.description)
    settings = {
        "num_texts": config.replay_num_texts,
        "length": config.replay_length,
        "seed": config.replay_seed,
    }
    recipe = {
        "version": _VERSION,
        "weights": digest_of_tensors(_pretrained(model)),
        "config": _digest(model.config.to_dict()),
        "tokenizer": _digest(_description(tokenizer)),
        "start": list(start.input_ids),
        "between": start.between and list(start.between),
        **settings,
    }

    def build(folder: Path) -> dict[str, Any]:
        texts = generate_texts(model, tokenizer, start, show_progress=show_progress, **settings)
        texts.write(folder / REPLAY_FILE, tokenizer)
        return {"digest": texts.digest()}

    entry = cached(default_cache() / "replay", recipe, record=_RECORD, build=build)
    vocab_size = model.get_input_embeddings().num_embeddings
    texts = texts_of(str(entry / REPLAY_FILE), config, tokenizer, vocab_size)
    found = json.loads((entry / _RECORD).read_text("utf-8"))["digest"]
    if texts.digest() != found:
        raise DataError(f"{entry / REPLAY_FILE} is damaged; remove the folder {entry}.")
    return texts


def texts_of(
    name: str, config: ReplayConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> ReplayTexts:
    """Return the texts of a file, a folder or a data set on the hub.

    Rows with ``input_ids``, as `balora replay` and every run write them, are taken as they are.
    Other rows are text: tokenized as the tokenizer does it, begin included, and cut into pieces of
    `replay_length`; of these every token but the first is scored.

    Raises:
        DataError: If there is no such column, no text of two tokens, or fewer texts than
            `replay_batch_size`.
    """
    files = find_local(name)
    rows, _ = load_rows(name, files, None, "train")
    if "input_ids" in rows.column_names:
        taken = rows.select(range(min(len(rows), config.replay_num_texts)))
        texts = [
            tokenized_text(row, f"{name}, row {number}", tokenizer, vocab_size)
            for number, row in enumerate(taken)
        ]
    else:
        texts = _pieces(rows, name, config, tokenizer)
    if len(texts) < config.replay_batch_size:
        raise DataError(
            f"`replay` {name} has {len(texts)} texts of 2 tokens or more, but a step takes "
            f"{config.replay_batch_size} (`replay_batch_size`). Lower it, or name more text."
        )
    return ReplayTexts(tuple(texts))


def _pieces(
    rows: Any, name: str, config: ReplayConfig, tokenizer: PreTrainedTokenizerBase
) -> list[ReplayText]:
    column = config.replay_column or "text"
    if column not in rows.column_names:
        raise DataError(
            f"`replay` {name} has no column `{column}`, only {', '.join(rows.column_names[:10])}. "
            "Name the column of the texts in `replay_column`."
        )
    texts: list[ReplayText] = []
    for number, row in enumerate(rows):
        if not isinstance(row[column], str):
            raise DataError(f"`replay` {name}, row {number}: `{column}` is no text.")
        ids = tuple(tokenizer(row[column])["input_ids"])
        for first in range(0, len(ids), config.replay_length):
            piece = ids[first : first + config.replay_length]
            if len(piece) > 1:
                texts.append(ReplayText(piece, (IGNORED, *piece[1:])))
            if len(texts) == config.replay_num_texts:
                return texts
    return texts


def _pretrained(model: PreTrainedModel) -> dict[str, Any]:
    """Return the weights of the base model by their own names, an adapter's left out."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }


def _description(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return {"tokenizer": whole, "special": tokenizer.special_tokens_map}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
