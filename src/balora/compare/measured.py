"""What one cell does and measures: `balora train`, then what `balora eval` measures, in one go."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from balora.compare.benchmarks import answer_benchmarks
from balora.compare.cells import Cell
from balora.compare.memory import peak_memory_mib
from balora.config import DataConfig
from balora.environment import describe_environment, launched
from balora.errors import ConfigError
from balora.evaluation.curves import learning_curves
from balora.evaluation.instrument import Instrument, MeasureOptions, Models
from balora.evaluation.instruments import INSTRUMENTS, measure
from balora.evaluation.metrics import measured_by
from balora.evaluation.results import read_results
from balora.evaluation.run import evaluation_rows, prompt_pairs
from balora.evaluation.samples import sample_pairs
from balora.evaluation.spectra import logit_spectrum
from balora.evaluation.updates import update_sizes
from balora.files import read_filled_text, write_json
from balora.models.load import accelerator, load_model, load_tokenizer
from balora.models.names import name_of_dtype
from balora.models.run_folder import load_run
from balora.models.source import source_to_measure
from balora.recipes import Recipe, load_recipe
from balora.report.columns import OUTSIDE, OVERALL
from balora.rows import DETAILS_FILE

_PACKAGES = ("python", "balora", "torch", "transformers", "peft", "trl", "accelerate", "datasets")
_MACHINE = ("platform", "cpu threads", "cuda")


def run_and_measure(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """Train the cell's recipe, measure what came out, write ``details.json``.

    Of several processes all train, and the first measures, on its own.

    Args:
        cell: Of the folder.
        folder: With ``recipe.yaml``, whose `output_dir` the run is left in.

    Returns:
        The fields of its row that are measured; None in all processes but the first.

    Raises:
        BaloraError: As `balora train` and `balora eval`.
    """
    recipe = load_recipe(folder / "recipe.yaml")
    run = None if cell.is_base else Path(recipe.training["output_dir"])
    measured = {} if cell.is_base else _train(recipe)
    facts = describe_environment()
    if not _goes_on_alone():
        return None
    start = time.monotonic()
    details: dict[str, Any] = {}
    if recipe.kind.evaluates_itself:
        # the run itself has evaluated its last epoch, and the sets out of domain
        assert run is not None
        results = read_results(run)
        measured["metrics"] = classification_metrics(results)
        measured["majority"] = majority_metrics(results)
        measured["dtype"] = results["dtype"]
    else:
        models = _models(recipe, run)
        options = _options(cell, recipe, models.tokenizer)
        instruments = _instruments(cell, recipe, len(options.examples))
        measured["metrics"] = measure(models, options, instruments)
        seconds = time.monotonic() - start
        measured["dtype"] = name_of_dtype(models.base.dtype)
        if cell.stage == "final":
            details = _details(cell, models, options)
        if cell.bench:
            start = time.monotonic()
            asked = answer_benchmarks(cell, recipe, run, models, folder)
            measured["metrics"] |= asked["metrics"]
            measured["bench"] = asked["bench"]
            seconds += time.monotonic() - start
        measured["evaluation_seconds"] = round(seconds, 2)
    if run is not None:
        details["curves"] = list(learning_curves(run))
    write_json(folder / DETAILS_FILE, details)
    return {
        "peak_memory_mib": peak_memory_mib(),
        **measured,
        "versions": {n: facts[n] for n in (*_PACKAGES, *_MACHINE) if n in facts},
        "commit": facts.get("balora commit"),
    }


def _goes_on_alone() -> bool:
    """Leave the other processes of a launcher; False in all but the first, which has the rest."""
    rank, _ = launched()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return rank == 0


def _train(recipe: Recipe) -> dict[str, Any]:
    """Train as `balora train` does, and return what it cost.

    The trainer is let go of: evaluation needs its memory. The parameters are those of the adapter
    and a new head, or of the whole model; the peak is up to the end of training, imports and
    loading included.
    """
    from balora.trainers.run import run_recipe

    trainer = run_recipe(recipe)
    log = trainer.state.log_history
    seconds = next(row["train_runtime"] for row in reversed(log) if "train_runtime" in row)
    trained = {
        "num_trainable_parameters": sum(
            p.numel() for p in trainer.model.parameters() if p.requires_grad
        ),
        "train_seconds": round(seconds, 2),
        "peak_memory_mib": peak_memory_mib(),
    }
    del trainer
    gc.collect()  # a trainer and its model refer to one another
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return trained


def _models(recipe: Recipe, run: Path | None) -> Models:
    """Return the run's model beside the pre-trained one, which stands for itself without a run.

    The run's is loaded from its folder in plain PEFT, as `balora eval` does: a metric then belongs
    to what was saved and holds for everyone who loads it. That costs one load; the trainer's own
    model with its adapters off could not be the reference of full fine-tuning anyway.
    """
    source = source_to_measure(recipe)
    base = load_model(source, device=accelerator())
    if run is None:
        return Models(base, base, load_tokenizer(source))
    tuned, tokenizer, _ = load_run(run, source, device=accelerator())
    return Models(tuned, base, tokenizer)


def _options(cell: Cell, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> MeasureOptions:
    """Return how a cell is evaluated, and on which rows and text."""
    rows = evaluation_rows(cast(DataConfig, recipe.data), cell.evaluation.get("num_rows"))
    file = cell.evaluation.get("retention_file")
    return MeasureOptions(
        cell.evaluation["eval_batch_size"],
        cell.evaluation["max_new_tokens"],
        examples=prompt_pairs(rows, tokenizer),
        retention_text=None if file is None else read_filled_text(Path(file), "`--retention_file`"),
    )


def _instruments(cell: Cell, recipe: Recipe, num_rows: int) -> list[Instrument]:
    """Return the instruments of a cell: in the lab the responses and the defect card.

    Of a run that a sweep tries there is no card: nothing may be chosen by what the card measures.
    """
    if cell.lab is None or cell.stage != "final":
        return [INSTRUMENTS[name] for name in recipe.kind.instruments]
    from balora.lab.build import build_lab
    from balora.lab.card import CardOptions, defects
    from balora.lab.config import lab_config

    lab = build_lab(lab_config(cell.lab))
    if str(lab.model) != recipe.model.model_name_or_path:
        raise ConfigError(
            f"the lab is {lab.model} now, but the cell's model is "
            f"{recipe.model.model_name_or_path}: code or cache changed while the comparison ran. "
            "Run the same command again."
        )
    options = CardOptions.of_rows(
        num_rows,
        batch_size=cell.evaluation["eval_batch_size"],
        max_new_tokens=cell.evaluation["max_new_tokens"],
    )
    return [INSTRUMENTS["responses"], defects(lab, options)]


def _details(cell: Cell, models: Models, options: MeasureOptions) -> dict[str, Any]:
    """Return what the report shows of a run beside its metrics."""
    pairs = options.examples
    before = logit_spectrum(models.base, models.tokenizer, pairs)
    if cell.is_base:
        return {"spectrum": {"before": before}}
    return {
        "spectrum": {
            "before": before,
            "after": logit_spectrum(models.tuned, models.tokenizer, pairs),
        },
        "updates": update_sizes(models.tuned, models.base),
        "samples": sample_pairs(
            models.tuned,
            models.base,
            models.tokenizer,
            pairs,
            max_new_tokens=options.max_new_tokens,
        ),
    }


def classification_metrics(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the metrics of a run of classification, after its last epoch, by name.

    Those of the first evaluation set have the metric's own name; those of others, which are MNLI's
    mismatched rows, and of the sets out of domain are called ``SET:METRIC``.

    Args:
        results: As ``results.json`` has them.
    """
    return _by_set(results, lambda row: row)


