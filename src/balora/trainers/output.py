"""The folder of a run: what may be in it before, the checkpoint to go on from, what made it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.environment import describe_environment
from balora.errors import ConfigError
from balora.evaluation.results import RESULTS_FILE
from balora.recipes import Recipe

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LAST_WRITTEN = "trainer_state.json"


class SaveProvenance(TrainerCallback):  # type: ignore[misc]
    """Write the resolved recipe and the environment into every checkpoint."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer after a checkpoint is complete."""
        if args.should_save:
            self.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def write(self, folder: Path) -> None:
        """Write ``recipe.yaml`` and ``environment.json`` into ``folder``."""
        (folder / "recipe.yaml").write_text(self.recipe.to_yaml(), encoding="utf-8")
        facts = json.dumps(describe_environment(), indent=2)
        (folder / "environment.json").write_text(facts + "\n", encoding="utf-8")


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
            "`--overwrite`, or go on with `--resume_from_checkpoint true`."
        )


def last_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest complete checkpoint: one whose last-written file is there."""
    found = [
        (int(match[1]), path)
        for path in (output_dir.iterdir() if output_dir.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(path.name)) and (path / _LAST_WRITTEN).is_file()
    ]
    return max(found)[1] if found else None


def checkpoint_to_resume(args: TrainingArguments, output_dir: Path) -> str | None:
    """Return the checkpoint that ``resume_from_checkpoint`` means, None to start anew.

    Raises:
        ConfigError: If there is no complete one, or nothing is left to do.
    """
    wish = args.resume_from_checkpoint
    if wish is None or str(wish).lower() == "false":
        return None
    if str(wish).lower() == "true":
        checkpoint = last_checkpoint(output_dir)
        if checkpoint is None:
            raise ConfigError(
                f"`resume_from_checkpoint` is true, but {str(output_dir)!r} holds no complete "
                "checkpoint. Leave it out to start from the beginning."
            )
        wish = checkpoint
    if not (Path(wish) / _LAST_WRITTEN).is_file():
        raise ConfigError(
            f"`resume_from_checkpoint` {wish!r} is no complete checkpoint: it has no "
            f"{_LAST_WRITTEN}. Name a `checkpoint-N` folder."
        )
    done = json.loads((Path(wish) / _LAST_WRITTEN).read_text(encoding="utf-8"))["global_step"]
    if 0 < args.max_steps <= done:
        raise ConfigError(
            f"`resume_from_checkpoint` {str(wish)!r} has done {done} steps and `max_steps` is "
            f"{args.max_steps}, so nothing is left. Raise `max_steps`."
        )
    return str(wish)


def remove_traces(output_dir: Path) -> None:
    """Make sure that no checkpoint and no figure of an overwritten run is taken for this run's."""
    (output_dir / RESULTS_FILE).unlink(missing_ok=True)
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        if _CHECKPOINT.fullmatch(path.name):
            (path / _LAST_WRITTEN).unlink(missing_ok=True)
