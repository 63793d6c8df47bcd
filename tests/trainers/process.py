"""One of the processes of ``test_distributed.py``; alone it is the run they are compared with.

    python process.py OUTPUT_FOLDER

Rank and number of processes come from the environment, as ``accelerate launch`` sets them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset

from balora.config import BALoraConfig
from balora.objective import gather_rows
from balora.replay.config import ReplayConfig
from support.training import CHECKPOINTING, LARGE, GradientRecorder, make_rows, make_trainer, run

NUM_PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
MASKED = [
    {"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2]},
    {"input_ids": [5, 6, 7, 2], "labels": [-100] * 4},
]
# settings by name; batches are those of all processes together
RUNS = {
    "plain": {"objective": LARGE, "batch": 8},
    "accumulated": {"objective": LARGE, "batch": 4, "gradient_accumulation_steps": 2},
    "checkpointed": {"objective": LARGE, "batch": 8, CHECKPOINTING: True},
    "replay": {
        "objective": LARGE,
        "batch": 4,
        "gradient_accumulation_steps": 2,
        "options": {
            "replay_config": ReplayConfig(
                replay="generated",
                replay_num_texts=10,
                replay_length=20,
                replay_batch_size=5,  # of which one process has 3 and the other 2
                replay_every=1,
            )
        },
    },
    "schedule": {"objective": BALoraConfig.preset("iclr2026", svd_k=3), "batch": 8},
    "one rank without tokens": {
        "objective": LARGE,
        "batch": 2,
        "rows": Dataset.from_list(MASKED),
        "dataset_kwargs": {"skip_prepare_dataset": True},
    },
    "own counts": {"objective": LARGE, "batch": 8, "average_tokens_across_devices": False},
    # what each of two processes sees of the first batch of eight, one after the other
    "halves": {"objective": LARGE, "batch": 4, "learning_rate": 0.0, "max_steps": 2},
}


def train(output: Path, name: str) -> dict[str, object]:
    """Return the log rows and the gradients of one of the runs."""
    settings = {"rows": make_rows(16), "max_steps": 5, **RUNS[name]}
    batch = settings.pop("batch") // NUM_PROCESSES
    trainer = make_trainer(
        output / name,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
        ddp_backend="gloo" if NUM_PROCESSES > 1 else None,
        **settings,
    )
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    rows = run(trainer)
    trainer.save_model()
    return {"rows": rows, "gradients": recorder.steps}


def gather() -> dict[str, torch.Tensor]:
    """Return all rows and the gradient of this rank's; rank 0 has three, rank 1 none."""
    rows = torch.arange(6.0).reshape(3, 2) + 1 if RANK == 0 else torch.empty(0, 2)
    rows.requires_grad_()
    gathered = gather_rows(rows)
    ((RANK + 1) * gathered.square().sum()).backward()
    return {"gathered": gathered.detach(), "grad": rows.grad}


def main() -> None:
    """Run everything and leave one file for each rank."""
    output = Path(sys.argv[1])
    os.environ["BALORA_CACHE"] = str(output / "cache")
    torch.set_num_threads(1)
    results = {name: train(output, name) for name in RUNS}
    if NUM_PROCESSES > 1:
        results["gather"] = gather()
    torch.save(results, output / f"rank-{RANK}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
