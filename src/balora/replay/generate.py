"""Texts that a model writes itself: sampled at temperature 1, nothing truncated, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from balora.environment import is_silent
from balora.errors import ConfigError
from balora.models.generation import padding_id, plain_generation, stop_tokens
from balora.replay.start import Start
from balora.replay.texts import IGNORED, ReplayText, ReplayTexts

_LOGIT_BYTES, _MOST_TEXTS = 2**26, 256
"""Bytes of the logits of one position of a batch, and texts of a batch, at most."""


@dataclass
class _Draft:
    """A text that is being written."""

    input_ids: list[int]
    labels: list[int]

    def add(self, tokens: Sequence[int], *, scored: bool) -> None:
        self.input_ids += tokens
        self.labels += tokens if scored else [IGNORED] * len(tokens)


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    start: Start,
    *,
    num_texts: int,
    length: int,
    seed: int,
    show_progress: bool = True,
) -> ReplayTexts:
    """Sample texts from the distribution of ``model``: temperature 1, all tokens.

    A text ends with an end-of-text token, which is scored too, or at ``length`` tokens. With the
    start of a chat the model writes the user's turn, takes half of the length at most for it, and
    then its own answer; the marks between the two are not scored.

    Args:
        model: The pre-trained model, in eval mode and without adapters.
        tokenizer: Its tokenizer.
        start: What each text begins with.
        num_texts: How many.
        length: Tokens of a text at most, the start included.
        seed: Of the sampling; the state of the generators is left as it was.
        show_progress: Whether to draw a bar.

    Raises:
        ConfigError: If the start alone is as long as ``length``.
    """
    if len(start.input_ids) >= length:
        raise ConfigError(
            f"`replay_length` is {length}, but a text begins with {len(start.input_ids)} tokens "
            f"({start.description}). Raise it."
        )
    size = _batch_size(model)
    sampler = _Sampler(model, stop_tokens(model, tokenizer), padding_id(tokenizer))
    texts: list[ReplayText] = []
    devices = [model.device] if model.device.type == "cuda" else []
    disable = is_silent(not show_progress)
    progress = tqdm(total=num_texts, desc="Replay texts", unit="text", disable=disable)
    with progress, torch.random.fork_rng(devices), plain_generation(model):
        for number, first in enumerate(range(0, num_texts, size)):
            torch.manual_seed(_seed_of_batch(seed, number))
            texts += _write(sampler, start, min(size, num_texts - first), length)
            progress.update(len(texts) - progress.n)
    return ReplayTexts(tuple(texts))


def _write(sampler: _Sampler, start: Start, number: int, length: int) -> list[ReplayText]:
    drafts = [_Draft([], []) for _ in range(number)]
    for draft in drafts:
        draft.add(start.input_ids, scored=False)
    if start.between is None:
        sampler.extend(drafts, length, stop_tokens=sampler.stop_tokens)
    else:
        _write_chats(sampler, start, drafts, length)
    return [ReplayText(tuple(draft.input_ids), tuple(draft.labels)) for draft in drafts]


def _write_chats(sampler: _Sampler, start: Start, drafts: Sequence[_Draft], length: int) -> None:
    """Let the model write the user's turn, close it as the template does, and let it answer."""
    assert start.between is not None
    closing = start.between[0]
    half = len(start.input_ids) + (length - len(start.input_ids)) // 2
    sampler.extend(drafts, half, stop_tokens=(closing, *sampler.stop_tokens))
    closed = []
    for draft in drafts:
        is_closed = draft.input_ids[-1] in (closing, *sampler.stop_tokens)
        if not is_closed:
            continue  # a turn that does not end is a text without an answer
        marks = start.between[1:] if draft.input_ids[-1] == closing else start.between
        if len(draft.input_ids) + len(marks) < length:
            draft.add(marks, scored=False)
            closed.append(draft)
    sampler.extend(closed, length, stop_tokens=sampler.stop_tokens)


@dataclass(frozen=True)
class _Sampler:
    model: PreTrainedModel
    stop_tokens: tuple[int, ...]
    pad_token_id: int

    @torch.no_grad()
    def extend(self, drafts: Sequence[_Draft], length: int, *, stop_tokens: Sequence[int]) -> None:
        """Go on with texts until each has drawn a token that stops it, or has ``length``."""
        if not drafts:
            return
        longest = max(len(draft.input_ids) for draft in drafts)
        missing = [longest - len(draft.input_ids) for draft in drafts]
        ids = [
            [self.pad_token_id] * gap + draft.input_ids
            for gap, draft in zip(missing, drafts, strict=True)
        ]
        mask = [[0] * gap + [1] * (longest - gap) for gap in missing]
        device = self.model.device
        written: Any = self.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            synced_gpus=False,  # whole on each process: one may generate while the others wait
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=length - min(len(draft.input_ids) for draft in drafts),
                eos_token_id=list(stop_tokens) or None,
                pad_token_id=self.pad_token_id,
                use_cache=True,
            ),
        )
        for draft, row in zip(drafts, written[:, longest:].tolist(), strict=True):
            draft.add(_up_to_stop(row[: length - len(draft.input_ids)], stop_tokens), scored=True)


def _up_to_stop(tokens: Sequence[int], stop_tokens: Sequence[int]) -> list[int]:
    """Return the tokens up to the first that stops, that one included."""
    stops = (place for place, token in enumerate(tokens) if token in stop_tokens)
    end = next(stops, len(tokens) - 1)
    return list(tokens[: end + 1])


def _batch_size(model: PreTrainedModel) -> int:
    vocab_size = int(model.config.get_text_config().vocab_size)
    return max(min(_LOGIT_BYTES // (4 * vocab_size), _MOST_TEXTS), 1)


def _seed_of_batch(seed: int, number: int) -> int:
    # splitmix's odd constant keeps the batches of neighbouring seeds apart
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63
