"""What both trainers do around the objective: trackers are handed its coefficients."""

from __future__ import annotations

import copy
import pickle

import torch
from transformers import TrainerCallback
from trl import SFTConfig

from balora.config import BALoraConfig
from support.training import LARGE, make_trainer, run


class _Tracker(TrainerCallback):
    """Reads what trackers do: the arguments as a mapping, when training begins."""

    def on_train_begin(self, args, state, control, **_) -> None:
        self.seen = args.to_dict()


def test_trackers_are_handed_the_coefficients(tmp_path):
    tracker = _Tracker()
    trainer = make_trainer(tmp_path, objective=LARGE, max_steps=1, options={"callbacks": [tracker]})
    run(trainer)
    assert tracker.seen["consistency_coef"] == LARGE["consistency_coef"]
    assert tracker.seen["max_steps"] == 1
    assert set(BALoraConfig.__dataclass_fields__) <= tracker.seen.keys()


def test_the_arguments_are_plain_where_they_are_copied_or_saved(tmp_path):
    trainer = make_trainer(tmp_path, objective=LARGE)
    for plain in (copy.copy(trainer.args), pickle.loads(pickle.dumps(trainer.args))):
        assert type(plain) is SFTConfig
        assert plain.to_dict() == SFTConfig.to_dict(plain)
        assert "consistency_coef" not in plain.to_dict()
    trainer.save_model(str(tmp_path / "out"))
    saved = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert type(saved) is SFTConfig


def test_the_callers_arguments_stay_as_they_are(tmp_path):
    from support.training import sft_config

    args = sft_config(tmp_path)
    trainer = make_trainer(tmp_path, objective=LARGE)
    assert type(args) is SFTConfig
    assert isinstance(trainer.args, SFTConfig)
