"""What a cell of ``balora compare`` costs beside the training that it runs.

    python -m benchmarks.bench_compare --out compare.jsonl
    python -m benchmarks.bench_compare --epochs 1 --methods lora pissa --repeats 5

In each round, in random order: ``balora compare`` with one seed and one cell at a time, and by hand
``balora train`` for each of its recipes, each in a process of its own. The task is the
quickstart's. Evaluation is part of a cell and not of a training, so the seconds that the cells say
it took are taken off:

    overhead = (sum of cells - sum of evaluations - sum of trainings) / sum of trainings

What is left is loading the saved adapter, spectra, sizes of the update and samples for the report.
The claim is at most 5% at the quickstart's four epochs. What the comparison does once, however many
its cells are, is told beside it: its start, the tables, the plots and the report.

    once = compare - sum of cells

Writes one JSON line and prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from benchmarks.measure import in_turns, interval, machine, make_parser, quantiles, write_rows

from balora.assets import asset_path

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def recipe_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the quickstart's recipe on the embedded model and data."""
    fields = yaml.safe_load(asset_path("quickstart/recipe.yaml").read_text(encoding="utf-8"))
    del fields["seed"], fields["method"]
    return {
        **fields,
        "model_name_or_path": str(asset_path("tiny_lm")),
        "dataset_name": str(asset_path("quickstart/train.jsonl")),
        "eval_dataset_name": str(asset_path("quickstart/test.jsonl")),
        "num_train_epochs": options.epochs,
        "compare": {
            "methods": options.methods,
            "seeds": [0],
            "num_rows": options.rows,
            "max_new_tokens": 48,
            "eval_batch_size": 64,
            "retention_file": str(asset_path("quickstart/retention.txt")),
        },
    }


def balora(*words: str) -> None:
    """Run the command line; what it prints is not wanted.

    Raises:
        RuntimeError: If it fails, with its last line.
    """
    command = [sys.executable, "-m", "balora", *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the times of the rounds and the overhead of each."""
    source, study = folder / "recipe.yaml", folder / "study"
    source.write_text(yaml.safe_dump(recipe_of(options)), encoding="utf-8")
    cells: list[float] = []
    evaluations: list[float] = []

    def compare() -> None:
        shutil.rmtree(study, ignore_errors=True)
        balora("compare", "--config", str(source), "--output_dir", str(study))
        text = (study / "results.jsonl").read_text(encoding="utf-8")
        rows: list[Mapping[str, Any]] = [json.loads(line) for line in text.splitlines()]
        cells.append(sum(row["seconds"] for row in rows))
        evaluations.append(sum(row["evaluation_seconds"] for row in rows))

    def train() -> None:
        for recipe in recipes:
            target = ("--output_dir", str(folder / "run"), "--overwrite")
            balora("train", "--config", str(recipe), *target)

    compare()  # warms up the disk's cache, and leaves the recipes of the cells
    recipes = [folder / f"{name}.yaml" for name in options.methods]
    for target, found in zip(recipes, sorted(study.glob("cells/*/recipe.yaml")), strict=True):
        shutil.copy(found, target)
    cells.clear()
    evaluations.clear()
    seconds = in_turns({"compare": compare, "train": train}, repeats=options.repeats)
    rounds = zip(cells, evaluations, seconds["train"], strict=True)
    return {
        "cell_seconds": quantiles(cells),
        "evaluation_seconds": quantiles(evaluations),
        "train_seconds": quantiles(seconds["train"]),
        "overhead": quantiles((c - e - t) / t for c, e, t in rounds),
        "once_seconds": quantiles(
            whole - inside for whole, inside in zip(seconds["compare"], cells, strict=True)
        ),
    }


def main() -> None:
    """Measure, write one line, and print it."""
    parser = make_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=["lora", "balora"])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=150, help="rows to evaluate on")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = {"benchmark": "compare", "methods": options.methods, "epochs": options.epochs}
        row |= {"rows": options.rows, **measure(options, Path(folder)), **machine()}
    write_rows(options.out, [row])
    print(f"overhead of a cell over its training: {interval(row['overhead'])}")
    print(f"seconds of the comparison, once: {interval(row['once_seconds'])}")


if __name__ == "__main__":
    main()
