r"""How a model takes the gold responses: how far it drifted, how sure it is, how well it fits them.

All are in nats per token, from float32 logits. Logits at position t are scored against the token
at t + 1, as in training.

Shapes: ``B`` rows of a batch, ``S`` positions, ``M`` response tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.evaluation.batches import (
    Row,
    check_known_tokens,
    encode,
    evaluating,
    in_batches,
    right_padded,
)
from balora.evaluation.instrument import MeasureOptions, Metrics, Models
from balora.models.generation import padding_id
from balora.objective import next_token_targets


def measure_responses(models: Models, options: MeasureOptions) -> Metrics:
    """Return means over the response tokens of the examples, in nats.

    Returns:
        ``kl``, the forward KL from the pre-trained to the fine-tuned model, 0 or more and exactly 0
        of a model against itself; ``entropy`` of the next-token distribution; ``response_loss``,
        the cross-entropy.

    Raises:
        ValueError: If there are no examples.
        DataError: If a row holds a token that a model does not know.
    """
    rows = _rows(models, options)
    for model in (models.base, models.tuned):
        check_known_tokens(model, models.tokenizer, [row.input_ids for row in rows], "evaluation")
    sums = torch.zeros(4, dtype=torch.float64)
    with evaluating(models.tuned), evaluating(models.base):
        for batch in in_batches(rows, options.batch_size, "Scoring responses"):
            sums += _score(models, batch)
    num_tokens, kl, entropy, loss = sums.tolist()
    return {
        "kl": kl / num_tokens,
        "entropy": entropy / num_tokens,
        "response_loss": loss / num_tokens,
    }


def count_responses(models: Models, options: MeasureOptions) -> dict[str, int]:
    """Return what :func:`measure_responses` reads.

    Returns:
        ``num_examples``; ``num_tokens``, the response tokens of all of them; ``num_truncated``, the
        examples of which the start was cut off to fit the model.

    Raises:
        ValueError: If there are no examples.
    """
    rows = _rows(models, options)
    return {
        "num_examples": len(rows),
        "num_tokens": sum(len(row.input_ids) - row.num_prompt for row in rows),
        "num_truncated": sum(row.truncated for row in rows),
    }


def _rows(models: Models, options: MeasureOptions) -> list[Row]:
    if not options.examples:
        raise ValueError("`examples` is empty: there is nothing to measure on.")
    limit, tokenizer = options.limit(models.tuned), models.tokenizer
    if (key := (id(tokenizer), limit)) not in options.encoded:
        options.encoded[key] = [encode(tokenizer, *example, limit) for example in options.examples]
    return options.encoded[key]


@torch.no_grad()
def _score(models: Models, batch: Sequence[Row]) -> Tensor:
    """Return the sums over response tokens: their number, KL, entropy, cross-entropy."""
    input_ids, labels, attention_mask = right_padded(batch, padding_id(models.tokenizer))
    inputs = {
        "input_ids": input_ids.to(models.tuned.device),
        "attention_mask": attention_mask.to(models.tuned.device),
        "use_cache": False,
    }
    mask, targets = next_token_targets(labels.to(models.tuned.device))
    log_q = F.log_softmax(models.tuned(**inputs).logits[mask].float(), dim=-1)
    log_p = F.log_softmax(models.base(**inputs).logits[mask].float(), dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    entropy = -(log_q.exp() * log_q).sum()
    loss = F.nll_loss(log_q, targets, reduction="sum")
    count = torch.tensor(float(len(targets)), device=kl.device)
    return torch.stack([count, kl, entropy, loss]).double().cpu()
