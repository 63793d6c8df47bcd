"""What `two_processes` runs: the same training by one process, and by two that share the work.

    python -m support.process FOLDER KIND...

A kind is ``generation``, ``classification`` or ``command``. The libraries are imported once; then
each kind is run by three forks of this process: one by itself, and two as ``accelerate launch``
sets them, by the environment. Rank R of them leaves ``FOLDER/KIND/one|two/rank-R.pt``.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from datasets import Dataset

from balora.cli import main as balora
from balora.config import BALoraConfig
from balora.config.replay import ReplayConfig
from balora.data import stored
from balora.distributed import gather_rows
from balora.evaluation.results import read_results
from support import classification, training
from support.training import CHECKPOINTING, LARGE

MASKED = [
    {"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2]},
    {"input_ids": [5, 6, 7, 2], "labels": [-100] * 4},
]
# settings by name; batches are those of all processes together
GENERATION: dict[str, dict[str, Any]] = {
    "plain": {
        "objective": LARGE,
        "batch": 8,
        "options": {"eval_dataset": training.make_rows(5)},  # the second process has too few
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 2,
    },
    "flat": {
        "objective": LARGE,
        "batch": 8,
        "options": {"eval_dataset": training.make_rows(5)},
        "padding_free": True,
        "max_length": None,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 2,
    },
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
UNEVEN = {"accelerator_config": {"even_batches": False}}
CLASSIFICATION: dict[str, dict[str, Any]] = {
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


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _shared(batch: int) -> dict[str, Any]:
    """Return the arguments with which the processes share a batch, in the order of the rows."""
    return {
        "per_device_train_batch_size": batch // _size(),
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
        "ddp_backend": "gloo" if _size() > 1 else None,
    }


def _train(trainer: Any) -> dict[str, Any]:
    """Train, save, and return the log rows and the gradients."""
    recorder = training.GradientRecorder()
    trainer.add_callback(recorder)
    rows = training.run(trainer)
    trainer.save_model()
    evaluations = [row for row in trainer.state.log_history if "eval_loss" in row]
    return {"rows": rows, "gradients": recorder.steps, "evaluations": evaluations}


def _generate(output: Path, name: str) -> dict[str, Any]:
    settings = {"rows": training.make_rows(16), "max_steps": 5, **GENERATION[name]}
    shared = _shared(settings.pop("batch"))
    return _train(training.make_trainer(output / name, **shared, **settings))


def _classify(output: Path, name: str) -> dict[str, Any]:
    """Each process draws a head of its own."""
    settings = {"number": 16, "max_steps": 4, "num_labels": 3, **CLASSIFICATION[name]}
    shared, number = _shared(settings.pop("batch")), settings.pop("number")
    num_labels = settings["num_labels"]
    torch.manual_seed(0)  # PEFT draws the start of a LoRA
    trainer = classification.make_trainer(
        output / name,
        model=classification.make_classifier(num_labels=num_labels, head_seed=_rank()),
        rows=classification.make_rows(number, num_labels=num_labels),
        per_device_eval_batch_size=3,
        optim="sgd",
        learning_rate=0.03,
        **shared,
        **settings,
    )
    results = _train(trainer)
    reference = None if trainer._reference is None else trainer._reference.rows
    return {**results, "reference": reference}


def _gather() -> dict[str, torch.Tensor | None]:
    """Return all rows and the gradient of this rank's; rank 0 has three, rank 1 none."""
    rows = torch.arange(6.0).reshape(3, 2) + 1 if _rank() == 0 else torch.empty(0, 2)
    rows.requires_grad_()
    gathered = gather_rows(rows)
    ((_rank() + 1) * gathered.square().sum()).backward()
    return {"gathered": gathered.detach(), "grad": rows.grad}


def generation(output: Path) -> dict[str, Any]:
    """Return what every run of generation left, and what two processes gather."""
    results = {name: _generate(output, name) for name in GENERATION}
    return results if _size() == 1 else {**results, "gather": _gather()}


def classify(output: Path) -> dict[str, Any]:
    """Return what every run of classification left."""
    return {name: _classify(output, name) for name in CLASSIFICATION}


