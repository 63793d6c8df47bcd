"""Saving so that a folder is either what it was or what it should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from balora.errors import BaloraError, ConfigError
from balora.files import write_text
from balora.staging import staged_files, writing
from balora.trainers.card import card_of
from balora.trainers.sharding_settings import Sharding

_CARD = "README.md"


class StagedSaveMixin:
    """``save_model`` writes beside its target and moves the finished files in by rename."""

    _sharding: Sharding | None

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
                self._write_model(str(stage))
                if not any(stage.glob("*.safetensors*")):
                    raise BaloraError(
                        f"nothing of the model was written to `{target}`: a sharded run gave no "
                        "whole weights. Its checkpoints are whole; train with FULL_STATE_DICT."
                    )
                write_text(stage / _CARD, card_of(self, stage))  # in place of PEFT's
        else:  # a process that writes nothing takes part
            self._write_model(target)
        if self.args.push_to_hub and not _internal_call:  # type: ignore[attr-defined]
            self.push_to_hub(  # type: ignore[attr-defined]
                commit_message="Model save",
                revision=self.args.hub_revision,  # type: ignore[attr-defined]
            )

    def _write_model(self, folder: str) -> None:
        """Write the whole model; every process takes part, one writes."""
        trainer: Any = self
        if self._sharding is not None and self._sharding.is_split_dict:
            # for which transformers writes nothing
            trainer._save(folder, state_dict=trainer.accelerator.get_state_dict(trainer.model))
        else:
            super().save_model(folder, _internal_call=True)  # type: ignore[misc]
