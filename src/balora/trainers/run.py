"""One run of a recipe: data, model, trainer, and a folder that says what made it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from transformers import EarlyStoppingCallback, Trainer

from balora.models.adapter import inner_model
from balora.models.record import check_recorded_weights
from balora.models.source import source_of
from balora.recipes import Recipe, training_arguments
from balora.recipes.kinds import load
from balora.trainers.log import loss_doubt
from balora.trainers.output import Provenance, checkpoint_to_resume, remove_traces, settings_of
from balora.trainers.place import output_folder
from balora.trainers.preflight import check_arguments_work, check_spread

logger = logging.getLogger(__name__)


def run_recipe(recipe: Recipe) -> Trainer:
    """Train what ``recipe`` says and save it in its ``output_dir``; return the trainer.

    A run of classification also leaves its metrics there, in ``results.json``.

    Raises:
        ConfigError: If a setting cannot work; before anything is written.
        DataError: If the data cannot be trained on, naming file and line.
        NonFiniteError: If the loss becomes NaN or infinite, naming step and term.
        WriteError: If the disk becomes full.
    """
    check_spread(recipe, recipe.training)
    with output_folder(recipe):
        return _run(recipe)


def _run(recipe: Recipe) -> Trainer:
    args = training_arguments(recipe)
    check_spread(recipe, args)
    check_arguments_work(args, recipe.training)
    settings = settings_of(recipe, args)
    resume = checkpoint_to_resume(recipe, args, settings)
    output_dir = Path(args.output_dir)
    trainer, resolved, finish = load(recipe.kind.prepare)(recipe, args)
    if resume is not None:
        check_recorded_weights(resume, source_of(recipe), inner_model(trainer.model))
    elif args.should_save:
        remove_traces(output_dir)
    provenance = Provenance(resolved, trainer.model)
    trainer.recipe_settings = settings
    trainer.checkpoint_files.append(provenance.write)
    if recipe.stopping.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(**asdict(recipe.stopping)))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if (doubt := loss_doubt(trainer.state.log_history)) is not None and args.should_save:
        logger.warning(doubt)
    trainer.save_model()
    trainer.save_state()
    if args.should_save:
        provenance.write(output_dir)
    if finish is not None:
        finish(trainer.training_seconds)
    return trainer
