"""BA-LoRA in a training loop of your own: no trainer, no logits.

    python examples/own_loop.py --steps 20

Fine-tunes the language model that ships with balora on its word problems. Both passes go through
the body of the model; the objective makes what it needs from their hidden states.
"""

from __future__ import annotations

import argparse
import json

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora import (
    BALoraConfig,
    FusedObjective,
    get_balora_model,
    head_of,
    next_token_targets,
    reference_mode,
)
from balora.assets import asset_path


def main() -> None:
    """Train and print every term of every step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (20)")
    options = parser.parse_args()

    base = AutoModelForCausalLM.from_pretrained(asset_path("tiny_lm"))
    tokenizer = AutoTokenizer.from_pretrained(asset_path("tiny_lm"))
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules="all-linear")
    config = BALoraConfig.preset("paper", consistency_coef=0.03)
    model = get_balora_model(base, lora, config)
    objective = FusedObjective(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)

    lines = asset_path("quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: 16 * options.steps]]
    for start in range(0, len(rows), 16):
        batch, labels = tokenized(rows[start : start + 16], tokenizer)
        mask, targets = next_token_targets(labels)
        body = model.get_base_model().base_model  # without the output layer
        hidden = body(**batch, use_cache=False).last_hidden_state[mask]
        with reference_mode(model):
            reference_hidden = body(**batch, use_cache=False).last_hidden_state[mask]
        loss, terms, _ = objective(hidden, reference_hidden, targets, head=head_of(base))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        is_on = {name: term for name, term in terms._asdict().items() if term is not None}
        print(" ".join(f"{name} {float(term):.4f}" for name, term in is_on.items()))


def tokenized(
    rows: list[dict[str, str]], tokenizer
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a padded batch and its labels: -100 at the prompt and the padding."""
    prompts = [tokenizer(row["instruction"] + "\n")["input_ids"] for row in rows]
    answers = [
        tokenizer(row["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        for row in rows
    ]
    both = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    batch = tokenizer.pad({"input_ids": both}, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in zip(labels, prompts, strict=True):
        row[: len(prompt)] = -100
    return {name: batch[name] for name in ("input_ids", "attention_mask")}, labels


if __name__ == "__main__":
    main()
