"""Saving so that a folder is either what it was or what it should be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_STAGE = ".tmp-save"
"""The folder inside the target that is written to first."""

_LAST = ("model.safetensors", "adapter_model.safetensors", "config.json", "adapter_config.json")
"""Moved last, in this order: an adapter is complete when its ``adapter_config.json`` is there."""


class StagedSaveMixin:
    """``save_model`` writes beside its target and moves the finished files in by rename."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers' Trainer does; a crash on the way leaves the target as it was."""
        target = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        stage = target / _STAGE
        if self.args.should_save and stage.is_dir():  # type: ignore[attr-defined]
            shutil.rmtree(stage)  # an earlier save crashed half way
        super().save_model(str(stage), _internal_call=True)  # type: ignore[misc]
        if self.args.should_save and stage.is_dir():  # type: ignore[attr-defined]
            move_files(stage, target)
        if self.args.push_to_hub and not _internal_call:  # type: ignore[attr-defined]
            self.push_to_hub(  # type: ignore[attr-defined]
                commit_message="Model save",
                revision=self.args.hub_revision,  # type: ignore[attr-defined]
            )


def move_files(stage: Path, target: Path) -> None:
    """Rename everything in ``stage`` into ``target``, the files that make it valid last."""
    names = [path.name for path in stage.iterdir()]
    for name in sorted(names, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name)):
        if name == "README.md" and (target / name).exists():
            continue  # the run's own card says more than PEFT's
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        os.replace(stage / name, target / name)
    shutil.rmtree(stage)