@contextmanager
def _preparations() -> Iterator[list[str]]:
    """Yield what this process prepares of data: what it finds stored is not in it."""
    done: list[str] = []
    store, map_single = stored._store, Dataset._map_single

    def storing(*args: Any) -> None:
        done.append("read")
        store(*args)

    @wraps(map_single)  # whose arguments `datasets` looks at
    def mapping(*args: Any, **kwargs: Any) -> Any:
        done.append("mapped")
        return map_single(*args, **kwargs)

    stored._store, Dataset._map_single = storing, staticmethod(mapping)  # type: ignore[assignment]
    try:
        yield done
    finally:
        stored._store, Dataset._map_single = store, staticmethod(map_single)


def _train_by_command(output: Path, **fields: Any) -> int:
    """Return the status of `balora train` on the files beside ``output``: 8 rows a step."""
    files = output.parent
    shared = {
        "model_name_or_path": files / fields.pop("model"),
        "dataset_name": files / fields.pop("rows"),
        "output_dir": output / fields.pop("run"),
        "per_device_train_batch_size": 8 // _size(),
        "lora_r": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **fields,
    }
    return balora(["train", *(f"--{name}={value}" for name, value in shared.items())])


def _build_from_texts(output: Path) -> None:
    """Build both trainers as a script does: with texts that lie in memory."""
    training.make_trainer(
        output / "pairs",
        rows=training.make_rows(9),
        options={"eval_dataset": training.make_rows(7).select(range(1, 6))},
    )
    texts = [{"text": f"{i}+1=" * (1 + i % 3), "label": i % 3} for i in range(9)]
    classification.make_trainer(
        output / "labels",
        rows=Dataset.from_list(texts),
        options={"eval_dataset": Dataset.from_list(texts[:5])},
    )


def command(output: Path) -> dict[str, Any]:
    """Return what `balora train` left of the rows beside ``output``."""
    classified = {
        "task": "classification",
        "eval_dataset_name": output.parent / "test.jsonl",
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "lora_target_modules": "query,value",
    }
    generated = {"max_steps": 1, "prompt_template": "none"}
    run = partial(_train_by_command, output)
    with _preparations() as classification_work:
        status = run(model="bert", rows="train.jsonl", run="run", **classified)
    with _preparations() as generation_work:
        generation_status = run(model="llama", rows="pairs.jsonl", run="pairs", **generated)
    with _preparations() as trainers_work:
        _build_from_texts(output / "texts")
    refused = run(model="llama", rows="bad.jsonl", run="bad", **generated)
    return {
        "status": [status, generation_status, refused],
        "work": {
            "classification": classification_work,
            "generation": generation_work,
            "trainers": trainers_work,
        },
        # the first process writes the results, and no other waits for them
        "results": read_results(output / "run") if _rank() == 0 else None,
    }


KINDS = {"generation": generation, "classification": classify, "command": command}


def _run(kind: str, output: Path, environment: dict[str, str]) -> None:
    """Run everything of a kind in one of the processes and leave the file of its rank."""
    os.environ |= {**environment, "BALORA_CACHE": str(output / "cache")}
    datasets.config.HF_DATASETS_CACHE = output / "rows"
    torch.set_num_threads(1)
    torch.save(KINDS[kind](output), output / f"rank-{_rank()}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def environments_of_two() -> list[dict[str, str]]:
    """Return what ``accelerate launch`` sets for each of two processes of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return [{"RANK": rank, "LOCAL_RANK": rank, **world} for rank in "01"]


def run_forks(
    target: Callable[..., None], calls: Sequence[Sequence[Any]], *, name: str, timeout: float
) -> None:
    """Run a function in a fork of this process for each of its calls, at once.

    Raises:
        SystemExit: If one of them failed; the others are daemons, which end with this process.
    """
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=target, args=call, daemon=True) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=timeout)
        if process.exitcode != 0:
            sys.exit(f"a process of {name} ended with {process.exitcode}")


def _run_one_and_two(kind: str, folder: Path) -> None:
    """Run a kind in three processes at once."""
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
    calls = [(kind, folder / "one", {})]
    calls += [(kind, folder / "two", environment) for environment in environments_of_two()]
    run_forks(_run, calls, name=kind, timeout=240)


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # every training collects garbage: not the libraries
    for kind in sys.argv[2:]:
        _run_one_and_two(kind, Path(sys.argv[1]) / kind)
