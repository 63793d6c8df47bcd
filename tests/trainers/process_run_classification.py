"""What `balora train` with a task leaves, run by each process of a group; files lie beside."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from balora.cli import main
from balora.evaluation.results import read_results


def run(output: Path) -> None:
    """Train on the rows beside ``output``: 8 rows a step, shared by all processes."""
    files = output.parent
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0")
    fields = {
        "task": "classification",
        "model_name_or_path": files / "model",
        "dataset_name": files / "train.jsonl",
        "eval_dataset_name": files / "test.jsonl",
        "output_dir": output / "run",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8 // size,
        "learning_rate": 1e-2,
        "lora_r": 2,
        "lora_target_modules": "query,value",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    status = main(["train", *(f"--{name}={value}" for name, value in fields.items())])
    # the first process writes the results, and no other waits for them
    results = read_results(output / "run") if rank == "0" else None
    torch.save({"status": status, "results": results}, output / f"rank-{rank}.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
