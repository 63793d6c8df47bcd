"""One run of a recipe: data, model, trainer, and a folder that says what made it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from transformers import EarlyStoppingCallback, Trainer

from balora.recipes import CLASSIFICATION, Recipe, training_arguments
from balora.trainers.output import (
    SaveProvenance,
    check_output_dir,
    checkpoint_to_resume,
    remove_traces,
)
from balora.trainers.place import output_folder
from balora.trainers.run_classification import prepare_classification
from balora.trainers.run_generation import prepare_generation


def run_recipe(recipe: Recipe) -> Trainer:
    """Train what ``recipe`` says and save it in its ``output_dir``; return the trainer.

    A run of classification also leaves its figures there, in ``results.json``.

    Raises:
        ConfigError: If a setting cannot work; before anything is written.
        DataError: If the data cannot be trained on, naming file and line.
        NonFiniteError: If the loss becomes NaN or infinite, naming step and term.
        WriteError: If the disk becomes full.
    """
    with output_folder(recipe):
        return _run(recipe)


def _run(recipe: Recipe) -> Trainer:
    args = training_arguments(recipe)
    output_dir = Path(args.output_dir)
    resume = checkpoint_to_resume(args, output_dir)
    if resume is None:
        check_output_dir(output_dir, overwrite=recipe.run.overwrite)
    is_classification = recipe.kind is CLASSIFICATION
    prepare = prepare_classification if is_classification else prepare_generation
    trainer, resolved, finish = prepare(recipe, args)
    if resume is None and args.should_save:
        remove_traces(output_dir)
    provenance = SaveProvenance(resolved)
    trainer.add_callback(provenance)
    if recipe.stopping.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(**asdict(recipe.stopping)))
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.monotonic() - start
    trainer.save_model()
    trainer.save_state()
    if args.should_save:
        provenance.write(output_dir)
    if finish is not None:
        finish(seconds)
    return trainer
