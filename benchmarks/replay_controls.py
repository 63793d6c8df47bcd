"""Controls of replay in the inheritance lab that no recipe can name: one line of JSON per cell.

    python -m benchmarks.replay_controls --out benchmarks/results/replay_controls.jsonl
    python -m benchmarks.replay_controls --out benchmarks/results/replay_controls.jsonl --table

wise     after training, the weights are moved back towards the pre-trained ones,
         W0 + factor (W - W0) (WiSE-FT, arXiv 2109.01903), with several factors; 1 is the run itself
oracle   replay on text of the world as the model was pre-trained on, composed anew, in place of
         text that the model writes

Methods, learning rates and everything else are those that recipes/lab_replay.yaml chose
(benchmarks/results/lab-replay/choices.json). What is in the file already is not run again.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.measure import (
    kept_rows,
    machine,
    make_parser,
    table_head,
    table_line,
    write_rows,
)
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from balora.compare.cells import Cell
from balora.compare.plan import LabFiles, Plan
from balora.compare.reading import read_comparison
from balora.lab.build import BuiltLab, build_lab
from balora.lab.card import CardOptions, measure_defects
from balora.lab.config import lab_config
from balora.lab.corpus import build_corpus
from balora.lab.pretrain import documents_of
from balora.models.load import load_model
from balora.models.run_folder import load_run
from balora.models.source import source_of
from balora.recipes.load import check_recipe
from balora.trainers.run import run_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "lab_replay.yaml"
CHOICES = Path(__file__).parent / "results" / "lab-replay" / "choices.json"
METHODS = ("full", "lora", "pissa")
FACTORS = (0.25, 0.5, 0.75, 1.0)
FIGURES = ("exact_match", "recall", "recall_tail", "retention_loss", "stereotype_score")


class Control(NamedTuple):
    """One run, measured once or with several factors."""

    control: str
    """wise or oracle."""
    method: str
    condition: str
    seed: int


def main() -> None:
    """Run what is missing, or print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--conditions", nargs="+", help="null: all of the recipe's")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = kept_rows(args.out)
    if args.table:
        print(table(rows))
        return
    comparison = read_comparison(RECIPE, {})
    conditions = args.conditions or comparison.conditions
    labs = {one: build_lab(lab_config(comparison.lab_of(one) or {})) for one in conditions}
    files = {n: LabFiles(lab.model, lab.train_file, lab.test_file) for n, lab in labs.items()}
    chosen = {name: one["fields"] for name, one in json.loads(CHOICES.read_text("utf-8")).items()}
    cells = {(c.condition, c.method, c.seed): c for c in Plan(comparison, files).final(chosen)}
    done = {Control(*(row[name] for name in Control._fields)) for row in rows}
    for one in controls(conditions, args.seeds):
        if one not in done:
            print(one, flush=True)
            method = one.method + ("+replay" if one.control == "oracle" else "")
            rows += run(one, cells[one.condition, method, one.seed], labs[one.condition])
            write_rows(args.out, rows)


def controls(conditions: list[str], seeds: list[int]) -> Iterator[Control]:
    """Yield every control, the first seed of all first."""
    for seed in seeds:
        for condition in conditions:
            for name in ("wise", "oracle"):
                yield from (Control(name, method, condition, seed) for method in METHODS)


def run(control: Control, cell: Cell, lab: BuiltLab) -> list[dict[str, Any]]:
    """Train one cell of the study and measure it, with every factor where it is of ``wise``."""
    with tempfile.TemporaryDirectory() as folder:
        content = {**cell.recipe, "output_dir": f"{folder}/run", "disable_tqdm": True}
        if control.control == "oracle":
            texts = Path(folder, "world.jsonl")
            corpus = build_corpus(lab_config(cell.lab or {}).pretraining().corpus)
            documents = documents_of(corpus.train_lines(2))
            rows = [json.dumps({"text": document}) for document in documents]
            texts.write_text("\n".join(rows) + "\n", "utf-8")
            content |= {"replay": str(texts)}
        recipe = check_recipe(content)
        start = time.monotonic()
        run_recipe(recipe)
        seconds = time.monotonic() - start
        gc.collect()
        source = source_of(recipe)
        base = load_model(source)
        options = CardOptions(
            batch_size=cell.evaluation["eval_batch_size"],
            max_new_tokens=cell.evaluation["max_new_tokens"],
        )
        measured = []
        for factor in FACTORS if control.control == "wise" else (1.0,):
            tuned, tokenizer, _ = load_run(Path(content["output_dir"]), source)
            move_back(tuned, base, factor)
            measured.append(
                {
                    **control._asdict(),
                    "factor": factor,
                    "learning_rate": content["learning_rate"],
                    "metrics": measure_defects(tuned, tokenizer, lab, options=options),
                    "train_seconds": round(seconds, 2),
                    **machine(),
                }
            )
    return measured


@torch.no_grad()
def move_back(tuned: PreTrainedModel | PeftModel, base: PreTrainedModel, factor: float) -> None:
    """Set the weights to W0 + factor (W - W0), in place."""
    if isinstance(tuned, PeftModel):
        for module in tuned.modules():
            if isinstance(module, LoraLayer):
                module.scale_layer(factor)
        return
    before = dict(base.named_parameters())
    for name, weight in tuned.named_parameters():
        weight.copy_(torch.lerp(before[name], weight, factor))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over seeds as a Markdown table, by condition, control and method."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["condition"], row["control"], row["method"], row["factor"]].append(row)
    lines = [table_head(["condition", "control", "method", "factor", "seeds", *FIGURES])]
    for key, group in sorted(groups.items()):
        means = [sum(row["metrics"][name] for row in group) / len(group) for name in FIGURES]
        lines.append(table_line([*map(str, key), str(len(group)), *(f"{m:.3f}" for m in means)]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
