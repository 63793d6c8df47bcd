"""How diverse the texts are that a model writes when nothing is asked: samples and their metrics.

Words are runs of letters and digits, and single other signs; n-grams do not go across texts.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from balora.evaluation.batches import evaluating, in_batches
from balora.models.generation import padding_id
from balora.models.limits import max_positions

_WORD = re.compile(r"\w+|[^\w\s]")


def distinct(texts: Sequence[str], n: int) -> float:
    """Return distinct-n: the different n-grams of all texts over all n-grams of all texts.

    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL
    2016, section 5. It falls as there is more text, so compare samples of one size.

    Args:
        texts: Any number.
        n: Words of an n-gram, 1 or greater.

    Returns:
        From 0 to 1; 0 when no text has n words.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def word_entropy(texts: Sequence[str]) -> float:
    r"""Return the entropy of the words of all texts, :math:`-\sum_w p_w \log p_w`, in nats.

    :math:`p_w` is the share of the word; the estimate is not corrected for the sample's size.

    Returns:
        From 0, for one word alone or none, to the logarithm of the number of words.
    """
    counts = Counter(gram for text in texts for gram in _ngrams(text, 1))
    total = counts.total()
    return math.fsum(-n / total * math.log(n / total) for n in counts.values())


def self_similarity(texts: Sequence[str]) -> float:
    r"""Return how alike the texts are: the mean Jaccard similarity of their bigrams over all pairs.

    .. math:: J(a, b) = |B_a \cap B_b| \, / \, |B_a \cup B_b|

    with the set :math:`B` of a text's bigrams. It is for sets what Self-BLEU (Zhu et al.,
    "Texygen", SIGIR 2018) is for n-gram counts: symmetric, and without a brevity penalty.

    Args:
        texts: At least two.

    Returns:
        From 0, no two share a bigram, to 1, all are the same; two texts without a bigram count
        as the same.

    Raises:
        ValueError: If there are fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"`texts` has {len(texts)} text, but a pair needs two.")
    pairs = list(itertools.combinations([set(_ngrams(text, 2)) for text in texts], 2))
    return math.fsum(len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs) / len(pairs)


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text)
    return zip(*(words[start:] for start in range(n)), strict=False)


@torch.no_grad()
def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num: int,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
) -> list[str]:
    """Return texts that a model writes from the start of a text on, at temperature 1.

    Each text has random numbers of its own, drawn ahead, so that it does not depend on the batch
    it is in; the generators of torch are left as they are.

    Args:
        model: A causal language model; it is read in eval mode.
        tokenizer: Its tokenizer; a text starts from its first special token.
        num: How many texts.
        max_new_tokens: Longest text; one that ends by itself is shorter.
        seed: Draws the texts.
        batch_size: Texts at once.

    Raises:
        ValueError: If the tokenizer has neither a first nor a last token of a text.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError(
            "the tokenizer has no `bos_token` and no `eos_token` to start a text from."
        )
    length = min(max_new_tokens, max_positions(model) - 1)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(num, length, generator=generator, dtype=torch.float64)
    texts: list[str] = []
    with evaluating(model):
        for batch in in_batches(list(numbers), batch_size, "Sampling texts"):
            input_ids = torch.full((len(batch), 1), int(start), device=model.device)
            output = model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=length,
                do_sample=False,
                logits_processor=LogitsProcessorList([_Inversion(torch.stack(list(batch)))]),
                pad_token_id=padding_id(tokenizer),
                eos_token_id=tokenizer.eos_token_id,
            )
            texts += tokenizer.batch_decode(output[:, 1:], skip_special_tokens=True)
    return texts


class _Inversion(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token of each row: the inverse of the distribution function at a given number.

    The number is uniform on [0, 1), so the token is a sample of the distribution.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores of shape ``(B, V)`` that are 0 at the token and minus infinity elsewhere.

        Args:
            input_ids: The first token and what was chosen so far, shape ``(B, 1 + step)``.
            scores: Logits, shape ``(B, V)``.
        """
        step = input_ids.shape[1] - 1
        cumulative = scores.cpu().double().softmax(dim=-1).cumsum(dim=-1)
        reached = cumulative <= self.numbers[:, step, None] * cumulative[:, -1:]
        token = reached.sum(dim=-1, keepdim=True).clamp(max=scores.shape[1] - 1)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, token.to(scores.device), 0.0)
