"""The folder of a run: what may be in it before, the checkpoint to go on from, what made it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from balora.environment import describe_environment
from balora.errors import ConfigError
from balora.evaluation.results import RESULTS_FILE
from balora.files import write_text
from balora.models.record import base_record, write_base
from balora.recipes import Recipe
from balora.trainers.checkpoint import STATE_FILE, Checkpoint, find_checkpoint, is_checkpoint
from balora.trainers.record import refuse_other_run
from balora.trainers.resume_rules import differences, plain

_RECIPE_FILE, _FACTS_FILE = "recipe.yaml", "environment.json"


class Provenance:
    """What made a run: written into its folder and into every checkpoint."""

    def __init__(self, recipe: Recipe, model: PreTrainedModel | PeftModel) -> None:
        """Take the recipe, and the model before a step is trained."""
        self.recipe, self._base = recipe, base_record(model)

    def write(self, folder: Path) -> None:
        """Write ``recipe.yaml``, ``base_model.json`` and ``environment.json`` into ``folder``."""
        write_base(folder, self._base)
        write_text(folder / _RECIPE_FILE, self.recipe.to_yaml())
        facts = json.dumps(describe_environment(), indent=2)
        write_text(folder / _FACTS_FILE, facts + "\n")


def check_output_dir(output_dir: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds something.

    Raises:
        ConfigError: If it is a file, or not empty and ``overwrite`` is false.
    """
    if output_dir.is_file():
        raise ConfigError(f"`output_dir` {str(output_dir)!r} is a file; name a folder.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise ConfigError(
            f"`output_dir` {str(output_dir)!r} is not empty. Name another folder, pass "
            "`--overwrite`, or resume with `--resume_from_checkpoint true`."
        )


def settings_of(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Return every setting of a recipe by its own name, resolved, as a checkpoint records it."""
    parts: list[Any] = [getattr(recipe, field.name) for field in fields(recipe)]
    parts = [part for part in parts if is_dataclass(part)]  # one that is added later as well
    settings = {name: value for part in parts for name, value in asdict(part).items()}
    return plain(settings | args.to_dict())


def checkpoint_to_resume(
    recipe: Recipe, args: TrainingArguments, settings: dict[str, Any]
) -> Path | None:
    """Return the checkpoint that ``resume_from_checkpoint`` means, None to start anew.

    Args:
        recipe: Of the run.
        args: Its arguments.
        settings: From :func:`settings_of`.

    Raises:
        ConfigError: If there is none that is whole, if it belongs to a run with other settings,
            or if nothing is left to do.
    """
    output_dir = Path(args.output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    if checkpoint is None:
        check_output_dir(output_dir, overwrite=recipe.run.overwrite)
        return None
    if checkpoint.folder.resolve().parent != output_dir.resolve():
        check_output_dir(output_dir, overwrite=recipe.run.overwrite)
    recorded = checkpoint.record.get("recipe")
    if recorded is not None:  # one of a trainer without a recipe is compared by the trainer
        changed = differences(recorded, settings)
        refuse_other_run(checkpoint.folder, [str(difference) for difference in changed])
    _check_left(checkpoint, args, is_done=_is_done(output_dir, recipe))
    return checkpoint.folder


def remove_traces(output_dir: Path) -> None:
    """Make sure that no checkpoint and no value of an overwritten run is taken for this run's."""
    for name in (RESULTS_FILE, _FACTS_FILE):
        (output_dir / name).unlink(missing_ok=True)
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        if is_checkpoint(path):
            (path / STATE_FILE).unlink(missing_ok=True)


def _is_done(output_dir: Path, recipe: Recipe) -> bool:
    """Say whether a run has left the last of its files, so that nothing of it can be missing."""
    last = RESULTS_FILE if recipe.kind.evaluates_itself else _FACTS_FILE
    return (output_dir / last).is_file()


def _check_left(checkpoint: Checkpoint, args: TrainingArguments, *, is_done: bool) -> None:
    """Refuse a run that is over already and saved, and a length below what has been done.

    Where the final save was cut off, nothing is left to train and it is done again.
    """
    state, planned = checkpoint.state, checkpoint.record["arguments"]
    done, steps = state["global_step"], state["max_steps"]
    name = "max_steps" if args.max_steps > 0 else "num_train_epochs"
    asked = getattr(args, name)
    if asked == planned.get(name) and (name == "max_steps" or planned["max_steps"] <= 0):
        is_too_short, is_over = False, done >= steps
    elif name == "max_steps":
        is_too_short, is_over = asked < done, asked <= done
    else:
        is_too_short, is_over = asked < state["epoch"], asked <= state["epoch"]
    if is_too_short or (is_over and is_done):
        so_far = f"{done} steps" if name == "max_steps" else f"{state['epoch']:g} epochs"
        raise ConfigError(
            f"`resume_from_checkpoint` {str(checkpoint.folder)!r} has done {so_far} and `{name}` "
            f"is {asked:g}, so nothing is left. Raise `{name}`."
        )
