"""What writes answers: text in, text out. Here by transformers, on the model that is loaded.

Shapes: ``B`` rows of a batch, ``S`` positions of the longest prompt in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BaloraError
from balora.evaluation.batches import evaluating, left_padded, token_ids
from balora.models.generation import padding_id, plain_generation, stop_tokens
from balora.models.limits import max_positions

_MOST_OF_PROMPT = 0.75
"""Part of what a model takes that a prompt may fill, where prompt and answer do not both fit."""
_STEPS = 16
"""Answers that must be shorter differ in length by this part of what a model takes, so that rows
of one batch have the same."""


@dataclass(frozen=True)
class Sampling:
    """How answers are written."""

    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends; they are cut off."""
    temperature: float = 0.0
    """0 takes the likeliest token every time."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest that have this much probability together."""
    num_samples: int = 1
    """Answers to each prompt."""
    seed: int = 0
    """Of what is drawn."""


class Generator(Protocol):
    """What writes answers."""

    def generate(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of a prompt and its answers, as they are finished, in any order."""


def in_order(answers: Iterable[tuple[int, list[str]]]) -> list[list[str]]:
    """Return the answers to each prompt, in the order of the prompts."""
    return [texts for _, texts in sorted(answers, key=lambda pair: pair[0])]


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of some stop strings."""
    ends = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(ends)] if ends else text


class _Prompt(NamedTuple):
    number: int
    """Where it stands among the prompts."""
    ids: list[int]
    """Its tokens; the start is cut off where no answer would fit."""
    room: int
    """Tokens that its answer may have."""


class TransformersGenerator:
    """Answers of a model that is loaded, in left-padded batches of prompts of about one length.

    Prompts are sorted, the longest first, so that a batch that does not fit in memory shows at
    once; it is halved then, as are those after it. In float32 the batch size makes no difference
    to a text that is not drawn; in half precision it may. Where a model does not take prompt and
    answer together, the answer is shorter: at least a quarter of what it takes is the answer's, and
    a prompt that is longer than the rest keeps its end.

    Args:
        model: A causal language model.
        tokenizer: Its own.
        batch_size: Answers at once.
        max_length: What the model takes, prompt and answer; None asks the model.
        title: Of the progress bar.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        title: str = "Generating answers",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.title = batch_size, title
        self.max_length = max_length or max_positions(model)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of a prompt and its answers, the longest prompts first.

        Raises:
            BaloraError: If one answer alone does not fit in memory.
        """
        planned = sorted(self._planned(prompts, sampling), key=lambda one: -len(one.ids))
        bar = tqdm(total=len(prompts), desc=self.title, leave=False)
        with bar, evaluating(self.model):
            # rows of a batch have answers of one length: of the prompts that fit, all have
            for _, of_one_room in groupby(planned, key=lambda one: one.room):
                waiting = list(of_one_room)
                while waiting:
                    batch = waiting[: self._num_prompts(sampling)]
                    texts = self._try(batch, sampling)
                    if texts is None:
                        continue
                    waiting = waiting[len(batch) :]
                    bar.update(len(batch))
                    yield from zip((one.number for one in batch), texts, strict=True)

    def _num_prompts(self, sampling: Sampling) -> int:
        return max(self.batch_size // sampling.num_samples, 1)

    def _planned(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[_Prompt]:
        for number, prompt in enumerate(prompts):
            ids = token_ids(self.tokenizer, prompt) or [padding_id(self.tokenizer)]
            room = self._room(len(ids), sampling.max_new_tokens)
            yield _Prompt(number, ids[-(self.max_length - room) :], room)

    def _room(self, length: int, wanted: int) -> int:
        """Return how many tokens the answer to a prompt of some length may have.

        It depends on that prompt alone, not on those beside it.
        """
        if length + wanted <= self.max_length:
            return wanted
        step = max(self.max_length // _STEPS, 1)
        least = max(self.max_length - int(_MOST_OF_PROMPT * self.max_length), 1)
        room = max((self.max_length - length) // step * step, least)
        return min(wanted, room, max(self.max_length - 1, 1))

    def _try(self, batch: Sequence[_Prompt], sampling: Sampling) -> list[list[str]] | None:
        """Return the texts of a batch; None if it does not fit and was halved for the next try."""
        try:
            return self._write(batch, sampling)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            if len(batch) == 1:
                raise BaloraError(
                    f"an answer of {batch[0].room} tokens to a prompt of {len(batch[0].ids)} does "
                    "not fit in memory. Lower `max_new_tokens`, or load the model in bfloat16."
                ) from error
        self.batch_size = max(len(batch) // 2, 1) * sampling.num_samples
        clear_device_cache(garbage_collection=True)
        return None

    def _write(self, batch: Sequence[_Prompt], sampling: Sampling) -> list[list[str]]:
        input_ids, mask = left_padded([one.ids for one in batch], padding_id(self.tokenizer))
        device = self.model.device
        devices = [device] if device.type == "cuda" else []
        config = self._config(batch[0].room, sampling)
        with torch.random.fork_rng(devices), plain_generation(self.model):
            torch.manual_seed(sampling.seed * 1_000_003 + batch[0].number)
            output: Any = self.model.generate(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                tokenizer=self.tokenizer,  # finds the stop strings among its tokens
            )
        texts = self.tokenizer.batch_decode(
            output[:, input_ids.shape[1] :], skip_special_tokens=True
        )
        cut = [cut_at(str(text), sampling.stop) for text in texts]
        number = sampling.num_samples
        return [cut[start : start + number] for start in range(0, len(cut), number)]

    def _config(self, room: int, sampling: Sampling) -> GenerationConfig:
        # transformers takes no whole number for either
        draws = {"temperature": float(sampling.temperature), "top_p": float(sampling.top_p)}
        draws["top_k"] = 0
        is_drawn = sampling.temperature > 0
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=is_drawn,
            num_return_sequences=sampling.num_samples if is_drawn else 1,
            eos_token_id=list(stop_tokens(self.model, self.tokenizer)) or None,
            pad_token_id=padding_id(self.tokenizer),
            stop_strings=list(sampling.stop) or None,
            use_cache=True,
            **(draws if is_drawn else {}),
        )
