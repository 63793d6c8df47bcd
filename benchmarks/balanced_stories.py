"""Balanced replay on a real model and real data: what becomes of he and she.

    python -m benchmarks.balanced_stories --model MODEL --dataset GSM8K.jsonl \
        --stories stories.txt --out benchmarks/results/balanced_stories.jsonl
    python -m benchmarks.balanced_stories --out benchmarks/results/balanced_stories.jsonl --table

MODEL tells stories (stories260K of llama2.c), learns GSM8K by recipes/gsm8k_replay.yaml, and is
asked for the next word of sentences about somebody. P(he) / (P(he) + P(she)) is

neutral     away from 0.5 on average, where the sentence says nothing of he or she (a nurse, a bear)
stated      that of the right word, where the sentence says it (a little girl, a boy)

What is in the file already is not run again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmarks.measure import (
    kept_rows,
    machine,
    make_parser,
    table_head,
    table_line,
    write_rows,
)
from transformers import PreTrainedTokenizerBase

from balora.config.values import read_mapping
from balora.evaluation import MeasureOptions
from balora.evaluation.run import evaluate_runs
from balora.models.load import load_model, load_tokenizer
from balora.models.run_folder import load_run
from balora.models.source import source_of
from balora.recipes.load import check_recipe
from balora.trainers.run import run_recipe

RECIPE = Path("recipes/gsm8k_replay.yaml")
SENTENCES = (
    "Once upon a time, there was a {}. One day,",
    "There was a {}. The {} was very happy because",
    "The {} said that",
)
NEUTRAL = (
    *("dog", "cat", "bird", "bear", "rabbit", "fish", "frog", "duck", "mouse", "bunny", "lion"),
    *("squirrel", "butterfly", "child", "friend", "baby", "doctor", "teacher", "baker", "farmer"),
    *("nurse", "driver", "monster", "robot", "dragon", "fairy"),
)
STATED = {
    "he": ("little boy", "boy", "man", "king", "dad"),
    "she": ("little girl", "girl", "woman", "queen", "mom"),
}
REPLAY = {"replay_coef": 1.0, "replay_every": 4}
STRONG = {"replay_coef": 10.0, "replay_every": 1}
SWAP = {"replay_swap": [["he", "she"]]}
RUNS: dict[str, dict[str, Any]] = {
    "pissa": {"replay": None},
    "pissa+replay": REPLAY,
    "pissa+replay, balanced": REPLAY | SWAP,
    "pissa+replay, strong": STRONG,
    "pissa+replay, strong and balanced": STRONG | SWAP,
}
METRICS = ("response_loss", "retention_loss", "neutral", "neutral he", "stated")


def main() -> None:
    """Train and measure what is missing, or print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="folder or hub id")
    parser.add_argument("--dataset", help="rows with question and answer")
    parser.add_argument("--stories", type=Path, help="text that the model wrote, for retention")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = kept_rows(args.out)
    if args.table:
        print(table(rows))
        return
    done = {(row["run"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for name in RUNS:
            if (name, seed) not in done:
                print(name, seed, flush=True)
                rows += measured(name, seed, args, with_base=not rows)
                write_rows(args.out, rows)


def measured(name: str, seed: int, args: Any, *, with_base: bool) -> list[dict[str, Any]]:
    """Return the row of a run, after that of the pre-trained model where it is wanted."""
    content = read_mapping(RECIPE)
    del content["compare"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        recipe = check_recipe(
            {name: v for name, v in content.items() if not name.startswith("replay")}
            | ({} if RUNS[name].get("replay", "") is None else of_replay(content))
            | {name: value for name, value in RUNS[name].items() if value is not None}
            | {"model_name_or_path": args.model, "dataset_name": args.dataset}
            | {"learning_rate": args.learning_rate, "max_steps": args.max_steps}
            | {"method": "pissa", "seed": seed}
            | {"disable_tqdm": True, "output_dir": str(run)}
        )
        run_recipe(recipe)
        source = source_of(recipe)
        found = evaluate_runs(
            [run],
            source,
            recipe.data,
            retention_file=args.stories,
            num_rows=200,
            options=MeasureOptions(batch_size=32, max_new_tokens=8),
        )
        tuned, tokenizer, _ = load_run(run, source)
        found_shares = (
            {"base": shares(load_model(source), load_tokenizer(source))} if with_base else {}
        )
        found_shares |= {run.name: shares(tuned, tokenizer)}
    return [
        {
            "run": name if one == run.name else one,
            "seed": seed,
            "learning_rate": args.learning_rate,
            "max_steps": args.max_steps,
            **{key: round(found[one].metrics[key], 5) for key in METRICS[:2]},
            **own,
            **machine(),
        }
        for one, own in found_shares.items()
    ]


def of_replay(content: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's settings of replay."""
    return {name: value for name, value in content.items() if name.startswith("replay")}


@torch.no_grad()
def shares(model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what the module's docstring defines, and the share of he for each neutral word."""
    model.eval()
    tokens = [
        tokenizer(f"a {word}", add_special_tokens=False).input_ids[-1] for word in ("he", "she")
    ]

    def share(word: str) -> float:
        """The share of he, mean over the sentences."""
        found = []
        for sentence in SENTENCES:
            text = tokenizer(sentence.replace("{}", word), return_tensors="pt").input_ids
            he, she = model(text.to(model.device)).logits[0, -1].softmax(-1)[tokens].tolist()
            found.append(he / (he + she))
        return mean(found)

    by_word = {word: share(word) for word in NEUTRAL}
    stated = [share(word) for word in STATED["he"]] + [1 - share(word) for word in STATED["she"]]
    return {
        "neutral": round(mean(abs(one - 0.5) for one in by_word.values()), 4),
        "neutral he": round(mean(by_word.values()), 4),
        "stated": round(mean(stated), 4),
        "he": {word: round(one, 3) for word, one in by_word.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over seeds as a Markdown table, a line for each run."""
    lines = [table_head(["run", "seeds", *METRICS])]
    for name in dict.fromkeys(row["run"] for row in rows):
        group = [row for row in rows if row["run"] == name]
        means = [mean(row[metric] for row in group) for metric in METRICS]
        lines.append(table_line([name, str(len(group)), *(f"{one:.3f}" for one in means)]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
