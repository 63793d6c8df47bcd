"""What a run is made of, as checkpoints record it and as a run that goes on is compared with it.

Settings are compared as they are, rows, batches and weights by their digests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel

from balora.anchored.residual import comparable_weights
from balora.config import BALoraConfig
from balora.config.replay import ReplayConfig, acting_fields
from balora.environment import describe_environment
from balora.errors import ConfigError
from balora.models.adapter import inner_model
from balora.models.digests import (
    digest_of_batches,
    digest_of_columns,
    digest_of_config,
    digest_of_samples,
)
from balora.trainers.checkpoint import Checkpoint
from balora.trainers.reading_once import reader
from balora.trainers.resume_rules import (
    content_differences,
    differences,
    length_note,
    other_versions,
    plain,
)

logger = logging.getLogger(__name__)

_NOT_OF_THE_ADAPTER = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
)
"""Fields of PEFT's config that say where it came from, not what is trained."""

_HELD = frozenset(field.name for part in (BALoraConfig, ReplayConfig) for field in fields(part))
"""Fields that arguments hold for trackers; the objective is compared by itself."""

_MOST = 8
"""Differences that one message names."""


def settings_of(trainer: Any, objective: BALoraConfig) -> dict[str, dict[str, Any]]:
    """Return the settings of a trainer by part, as JSON holds them."""
    model, adapter = trainer.model, {}
    if isinstance(model, PeftModel):
        config = model.peft_config[model.active_adapters[0]].to_dict()
        adapter = {
            f"peft_config.{name}": value
            for name, value in config.items()
            if name not in _NOT_OF_THE_ADAPTER
        }
    base = inner_model(model).name_or_path
    return {
        "base": {"model_name_or_path": base} if base else {},
        "arguments": plain(trainer.args.to_dict()),
        "objective": plain(asdict(objective) | _replay_of(trainer)),
        "adapter": plain(adapter),
    }


def _replay_of(trainer: Any) -> dict[str, Any]:
    """Return the settings of the replay term that act; its texts lie in the checkpoint."""
    config = getattr(trainer, "replay_config", None)  # a classifier has none
    return {} if config is None else acting_fields(config)


def content_of(trainer: Any) -> dict[str, str | None]:
    """Return digests of rows, batches and weights; None for what cannot be looked through."""
    model, dataset = trainer.model, trainer.train_dataset
    base = inner_model(model)
    whole = reader(trainer._sharding, trainer.args.device)
    found: dict[str, str | None] = dict.fromkeys(("rows", "batches", "evaluation rows"))
    if isinstance(dataset, Dataset):
        read = trainer._remove_unused_columns(dataset)
        found["rows"] = digest_of_columns(read)
        found["batches"] = digest_of_batches(read, trainer.data_collator)
    evaluation = trainer.eval_dataset
    sets = evaluation if isinstance(evaluation, Mapping) else {"": evaluation}
    if all(isinstance(rows, Dataset) for rows in sets.values()):
        parts = [f"{name} {digest_of_columns(rows)}" for name, rows in sets.items()]
        found["evaluation rows"] = " ".join(parts)
    found["weights"] = digest_of_samples(comparable_weights(base), whole)
    found["config"] = digest_of_config(base)
    return found


def check_same_run(
    checkpoint: Checkpoint,
    settings: Mapping[str, Mapping[str, Any]],
    content: Callable[[], Mapping[str, str | None]],
    *,
    layout: Mapping[str, Any],
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a checkpoint of a run that was made of something else.

    Args:
        checkpoint: To go on from.
        settings: From :func:`settings_of`, every part.
        content: Returns the digests of :func:`content_of`; called where the settings agree.
        layout: How many processes there are, and the name of what shards their state.
        recipe: The flat fields of the recipe, where there is one.

    Raises:
        ConfigError: Naming each setting or content with both values, or the best checkpoint that
            is missing.
    """
    record = checkpoint.record
    problems = _setting_problems(record, settings, layout)
    if not problems:
        was = (record.get("base") or {}) | (record.get("recipe") or {})
        named = (was, {**settings["base"], **(recipe or {})})
        problems = content_differences(record["digests"], content(), settings=named)
    refuse_other_run(checkpoint.folder, problems)
    arguments = settings["arguments"]
    if arguments["load_best_model_at_end"]:
        _check_best(checkpoint)
    if versions := other_versions(record["environment"], describe_environment()):
        logger.warning(
            "the run resumes with other %s: its numbers may differ in their last digits",
            ", ".join(versions),
        )
    schedule = settings["objective"]["schedule"]
    if note := length_note(record["arguments"], arguments, schedule):
        logger.warning("%s", note)


def _setting_problems(
    record: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    layout: Mapping[str, Any],
) -> list[str]:
    """Say which settings of a record are not those of now."""
    found = differences({name: record.get(name) for name in layout}, layout)
    for part, now in settings.items():
        held = _HELD if part == "arguments" else frozenset()
        was = {name: value for name, value in (record.get(part) or {}).items() if name not in held}
        found += differences(was, {name: v for name, v in now.items() if name not in held})
    return [str(difference) for difference in found]


def refuse_other_run(folder: Path, problems: list[str]) -> None:
    """Raise one error for a checkpoint that belongs to a run with other settings, if it does.

    Raises:
        ConfigError: Listing ``problems``.
    """
    if not problems:
        return
    named = "; ".join(problems[:_MOST])
    more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
    raise ConfigError(
        f"`resume_from_checkpoint` {str(folder)!r} belongs to another run: {named}{more}. Go on "
        "with what it was started with, or start from the beginning in another `output_dir`."
    )


def _check_best(checkpoint: Checkpoint) -> None:
    best = checkpoint.state.get("best_model_checkpoint")
    if best and not Path(best).is_dir():
        raise ConfigError(
            f"`{checkpoint.folder}` names {best!r} as the best checkpoint so far, which is "
            "missing, and `load_best_model_at_end` would choose among the later ones only. Put "
            "it back, or start from the beginning."
        )
