"""One of the processes of ``test_classification_distributed.py``, in the manner of ``process.py``.

    python process_classification.py OUTPUT_FOLDER

Alone it is the run they are compared with. Each process draws a head of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from support.classification import make_classifier, make_rows, make_trainer
from support.training import GradientRecorder, run

NUM_PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
UNEVEN = {"accelerator_config": {"even_batches": False}}
# settings by name; batches are those of all processes together
RUNS = {
    "logits": {"batch": 8},
    "features": {"batch": 8, "objective": {"space": "features"}},
    "binary": {"batch": 8, "num_labels": 2},
    "regression": {"batch": 8, "num_labels": 1},
    "accumulated": {"batch": 4, "gradient_accumulation_steps": 2},
    "lora": {"batch": 8, "objective": {"adapter_init": "lora"}},
    "full": {"batch": 8, "method": "full"},
    # of the last six rows one process has four, the other two
    "uneven": {"batch": 8, "number": 14, **UNEVEN},
    "uneven regression": {"batch": 8, "number": 14, "num_labels": 1, **UNEVEN},
    # a row for each process: together they have a covariance
    "one row each": {"batch": 2},
    # of even shares the mean of the two means is the mean
    "own counts": {"batch": 8, "average_tokens_across_devices": False},
}


def train(output: Path, name: str) -> dict[str, object]:
    """Return log rows, gradients and the reference of one of the runs."""
    settings = {"number": 16, "max_steps": 4, "num_labels": 3, **RUNS[name]}
    batch, number = settings.pop("batch"), settings.pop("number")
    torch.manual_seed(0)  # PEFT draws the start of a LoRA
    trainer = make_trainer(
        output / name,
        model=make_classifier(num_labels=settings["num_labels"], head_seed=RANK),
        rows=make_rows(number, num_labels=settings["num_labels"]),
        per_device_train_batch_size=batch // NUM_PROCESSES,
        per_device_eval_batch_size=3,
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
        optim="sgd",
        learning_rate=0.03,
        ddp_backend="gloo" if NUM_PROCESSES > 1 else None,
        **settings,
    )
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    rows = run(trainer)
    trainer.save_model()
    reference = None if trainer._reference is None else trainer._reference.rows
    return {"rows": rows, "gradients": recorder.steps, "reference": reference}


def main() -> None:
    """Run everything and leave one file for each rank."""
    output = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.save({name: train(output, name) for name in RUNS}, output / f"rank-{RANK}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
