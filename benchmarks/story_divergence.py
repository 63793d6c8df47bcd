"""How far the runs of a comparison are from their pre-trained model on texts that it writes.

    balora compare --config recipes/gsm8k_replay.yaml ... --keep_models true --output_dir OUT
    python -m benchmarks.story_divergence --model MODEL --comparison OUT \
        --out benchmarks/results/story_divergence.jsonl

KL(pre-trained || fine-tuned), exact over the vocabulary, mean over the tokens of texts that the
pre-trained model writes from their beginning with a seed of their own. The loss on a file of text
(`retention_loss`) estimates it only: it cuts the file into windows wherever they end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.measure import machine, make_parser, table_head, table_line, write_rows
from transformers import PreTrainedModel

from balora.compare.cells import Cell
from balora.models.load import load_model, load_tokenizer
from balora.models.run_folder import load_run
from balora.models.source import ModelSource
from balora.replay.generate import generate_texts
from balora.replay.start import start_of
from balora.replay.texts import IGNORED, ReplayTexts

BATCH = 32


def main() -> None:
    """Measure every run that kept its model, beside its loss on the task."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--comparison", type=Path, required=True, help="its folder")
    parser.add_argument("--num_texts", type=int, default=256)
    parser.add_argument("--length", type=int, default=192, help="tokens of a text at most")
    parser.set_defaults(seed=1234)  # of the texts; those of replay have 0
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = ModelSource(name=args.model)
    model, tokenizer = load_model(source).eval(), load_tokenizer(source)
    texts = generate_texts(
        model,
        tokenizer,
        start_of(None, tokenizer, model),
        num_texts=args.num_texts,
        length=args.length,
        seed=args.seed,
    )
    rows = []
    for file in sorted(args.comparison.glob("cells/*/result.json")):
        cell, result = Cell.read(file.parent), json.loads(file.read_text(encoding="utf-8"))
        run = file.parent / "run"
        if cell.is_base or not run.is_dir():
            continue
        tuned = load_run(run, source).model.eval()
        rows.append(
            {
                "method": cell.method,
                "seed": cell.seed,
                **{key: cell.recipe[key] for key in ("learning_rate", "max_steps")},
                "response_loss": round(result["metrics"]["response_loss"], 5),
                "kl": round(divergence(model, tuned, texts), 5),
                "texts": args.num_texts,
                "length": args.length,
                **machine(),
            }
        )
    print(table_head(["method", "seed", "response loss", "KL on texts of the model"]))
    for row in rows:
        cells = [row["method"], str(row["seed"]), f"{row['response_loss']:.3f}", f"{row['kl']:.3f}"]
        print(table_line(cells))
    write_rows(args.out, rows)


@torch.no_grad()
def divergence(model: PreTrainedModel, tuned: Any, texts: ReplayTexts) -> float:
    """Return KL(model || tuned) in nats, mean over the scored tokens of the texts."""
    total = 0.0
    for first in range(0, len(texts), BATCH):
        chosen = range(first, min(first + BATCH, len(texts)))
        batch = texts.batch(chosen, texts.width(chosen), pad_token_id=0)
        is_scored = batch.pop("labels")[:, 1:] != IGNORED
        ours, theirs = (
            one(**batch).logits[:, :-1][is_scored].double().log_softmax(-1)
            for one in (model, tuned)
        )
        total += float(F.kl_div(theirs, ours, log_target=True, reduction="sum"))
    return total / texts.num_scored(range(len(texts)))


if __name__ == "__main__":
    main()