def majority_metrics(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what the majority class of each set gets, by the names of `classification_metrics`."""
    return _by_set(results, lambda row: row.get("majority_class") or {})


def _by_set(
    results: Mapping[str, Any], metrics_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, float | None]:
    """Return the metrics of every set, those of all but the first named ``SET:METRIC``.

    And the means of the primary metric: over the rows of all evaluation sets, where there are
    several, and over the sets out of domain.
    """
    first = next(iter(results["final"]), None)
    sets = [("" if name == first else f"{name}:", row) for name, row in results["final"].items()]
    sets += [(f"{name}:", row) for name, row in results["out_of_domain"].items()]
    found = {
        prefix + name: metrics_of(row)[name]
        for prefix, row in sets
        for name in measured_by("classification")
        if name in metrics_of(row)
    }
    primary = results["primary_metric"]

    def values(part: str) -> list[tuple[float, int]]:
        return [
            (value, row["num_rows"])
            for row in results[part].values()
            if (value := metrics_of(row).get(primary)) is not None
        ]

    within, outside = values("final"), values("out_of_domain")
    if len(within) > 1:
        num_rows = sum(n for _, n in within)
        found[f"{OVERALL}:{primary}"] = sum(value * n for value, n in within) / num_rows
    if outside:
        found[f"{OUTSIDE}:{primary}"] = sum(value for value, _ in outside) / len(outside)
    return found
