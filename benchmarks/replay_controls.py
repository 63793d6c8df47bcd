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

import argparse
import gc
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from benchmarks.measure import machine
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from balora.lab.build import BuiltLab, build_lab
from balora.lab.card import CardOptions, measure_defects
from balora.lab.config import lab_config
from balora.lab.corpus import build_corpus
from balora.models.load import load_model
from balora.models.run_folder import load_run
from balora.models.source import source_of
from balora.recipes.load import check_recipe
from balora.trainers.run import run_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "lab_replay.yaml"
CHOICES = Path(__file__).parent / "results" / "lab-replay" / "choices.json"
FACTORS = (0.25, 0.5, 0.75, 1.0)
WISE, ORACLE = ("full", "lora", "pissa"), ("full", "lora", "pissa")
NUM_TEXTS = 4000
"""Of the oracle, lines of the world; more than a run reads."""


class Cell(NamedTuple):
    """One run, measured once or with several factors."""

    control: str
    method: str
    condition: str
    seed: int


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--conditions", nargs="+")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    rows = _read(args.out)
    if args.table:
        print(table(rows))
        return
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    conditions = args.conditions or list(recipe["compare"]["conditions"])
    done = {Cell(*(row[name] for name in Cell._fields)) for row in rows}
    for cell in cells(conditions, args.seeds):
        if cell in done:
            continue
        print(cell, flush=True)
        new = run(cell, recipe)
        with args.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)


def cells(conditions: list[str], seeds: list[int]) -> Iterator[Cell]:
    """Yield every cell, the first seed of all first."""
    for seed in seeds:
        for condition in conditions:
            yield from (Cell("wise", method, condition, seed) for method in WISE)
            yield from (Cell("oracle", method, condition, seed) for method in ORACLE)


def run(cell: Cell, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Train one cell and measure it, with every factor where it is of ``wise``."""
    lab_fields = {**recipe["lab"], **recipe["compare"]["conditions"][cell.condition]["lab"]}
    config = lab_config(lab_fields)
    lab = build_lab(config)
    with tempfile.TemporaryDirectory() as folder:
        content = fields_of(cell, recipe, lab, Path(folder))
        if cell.control == "oracle":
            text = build_corpus(config.pretraining().corpus).train_lines(1)[:NUM_TEXTS]
            rows = "".join(json.dumps({"text": line}) + "\n" for line in text)
            Path(content["replay"]).write_text(rows, "utf-8")
        checked = check_recipe(content)
        start = time.monotonic()
        run_recipe(checked)
        seconds = time.monotonic() - start
        gc.collect()
        source = source_of(checked)
        base = load_model(source)
        out = []
        for factor in FACTORS if cell.control == "wise" else (1.0,):
            tuned, tokenizer, _ = load_run(Path(content["output_dir"]), source)
            move_back(tuned, base, factor)
            options = CardOptions.of_rows(
                lab_fields["num_test"],
                batch_size=recipe["compare"]["eval_batch_size"],
                max_new_tokens=recipe["compare"]["max_new_tokens"],
            )
            card = measure_defects(tuned, tokenizer, lab, options=options)
            out.append(
                {
                    **cell._asdict(),
                    "factor": factor,
                    "learning_rate": content["learning_rate"],
                    "metrics": card,
                    "train_seconds": round(seconds, 2),
                    **machine(),
                }
            )
    return out


def fields_of(cell: Cell, recipe: dict[str, Any], lab: BuiltLab, folder: Path) -> dict[str, Any]:
    """Return the recipe of a cell: the study's, with the rate that the study chose."""
    content = {
        name: value
        for name, value in recipe.items()
        if name not in ("compare", "lab") and not name.startswith("replay")
    }
    chosen = cell.method + ("+replay" if cell.control == "oracle" else "")
    content |= json.loads(CHOICES.read_text("utf-8"))[chosen]["fields"]
    content |= {
        "method": cell.method,
        "seed": cell.seed,
        "model_name_or_path": str(lab.model),
        "dataset_name": str(lab.train_file),
        "prompt_template": "alpaca",
        "output_dir": str(folder / "run"),
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    if cell.method == "full":
        content = {name: v for name, v in content.items() if not name.startswith("lora_")}
    if cell.control == "oracle":
        own = {name: value for name, value in recipe.items() if name.startswith("replay_")}
        content |= {**own, "replay": str(folder / "world.jsonl"), "replay_num_texts": NUM_TEXTS}
    return content


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
    names = ("exact_match", "recall", "recall_tail", "retention_loss", "stereotype_score")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["condition"], row["control"], row["method"], row["factor"]].append(row)
    lines = ["| condition | control | method | factor | n | " + " | ".join(names) + " |"]
    lines.append("|" + "---|" * (5 + len(names)))
    for key, group in sorted(groups.items()):
        means = [sum(row["metrics"][name] for row in group) / len(group) for name in names]
        values = [*map(str, key), str(len(group)), *(f"{mean:.3f}" for mean in means)]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()
