"""The replay of one run: its texts, their reference, and what belongs to a micro-step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from balora.anchored import reference_mode
from balora.config.replay import ReplayConfig
from balora.distributed import add_up
from balora.environment import is_silent
from balora.models.head import LMHead, head_of
from balora.objective import Normalizer, next_token_targets
from balora.replay.reference import HiddenStates, Place, place_for
from balora.replay.schedule import ReplaySchedule, share
from balora.replay.texts import ReplayTexts
from balora.trainers.step import ReplayPart, hidden_states, reference_states

logger = logging.getLogger(__name__)


class ProcessShare(NamedTuple):
    """Which of several processes this is."""

    rank: int = 0
    number: int = 1


class Replay:
    """Texts and reference of a run, and the part of them that belongs to a micro-step.

    Args:
        config: With `replay` set.
        texts: Of the run, the same in all processes.
        pad_token_id: Fills rows; it is masked.
        swap: Of balanced replay: the partner of every token that is swapped.
        process: Which texts of a step are this process's.
    """

    def __init__(
        self,
        config: ReplayConfig,
        texts: ReplayTexts,
        *,
        pad_token_id: int,
        swap: Mapping[int, int] | None = None,
        process: ProcessShare | None = None,
    ) -> None:
        self.config = config
        self.texts = texts
        self.process = process or ProcessShare()
        self.place = Place("live", 0)
        self._pad_token_id = pad_token_id
        self._schedule = ReplaySchedule(
            len(texts), config.replay_batch_size, config.replay_every, config.replay_seed
        )
        self._swap = dict(swap or {})
        self._hidden: HiddenStates | None = None
        self._counterfactual: HiddenStates | None = None
        self._first_steps: dict[int, int] = {}
        self._head: LMHead | None = None

    def coefficient(self, step: int) -> float:
        """Return what multiplies the term in optimizer step ``step``, counted from 0.

        The coefficient times `replay_every`, so that its mean over the steps is `replay_coef`.
        """
        if not self._schedule.is_on(step):
            return 0.0
        return self.config.replay_coef * self.config.replay_every

    def part(
        self, step: int, micro_step: int, num_micro_steps: int, device: torch.device
    ) -> ReplayPart | None:
        """Return the texts of one micro-step, ``None`` where it has none.

        Args:
            step: The optimizer step, counted from 0.
            micro_step: Counted from 0 within it.
            num_micro_steps: Of this optimizer step.
            device: Where the model is.
        """
        if not self._schedule.is_on(step):
            return None
        number = self._schedule.group_at(step)
        group = self._schedule.groups[number]
        own = share(self._own(group), micro_step, num_micro_steps)
        if not own and not share(share(group, 0, self.process.number), micro_step, num_micro_steps):
            return None  # nor has any other process: the first has the most
        inputs, labels = self._batch(own or group[:1], group, device)
        if not own:  # all processes make a pass or none: together they gather split weights
            labels = torch.full_like(labels, -100)
        hidden = counterfactual = None
        if self._first_steps.setdefault(number, step) < step:  # in all processes alike
            hidden, counterfactual = self._rows(own, device)
        return ReplayPart(
            inputs,
            labels,
            Normalizer(self.texts.num_scored(group), self.process.number),
            needs_reference=self.config.needs_reference,
            reference_hidden=hidden,
            reference_head=self._head,
            swap=self._pairs(device),
            counterfactual_hidden=counterfactual,
            keep=None if self._hidden is None else partial(self._keep, own),
        )

    def _keep(
        self, texts: Sequence[int], hidden: Tensor, counterfactual: Tensor | None = None
    ) -> None:
        """Keep the reference of the texts of a micro-step, which is that of every later pass."""
        assert self._hidden is not None
        self._hidden.put(texts, hidden)
        if counterfactual is not None:
            self._put_swapped(texts, counterfactual)

    def _pairs(self, device: torch.device) -> Tensor | None:
        """Return the two tokens of each pair, shape ``(2, P)``."""
        pairs = [(one, other) for one, other in self._swap.items() if one < other]
        return torch.tensor(pairs, device=device).T.contiguous() if pairs else None

    def _rows(
        self, texts: Sequence[int], device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the hidden states of texts and of their swap, ``None`` where they are not kept.

        A text without a word of a pair is its own swap.
        """
        if self._hidden is None:
            return None, None
        hidden = self._hidden.rows(texts).to(device)
        if self._counterfactual is None:
            return hidden, None
        parts = [
            (self._counterfactual if self._is_swapped(text) else self._hidden).rows([text])
            for text in texts
        ]
        return hidden, torch.cat([hidden.cpu()[:0], *parts]).to(device)

    def _is_swapped(self, text: int) -> bool:
        return not self._swap.keys().isdisjoint(self.texts.texts[text].input_ids)

    def prepare_reference(
        self,
        model: Any,
        *,
        folder: Path,
        num_micro_steps: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        is_head_trained: bool,
        device: torch.device | None = None,
        show_progress: bool = False,
    ) -> None:
        """Make room for the hidden states of this process's texts.

        With adapters they are computed with the first step that reads a text, in its very batch,
        and kept; a text that the run never reaches costs nothing. Full fine-tuning moves the
        weights, so it computes all of them here, in the batches of the training.

        Args:
            model: The base model, inside any PEFT wrapper, with the pre-trained weights.
            folder: For hidden states on the disk.
            num_micro_steps: Of an optimizer step.
            autocast: The context that the training's passes run in.
            is_head_trained: Whether the pre-trained head has to be kept as well.
            device: From which processes communicate.
            show_progress: Whether to draw a bar.

        Raises:
            ConfigError: If there is no place for them.
        """
        if not self.config.needs_reference or self._hidden is not None:
            return
        if is_head_trained:
            self._head = _copy(head_of(model))
        own = [text for group in self._schedule.groups for text in self._own(group)]
        swapped = [text for text in own if self._is_swapped(text)]
        rows, swapped_rows = (
            {text: self.texts.texts[text].num_scored for text in texts} for texts in (own, swapped)
        )
        batches = list(self._batches(num_micro_steps))
        width, dtype = self._shape(model, batches, autocast)
        self.place = place_for(
            (sum(rows.values()) + sum(swapped_rows.values())) * width * dtype.itemsize,
            self.config.replay_reference,
            gib=self.config.replay_reference_gib,
            folder=folder,
            can_be_live=not is_head_trained,
        )
        self.place = _agreed(self.place, device)
        if self.place.name == "live":
            return
        on_disk = folder if self.place.name == "disk" else None
        hidden, counterfactual = (
            HiddenStates(number, width, dtype, on_disk) for number in (rows, swapped_rows)
        )
        self._hidden = hidden
        self._counterfactual = counterfactual if self._swap else None
        if not is_head_trained:
            return
        pairs = self._pairs(model.device)
        disable = is_silent(not show_progress)
        progress = tqdm(batches, desc="Replay reference", unit="batch", disable=disable)
        with reference_mode(model), autocast():
            for group, texts in progress:
                inputs, labels = self._batch(texts, group, model.device)
                self._keep(texts, *reference_states(model, inputs, labels, pairs))
        self._first_steps = dict.fromkeys(range(len(self._schedule.groups)), -1)

    def _put_swapped(self, texts: Sequence[int], hidden: Tensor) -> None:
        """Keep the rows of those texts of a batch that hold a word of a pair."""
        assert self._counterfactual is not None
        numbers = [self.texts.texts[text].num_scored for text in texts]
        for text, rows in zip(texts, torch.split(hidden, numbers), strict=True):
            if self._is_swapped(text):
                self._counterfactual.put([text], rows)

    def _shape(
        self,
        model: Any,
        batches: Sequence[tuple[Sequence[int], Sequence[int]]],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[int, torch.dtype]:
        """Return width and dtype of the hidden states, as one batch has them."""
        if not batches:
            return 1, torch.float32
        group, texts = batches[0]
        with reference_mode(model), autocast():
            inputs, labels = self._batch(texts[:1], group, model.device)
            rows = hidden_states(model, inputs, next_token_targets(labels)[0])
        return rows.shape[1], rows.dtype

    def _own(self, group: Sequence[int]) -> tuple[int, ...]:
        return share(group, self.process.rank, self.process.number)

    def _batches(self, num_micro_steps: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """Yield the group and this process's texts of every micro-step of a pass."""
        for group in self._schedule.groups:
            for micro_step in range(num_micro_steps):
                if texts := share(self._own(group), micro_step, num_micro_steps):
                    yield group, texts

    def _batch(
        self, texts: Sequence[int], group: Sequence[int], device: torch.device
    ) -> tuple[dict[str, Tensor], Tensor]:
        # as wide as the longest of the group, however the group is cut into micro-steps
        batch = self.texts.batch(texts, self.texts.width(group), self._pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        return batch, labels


def _agreed(place: Place, device: torch.device | None) -> Place:
    """Return a place, live where that of any process is: they make the same passes."""
    num_live = torch.tensor(int(place.name == "live"), device=device)
    add_up(num_live)
    return Place("live", 0) if int(num_live) else place


def _copy(head: LMHead) -> LMHead:
    """Return a head of its own, which training does not move."""
    bias = None if head.bias is None else head.bias.detach().clone()
    return LMHead(head.weight.detach().clone(), bias, head.scale, head.softcap)
