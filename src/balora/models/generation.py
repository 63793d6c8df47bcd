"""What a model needs to write: where a text ends, what fills rows, and no settings of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from balora.models.adapter import inner_model


@contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Set aside the checkpoint's own generation settings: penalties, truncations, forced tokens."""
    # a model with an adapter hands its own to the model inside, and leaves it there
    own = [(one, one.generation_config) for one in (model, inner_model(model))]
    for one, _ in own:
        one.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for one, config in own:
            one.generation_config = config


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return what ends a text: the tokenizer's end-of-text token and those of the checkpoint."""
    own = getattr(model.generation_config, "eos_token_id", None)
    several = own if isinstance(own, list) else [own]
    found = [token for token in (tokenizer.eos_token_id, *several) if token is not None]
    return tuple(dict.fromkeys(found))


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return what fills rows; it is masked, so that any token will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
