"""Saving so that a folder is either what it was or what it should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from balora.errors import ConfigError
from balora.files import write_text
from balora.staging import staged_files, writing
from balora.trainers.card import card_of

_CARD = "README.md"


class StagedSaveMixin:
    """``save_model`` writes beside its target and moves the finished files in by rename."""

    def init_hf_repo(self, token: str | None = None) -> None:
        """Make the repository that ``push_to_hub`` asks for, as transformers' Trainer does.

        Raises:
            ConfigError: If the hub cannot be reached or refuses.
        """
        try:
            super().init_hf_repo(token=token)  # type: ignore[misc]
        except (OSError, ValueError, HfHubHTTPError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
            raise ConfigError(
                f"`push_to_hub` is true, but the repository cannot be made: {reason}. Log in with "
                "`hf auth login`, look at `hub_model_id`, or leave `push_to_hub` out."
            ) from error

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write the run's card into its folder, in place of the drafts of trl and transformers."""
        self.write_card(None)

    def write_card(self, metrics: Mapping[str, Any] | None) -> None:
        """Write the card of a saved run, with the metrics of its final model where given."""
        trainer: Any = self
        folder = Path(trainer.args.output_dir)
        if trainer.is_world_process_zero() and folder.is_dir():
            write_text(folder / _CARD, card_of(self, folder, metrics))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers' Trainer does; a crash on the way leaves the target as it was.

        Raises:
            WriteError: If the disk is full; what was there is still whole.
        """
        target = output_dir or self.args.output_dir  # type: ignore[attr-defined]
        if self.args.should_save:  # type: ignore[attr-defined]
            with writing(target, "`output_dir`"), staged_files(Path(target)) as stage:
                super().save_model(str(stage), _internal_call=True)  # type: ignore[misc]
                write_text(stage / _CARD, card_of(self, stage))  # in place of PEFT's
        else:  # a process that writes nothing takes part
            super().save_model(target, _internal_call=True)  # type: ignore[misc]
        if self.args.push_to_hub and not _internal_call:  # type: ignore[attr-defined]
            self.push_to_hub(  # type: ignore[attr-defined]
                commit_message="Model save",
                revision=self.args.hub_revision,  # type: ignore[attr-defined]
            )
