"""What a model answers before and after fine-tuning, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.evaluation.batches import evaluating
from balora.evaluation.exact_match import generate
from balora.evaluation.instrument import MeasureOptions
from balora.regularizers.spectral import evenly_spaced_rows


def sample_pairs(
    tuned: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    num: int = 5,
    max_new_tokens: int = 256,
) -> list[dict[str, str]]:
    """Return what both models answer to a few prompts, greedily, beside the gold answer.

    Args:
        tuned: The fine-tuned model.
        base: The pre-trained model.
        tokenizer: Of both.
        pairs: Prompts and completions.
        num: How many, evenly spaced from the first on; 1 or greater.
        max_new_tokens: Longest answer.

    Returns:
        Mappings with ``prompt``, ``gold``, ``before`` (the pre-trained model) and ``after``; the
        answers without the space around them. Empty for no pairs.

    Raises:
        ValueError: If ``num`` is below 1.
    """
    if num < 1:
        raise ValueError(f"`num` must be 1 or greater, got {num}.")
    chosen = [pairs[i] for i in evenly_spaced_rows(len(pairs), num).tolist()]
    if not chosen:
        return []
    options = MeasureOptions(max_new_tokens=max_new_tokens)
    prompts = [prompt for prompt, _ in chosen]
    with evaluating(tuned), evaluating(base):
        before, after = (
            generate(model, tokenizer, prompts, options=options) for model in (base, tuned)
        )
    return [
        {"prompt": prompt, "gold": gold.strip(), "before": one.strip(), "after": other.strip()}
        for (prompt, gold), one, other in zip(chosen, before, after, strict=True)
    ]
