"""Going on from a checkpoint: exactly where a run stopped, or not at all.

transformers puts weights, optimizer, schedule and random state back. What it leaves out is put back
here: the sums between two log rows, the counts from the start, the order of an epoch
that is drawn from the random state, the end of an epoch that a kill has cut off, and the intervals
that the call asks for. Every checkpoint records what its run was made of, and a run that differs
in any of it is refused (:mod:`balora.trainers.resume_rules`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from balora.anchored import only_adapter
from balora.anchored.beside import is_anchored_model
from balora.config import BALoraConfig
from balora.environment import describe_environment
from balora.files import write_text
from balora.staging import staged_file
from balora.state import read_torch
from balora.trainers.checkpoint import (
    LOOP_FILE,
    RUN_FILE,
    Checkpoint,
    find_checkpoint,
    rank_file,
    sizes_of,
)
from balora.trainers.checks import check_started
from balora.trainers.log import StepLog
from balora.trainers.reading_once import make_room
from balora.trainers.record import check_same_run, content_of, settings_of
from balora.trainers.sharding import full
from balora.trainers.sharding_settings import Sharding


class ResumeMixin:
    """The part of a trainer that saves what going on needs, and goes on.

    Args of the instance, set by whoever runs a recipe:
        recipe_settings: The flat fields of the recipe, as :func:`~.resume_rules.plain` gives them.
        checkpoint_files: Called with the folder of each checkpoint, to write into it, before it
            counts.
    """

    balora_config: BALoraConfig
    recipe_settings: Mapping[str, Any] | None = None
    _sharding: Sharding | None

    def _make_resumable(self) -> None:
        """Prepare for saving and going on; called once the trainer is built."""
        trainer: Any = self
        self.checkpoint_files: list[Callable[[Path], None]] = []
        self._resumed: Checkpoint | None = None
        self._digests: dict[str, str | None] | None = None
        self._step_log = StepLog()
        self._clock = _Clock()
        self._epoch_random: Tensor | None = None
        self._has_epoch_ended = False
        self._last_step: dict[str, float | None] = {}
        trainer.add_callback(_LoopCallback(self))

    @property
    def training_seconds(self) -> float:
        """Seconds of training, those before the checkpoint that was resumed included."""
        return self._clock.seconds

    def prepare(self, checkpoint: str | Path | None = None) -> None:
        """Make what ``train`` needs first, reading from ``checkpoint`` what it holds."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as the trainer below does; a resumed run goes on exactly or is refused.

        Args:
            resume_from_checkpoint: A folder, or true for the newest whole one in ``output_dir``.
            **kwargs: Everything else that ``Trainer.train`` takes.

        Raises:
            ConfigError: If the checkpoint is not whole, or was written by a run that differed in
                anything that training depends on.
        """
        trainer: Any = self
        self._step_log = StepLog()  # what an earlier call left unlogged is not of this run
        self._settings = settings_of(trainer, self.balora_config)
        self._digests = None
        self._resumed = find_checkpoint(resume_from_checkpoint, Path(trainer.args.output_dir))
        if self._resumed is not None:
            check_same_run(
                self._resumed,
                self._settings,
                self._content,
                layout=self._layout(),
                recipe=self.recipe_settings,
            )
        folder = None if self._resumed is None else str(self._resumed.folder)
        self._make_whole_state(folder)
        self.prepare(folder)
        earlier = 0.0 if self._resumed is None else self._resumed.record["progress"]["seconds"]
        self._clock = _Clock(earlier)
        at_start = trainer.args.eval_on_start
        trainer.args.eval_on_start = at_start and self._resumed is None  # it is in the log already
        try:
            output = super().train(resume_from_checkpoint=folder, **kwargs)  # type: ignore[misc]
        finally:
            trainer.args.eval_on_start = at_start
            self._clock.stop()
        return output._replace(training_loss=output.metrics["train_loss"])

    def _layout(self) -> dict[str, Any]:
        """Return over how many processes the run is spread, and how."""
        size = self.args.world_size  # type: ignore[attr-defined]
        return {"processes": size, "sharding": self._sharding and self._sharding.words}

    def _make_whole_state(self, checkpoint: str | None) -> None:
        """Do what needs whole weights, before a sharded run splits them.

        Whatever its engine loads later, the adapter has its anchor from here.
        """
        model: Any = self.model  # type: ignore[attr-defined]
        if self._sharding is None:
            return
        self._content()  # every process takes part in it, and one alone writes checkpoints
        if checkpoint is not None and isinstance(model, PeftModel):
            name = only_adapter(model)
            folder = Path(checkpoint, "" if name == "default" else name)
            own = {"full": full} if is_anchored_model(model) else {}
            model.load_adapter(str(folder), name, is_trainable=True, **own)
        make_room(model)

    def _content(self) -> dict[str, str | None]:
        """Return the digests of what is trained on and from, computed once."""
        if self._digests is None:
            self._digests = content_of(self)
        return self._digests

    # saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as ``Trainer`` does; what the run is made of goes in before the last file."""
        state: Any = self.state  # type: ignore[attr-defined]
        self._settle_progress()
        state.save_to_json = partial(self._complete, state)
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            with suppress(AttributeError):
                del state.save_to_json

    def _complete(self, state: TrainerState, json_path: str) -> None:
        """Write what is still missing of a checkpoint, its last file by rename."""
        path = Path(json_path)
        for write in self.checkpoint_files:
            write(path.parent)
        record = {
            **self._layout(),
            **self._settings,
            "recipe": self.recipe_settings,
            "digests": self._content(),
            "environment": describe_environment(),
            "progress": self._progress(),
            "files": sizes_of(path.parent),
        }
        write_text(path.parent / RUN_FILE, json.dumps(record, indent=2) + "\n")
        with staged_file(path) as stage:
            TrainerState.save_to_json(state, str(stage))

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state as ``Trainer`` does, and beside it that of the loop."""
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        trainer: Any = self
        loop = {
            "epoch_random": self._epoch_random,
            "has_epoch_ended": self._has_epoch_ended,
            "last_step": self._last_step,
            "loss_sum": trainer._tr_loss.detach().cpu(),
            "logged_loss_sum": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "terms": self._step_log.state(),
        }
        name = rank_file(LOOP_FILE, trainer.args.process_index, trainer.args.world_size)
        torch.save(loop, Path(output_dir) / name)
        # the last file of a checkpoint says that those of every process are there
        trainer.accelerator.wait_for_everyone()

    def _settle_progress(self) -> None:
        """Bring the counts of :meth:`_progress` up to date; every process calls it."""

    def _progress(self) -> dict[str, Any]:
        """Return what counts from the start of the run."""
        return {"seconds": self.training_seconds}

    def _restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Put back what :meth:`_progress` returned."""

    # going on

    def _train_begins(self) -> None:
        """Put back what ``Trainer`` leaves out, before the first step of a resumed run."""
        if self._resumed is None:
            return
        trainer: Any = self
        check_started(trainer.model)
        trainer.state.compute_steps(trainer.args, trainer.state.max_steps)
        loop = self._saved_loop()
        trainer._tr_loss += loop["loss_sum"].to(trainer._tr_loss.device)
        trainer._total_loss_scalar = loop["logged_loss_sum"]
        trainer._globalstep_last_logged = loop["last_logged"]
        self._step_log.restore(loop["terms"])
        self._last_step = loop["last_step"]
        self._has_epoch_ended = loop["has_epoch_ended"]
        self._restore_progress(self._resumed.record["progress"])
        _restore_callbacks(trainer.callback_handler.callbacks, self._resumed.state)
        trainer.control.should_training_stop = self._was_stopped(self._resumed)
        is_last_of_epoch = trainer.state.epoch == int(trainer.state.epoch)
        is_over = trainer.state.global_step >= trainer.state.max_steps
        if (is_last_of_epoch or is_over) and not self._has_epoch_ended:
            self._end_epoch()

    def _was_stopped(self, checkpoint: Checkpoint) -> bool:
        """Say whether a callback had ended the run before its length, which is the same now."""
        state = checkpoint.state
        control = (state.get("stateful_callbacks") or {}).get("TrainerControl") or {}
        is_stopped = bool((control.get("attributes") or {}).get("should_training_stop"))
        length = self.state.max_steps  # type: ignore[attr-defined]
        return is_stopped and bool(state["global_step"] < state["max_steps"] == length)

    def _saved_loop(self) -> dict[str, Any]:
        assert self._resumed is not None
        trainer: Any = self
        name = rank_file(LOOP_FILE, trainer.args.process_index, trainer.args.world_size)
        loop: dict[str, Any] = read_torch(self._resumed.folder / name, "Start from the beginning.")
        return loop

    def _end_epoch(self) -> None:
        """Do what follows the last step of an epoch: its checkpoint was saved before that."""
        trainer: Any = self
        handler = trainer.callback_handler
        trainer.control = handler.on_epoch_end(trainer.args, trainer.state, trainer.control)
        trainer._maybe_log_save_evaluate(
            trainer._tr_loss,
            self._last_step.get("grad_norm"),
            trainer.model,
            None,
            trainer.state.epoch,
            None,
            time.time(),
            learning_rate=self._last_step.get("learning_rate"),
        )

    def _epoch_begins(self) -> None:
        """Note the random state that the order of an epoch is drawn from, or put it back."""
        trainer: Any = self
        resumed, state = self._resumed, trainer.state
        self._has_epoch_ended = False
        if resumed is not None and state.global_step == resumed.state["global_step"]:
            if state.epoch == int(state.epoch):
                trainer._load_rng_state(str(resumed.folder))
            else:
                torch.random.set_rng_state(self._saved_loop()["epoch_random"])
        self._epoch_random = torch.random.get_rng_state()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch as ``Trainer`` does, unless the run is over."""
        trainer: Any = self
        is_over = trainer.state.global_step >= trainer.state.max_steps
        if is_over or trainer.control.should_training_stop:
            trainer.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Log, evaluate and save as ``Trainer`` does; the metrics of the step are kept."""
        rate = kwargs.get("learning_rate")
        self._last_step = {
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "learning_rate": None if rate is None else float(rate),
        }
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as ``Trainer`` does; the steps that follow draw the same numbers without it."""
        with torch.random.fork_rng(devices=[]):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as ``Trainer`` does, with the mean loss of the whole run in its last row."""
        if "train_loss" in logs:
            trainer: Any = self
            logs["train_loss"] = trainer._total_loss_scalar / max(trainer.state.global_step, 1)
        super().log(logs, start_time)  # type: ignore[misc]


class _LoopCallback(TrainerCallback):  # type: ignore[misc]
    """Tells a trainer where its loop stands."""

    def __init__(self, trainer: ResumeMixin) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer._train_begins()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer._epoch_begins()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer._has_epoch_ended = True


class _Clock:
    """Seconds since it was made, those of an earlier leg included."""

    def __init__(self, earlier: float = 0.0) -> None:
        self._earlier, self._start = earlier, time.monotonic()
        self._end: float | None = None

    @property
    def seconds(self) -> float:
        return self._earlier + (self._end or time.monotonic()) - self._start

    def stop(self) -> None:
        self._end = time.monotonic()


def _restore_callbacks(callbacks: Sequence[Any], state: Mapping[str, Any]) -> None:
    """Give callbacks the state that they had: how long there has been no better evaluation, say."""
    saved = dict(state.get("stateful_callbacks") or {})
    for callback in callbacks:
        if not isinstance(callback, ExportableState):
            continue
        name = type(callback).__name__
        same = saved.get(name) or []
        (first, *saved[name]) = [*(same if isinstance(same, list) else [same]), {}]
        for attribute, value in (first.get("attributes") or {}).items():
            setattr(callback, attribute, value)
