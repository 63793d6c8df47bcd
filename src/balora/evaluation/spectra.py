r"""The singular values of a model's logits: how many directions its answers use.

Shapes: ``M`` response tokens, ``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import ConfigError
from balora.evaluation.batches import Row, encode, evaluating, in_batches, right_padded
from balora.fused.spectral import HeadFactor
from balora.models.adapter import inner_model
from balora.models.generation import padding_id
from balora.models.head import LMHead, check_head, head_of
from balora.models.limits import max_positions
from balora.objective import next_token_targets
from balora.regularizers.spectral import evenly_spaced_rows, singular_values

_BATCH_SIZE = 8


class _Chosen(NamedTuple):
    """A row and which of its response tokens count."""

    row: Row
    kept: Tensor


@torch.no_grad()
def logit_spectrum(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    max_tokens: int = 512,
    top: int = 64,
) -> list[float]:
    r"""Return the leading singular values of the logits of the response tokens.

    Of the matrix :math:`Z`, ``(M, V)``, that the SVD term of the objective rewards the structure
    of: one row for each response token, the logits that predict it, before a soft cap. Where there
    are more than ``max_tokens``, evenly spaced ones count, so that two models are compared on the
    same tokens. The values are found from the hidden states (:class:`balora.fused.HeadFactor`);
    where a head is adapted itself, or makes its logits in another way, from the logits as the model
    gives them, after a soft cap.

    Args:
        model: A causal language model, with adapters or without.
        tokenizer: Its tokenizer.
        pairs: Prompts and completions; at least one.
        max_tokens: Largest M, 1 or greater.
        top: How many values to return at most, 1 or greater.

    Returns:
        Descending, 0 or greater, in units of the logits; at most ``top``, and no more than there
        are tokens or than the logits can have a rank.

    Raises:
        ValueError: If ``pairs`` is empty, or ``max_tokens`` or ``top`` is below 1.
    """
    if not pairs:
        raise ValueError("`pairs` is empty: there are no response tokens to take a spectrum of.")
    for name, count in (("max_tokens", max_tokens), ("top", top)):
        if count < 1:
            raise ValueError(f"`{name}` must be 1 or greater, got {count}.")
    limit = max_positions(model)
    chosen = _chosen_tokens([encode(tokenizer, *pair, limit) for pair in pairs], max_tokens)
    with evaluating(model):
        first = torch.tensor(chosen[0].row.input_ids, device=model.device)[None]
        head = _frozen_head(model, first)
        batches = in_batches(chosen, _BATCH_SIZE, "Reading logits")
        states = torch.cat(
            [_states(model, head, batch, padding_id(tokenizer)) for batch in batches]
        )
    values = singular_values(states) if head is None else HeadFactor(head).singular_values(states)
    return [float(value) for value in values[:top].tolist()]


def _chosen_tokens(rows: Sequence[Row], max_tokens: int) -> list[_Chosen]:
    """Return evenly spaced response tokens of all rows together, with the rows that hold any."""
    counts = [len(row.input_ids) - row.num_prompt for row in rows]
    kept = torch.zeros(sum(counts), dtype=torch.bool)
    kept[evenly_spaced_rows(len(kept), max_tokens)] = True
    parts = zip(rows, torch.split(kept, counts), strict=True)
    return [_Chosen(row, part) for row, part in parts if part.any()]


def _states(
    model: PreTrainedModel, head: LMHead | None, batch: Sequence[_Chosen], pad_id: int
) -> Tensor:
    """Return the hidden states that predict the chosen tokens, the logits without a head."""
    input_ids, labels, attention_mask = right_padded([chosen.row for chosen in batch], pad_id)
    for line, (row, kept) in zip(labels, batch, strict=True):
        line[row.num_prompt : len(row.input_ids)][~kept] = -100
    mask, _ = next_token_targets(labels)
    inputs = {
        "input_ids": input_ids.to(model.device),
        "attention_mask": attention_mask.to(model.device),
        "use_cache": False,
    }
    if head is None:
        states: Tensor = model(**inputs).logits
    else:
        states = inner_model(model).base_model(**inputs).last_hidden_state
    return states[mask.to(states.device)]


def _frozen_head(model: PreTrainedModel, input_ids: Tensor) -> LMHead | None:
    """Return the head, without a gradient, where the logits are its own of the hidden states."""
    plain = inner_model(model)
    if isinstance(plain.get_output_embeddings(), BaseTunerLayer | AuxiliaryTrainingWrapper):
        return None
    try:
        check_head(plain, input_ids)
    except ConfigError:  # a model that is trained is refused; here its logits do as well
        return None
    head = head_of(plain)
    bias = None if head.bias is None else head.bias.detach()
    return replace(head, weight=head.weight.detach(), bias=bias)
