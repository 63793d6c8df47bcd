r"""What fine-tuning did to a model: what it learned, how far it drifted, what it forgot.

All losses are in nats per token, from float32 logits. Logits at position t are scored against the
token at t + 1, as in training.

Shapes: ``B`` rows of a batch, ``S`` positions, ``M`` response tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import ConfigError
from balora.evaluation.answers import extract_answer
from balora.evaluation.batches import (
    Row,
    check_known_tokens,
    encode,
    evaluating,
    in_batches,
    right_padded,
)
from balora.evaluation.generation import Sampling, TransformersGenerator, in_order
from balora.models.generation import padding_id
from balora.models.limits import max_positions
from balora.objective import next_token_targets


@dataclass(frozen=True)
class Inheritance:
    """One model against the pre-trained one, on held-out examples and on text it should keep."""

    figures: dict[str, float | None]
    """By the name of the metric: ``exact_match``, the share of generated answers equal to the gold
    one, None where no example has an answer; of the response tokens ``kl``, the mean forward KL
    from the pre-trained model, 0 or more, ``entropy`` and ``response_loss``, the mean
    cross-entropy; ``retention_loss``, that of the retention text, None without one. In nats per
    token."""
    num_examples: int
    """Examples measured."""
    num_tokens: int
    """Response tokens measured."""
    num_truncated: int
    """Examples of which the start was cut off to fit the model."""
    dtype: str
    """Of the weights of both models, such as float32; the KL of two half-precision models is
    rounding where they are near each other."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures and the counts in one mapping."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return {**self.figures, **counts}


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure; the defaults suit small models."""

    batch_size: int = 16
    """Examples at once."""
    max_new_tokens: int = 256
    """Longest answer to generate."""
    max_length: int | None = None
    """Longest sequence; None takes the model's own limit."""
    generate: bool = True
    """Whether to generate answers; without it `exact_match` is None."""


def measure(
    model: PreTrainedModel,
    reference_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str]],
    retention_text: str | None,
    *,
    options: MeasureOptions | None = None,
) -> Inheritance:
    """Measure ``model`` against the pre-trained ``reference_model``.

    Args:
        model: The fine-tuned causal language model (or the pre-trained one itself).
        reference_model: The pre-trained model, on the same device.
        tokenizer: Of both.
        examples: Held-out prompts and completions; at least one.
        retention_text: Plain text the model should still model well; None leaves it out.
        options: Batch size and lengths.

    Returns:
        The figures; a model against itself has a KL of exactly 0.

    Raises:
        ValueError: If ``examples`` is empty.
        DataError: If a row holds a token that a model does not know.
    """
    if not examples:
        raise ValueError("`examples` is empty: there is nothing to measure on.")
    options = options or MeasureOptions()
    limit = options.max_length or max_positions(model)
    rows = [encode(tokenizer, *example, limit) for example in examples]
    for one in (reference_model, model):
        check_known_tokens(one, tokenizer, [row.input_ids for row in rows], "evaluation")
    sums = torch.zeros(4, dtype=torch.float64)
    with evaluating(model), evaluating(reference_model):
        for batch in in_batches(rows, options.batch_size, "Scoring responses"):
            sums += _score(model, reference_model, tokenizer, batch)
        exact_match = None
        if options.generate:
            exact_match = measure_exact_match(model, tokenizer, examples, options=options)
        retention = None
        if retention_text is not None:
            retention = text_loss(model, tokenizer, retention_text, block=min(limit, 512))
    num_tokens, kl, entropy, loss = sums.tolist()
    return Inheritance(
        {
            "exact_match": exact_match,
            "kl": kl / num_tokens,
            "entropy": entropy / num_tokens,
            "response_loss": loss / num_tokens,
            "retention_loss": retention,
        },
        num_examples=len(examples),
        num_tokens=int(num_tokens),
        num_truncated=sum(row.truncated for row in rows),
        dtype=name_of_dtype(model.dtype),
    )


def name_of_dtype(dtype: torch.dtype) -> str:
    """Return the name as recipes write it: ``float32``."""
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def measure_exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str]],
    *,
    options: MeasureOptions,
) -> float | None:
    """Return the share of greedily generated answers that equal the gold one, from 0 to 1.

    Examples whose completion has no answer are left out; None if that leaves none.
    """
    gold = [(prompt, extract_answer(completion)) for prompt, completion in examples]
    asked = [(prompt, answer) for prompt, answer in gold if answer is not None]
    if not asked:
        return None
    texts = generate(model, tokenizer, [prompt for prompt, _ in asked], options=options)
    answers = [extract_answer(text) for text in texts]
    return sum(a == b for a, (_, b) in zip(answers, asked, strict=True)) / len(asked)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    options: MeasureOptions,
) -> list[str]:
    """Return the greedy continuation of each prompt, as `TransformersGenerator` writes it."""
    generator = TransformersGenerator(
        model, tokenizer, batch_size=options.batch_size, max_length=options.max_length
    )
    answers = generator.generate(prompts, Sampling(max_new_tokens=options.max_new_tokens))
    return [texts[0] for texts in in_order(answers)]


@torch.no_grad()
def text_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, block: int
) -> float:
    """Return the mean cross-entropy per token of ``text``, in nats.

    The text is cut into windows of ``block`` tokens that do not overlap; the first token of each
    is not scored.

    Raises:
        ConfigError: If the text has fewer than two tokens.
    """
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    check_known_tokens(model, tokenizer, [ids.tolist()], "retention")
    windows = [window for window in ids.split(block) if len(window) > 1]
    if not windows:
        raise ConfigError(
            "the text of `retention_file` has fewer than two tokens, which leaves none to predict; "
            "name a longer one."
        )
    total, count = 0.0, 0
    for window in tqdm(windows, desc="Reading text", leave=False):
        window = window.to(model.device)[None]
        logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, window[0, 1:], reduction="sum"))
        count += window.shape[1] - 1
    return total / count


@torch.no_grad()
def _score(
    model: PreTrainedModel,
    reference_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[Row],
) -> Tensor:
    """Return the sums over response tokens: their number, KL, entropy, cross-entropy."""
    input_ids, labels, attention_mask = right_padded(batch, padding_id(tokenizer))
    inputs = {
        "input_ids": input_ids.to(model.device),
        "attention_mask": attention_mask.to(model.device),
        "use_cache": False,
    }
    mask, targets = next_token_targets(labels.to(model.device))
    log_q = F.log_softmax(model(**inputs).logits[mask].float(), dim=-1)
    log_p = F.log_softmax(reference_model(**inputs).logits[mask].float(), dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    entropy = -(log_q.exp() * log_q).sum()
    loss = F.nll_loss(log_q, targets, reduction="sum")
    count = torch.tensor(float(len(targets)), device=kl.device)
    return torch.stack([count, kl, entropy, loss]).double().cpu()
