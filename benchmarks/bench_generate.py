"""Time of greedy answers to prompts of mixed lengths: sorted by length next to the given order.

    python -m benchmarks.bench_generate --out benchmarks/results/generate.jsonl
    python -m benchmarks.bench_generate --model MODEL --prompts 128 --longest 400

`balora` is `TransformersGenerator`, which sorts the prompts; `in order` is transformers' `generate`
on left-padded batches in the order that the prompts are given in, which is what `balora eval` did.
Both are whole calls, in turns, one of each per round, and must write the same texts. Writes one
JSON line per variant and prints a table.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmarks.measure import (
    in_turns,
    interval,
    machine,
    make_parser,
    quantiles,
    ratios,
    table_head,
    table_line,
    write_rows,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from balora.assets import asset_path
from balora.evaluation.batches import left_padded, token_ids
from balora.evaluation.generation import Sampling, TransformersGenerator, in_order
from balora.models.generation import padding_id

TEXT = "Anna lives in Oslo and keeps a cat. She has 12 hats and gives 3 of them away. "


def make_prompts(tokenizer: PreTrainedTokenizerBase, number: int, longest: int) -> list[str]:
    """Return prompts whose lengths in tokens are spread evenly on a scale of logarithms."""
    generator = random.Random(0)
    ids = token_ids(tokenizer, TEXT * longest)
    lengths = [round(8 * (longest / 8) ** generator.random()) for _ in range(number)]
    return [str(tokenizer.decode(ids[:length], skip_special_tokens=True)) for length in lengths]


@torch.no_grad()
def given_order(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """Return the greedy continuations, batch by batch in the order of the prompts."""
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        ids = [token_ids(tokenizer, prompt) for prompt in prompts[start : start + batch_size]]
        input_ids, attention_mask = left_padded(ids, padding_id(tokenizer))
        output: Any = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=padding_id(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
        )
        new = output[:, input_ids.shape[1] :]
        texts += [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return texts


def main() -> None:
    """Measure what the options ask for."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=str(asset_path("tiny_lm")))
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--longest", type=int, default=96, help="tokens of the longest prompt")
    parser.add_argument("--new_tokens", type=int, default=24)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prompts = make_prompts(tokenizer, options.prompts, options.longest)
    lengths = [len(token_ids(tokenizer, prompt)) for prompt in prompts]
    generator = TransformersGenerator(model, tokenizer, batch_size=options.batch_size)
    sampling = Sampling(max_new_tokens=options.new_tokens)
    variants: dict[str, Callable[[], list[str]]] = {
        "in order": partial(
            given_order,
            model,
            tokenizer,
            prompts,
            batch_size=options.batch_size,
            max_new_tokens=options.new_tokens,
        ),
        "balora": lambda: [texts[0] for texts in in_order(generator.generate(prompts, sampling))],
    }
    first, second = (call() for call in variants.values())  # warms up as well
    same = sum(a == b for a, b in zip(first, second, strict=True))
    seconds = in_turns(variants, repeats=options.repeats)
    rows = [
        {
            "benchmark": "generate",
            "variant": name,
            "model": options.model.rsplit("/", 1)[-1],
            "prompts": len(prompts),
            "prompt_tokens": quantiles(lengths),
            "new_tokens": options.new_tokens,
            "batch_size": options.batch_size,
            "seconds": quantiles(seconds[name]),
            "ratio_to_in_order": ratios(seconds, "in order")[name],
            "same_texts": same,
            **machine(),
        }
        for name in variants
    ]
    print(table_head(["variant", "seconds", "ratio to the given order", "same texts"]))
    for row in rows:
        cells = [row["variant"], interval(row["seconds"], " s"), interval(row["ratio_to_in_order"])]
        print(table_line([*cells, f"{same} of {len(prompts)}"]))
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
