"""How well a model still models text that it should keep."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import ConfigError
from balora.evaluation.batches import check_known_tokens, evaluating
from balora.evaluation.instrument import MeasureOptions, Metrics, Models

_BLOCK = 512
"""Tokens of a window at most."""


def measure_retention(models: Models, options: MeasureOptions) -> Metrics:
    """Return ``retention_loss``, the mean cross-entropy per token of the retention text, in nats.

    None without a text.

    Raises:
        ConfigError: If the text has fewer than two tokens.
        DataError: If it holds a token that the model does not know.
    """
    text = options.retention_text
    if text is None:
        return {"retention_loss": None}
    block = min(options.limit(models.tuned), _BLOCK)
    with evaluating(models.tuned):
        return {"retention_loss": text_loss(models.tuned, models.tokenizer, text, block=block)}


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
