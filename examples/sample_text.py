"""Write text as a model itself writes it: retention text without the pre-training data.

    python examples/sample_text.py MODEL --out stories.txt --num_samples 64 --seed 0

Samples from the beginning-of-text token at temperature 1, from the whole distribution, so that
the pre-trained model's loss on the file estimates its own entropy. `balora eval
--retention_file stories.txt` then shows how much of what the model used to say it has unlearned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed


def main() -> None:
    """Sample and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", help="id or folder of a causal language model")
    parser.add_argument("--out", type=Path, required=True, help="the text file to write")
    parser.add_argument("--num_samples", type=int, default=64, help="samples (64)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of each sample (256)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (0)")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    set_seed(options.seed)
    start = torch.full((options.num_samples, 1), tokenizer.bos_token_id)
    tokens = model.generate(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=options.max_new_tokens,
        pad_token_id=tokenizer.eos_token_id,
    )
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    options.out.write_text("\n".join(text.strip() for text in texts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
