"""Whether the answers that a model generates are the gold ones."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.evaluation.answers import extract_answer
from balora.evaluation.batches import check_known_tokens, evaluating, token_ids
from balora.evaluation.generation import Sampling, TransformersGenerator, in_order
from balora.evaluation.instrument import MeasureOptions, Metrics, Models


def measure_answers(models: Models, options: MeasureOptions) -> Metrics:
    """Return ``exact_match``, the share of greedy answers that equal the gold one, from 0 to 1.

    Examples whose completion has no answer are left out; None if that leaves none.

    Raises:
        DataError: If a prompt holds a token that the model does not know.
    """
    model, tokenizer = models.tuned, models.tokenizer
    prompts = [token_ids(tokenizer, prompt) for prompt, _ in options.examples]
    check_known_tokens(model, tokenizer, prompts, "evaluation")
    gold = [(prompt, extract_answer(completion)) for prompt, completion in options.examples]
    asked = [(prompt, answer) for prompt, answer in gold if answer is not None]
    if not asked:
        return {"exact_match": None}
    with evaluating(model):
        texts = generate(model, tokenizer, [prompt for prompt, _ in asked], options=options)
    answers = [extract_answer(text) for text in texts]
    return {
        "exact_match": sum(a == b for a, (_, b) in zip(answers, asked, strict=True)) / len(asked)
    }


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
