"""What the trainer overrides or sets in trl and transformers without a public promise.

An upgrade that moves one of these turns red here, in one place, with its name.
"""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from support.training import make_trainer

SIGNATURES = {
    SFTTrainer._prepare_dataset: (
        "self",
        "dataset",
        "processing_class",
        "args",
        "packing",
        "formatting_func",
        "dataset_name",
    ),
    SFTTrainer.compute_loss: ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    SFTTrainer.log: ("self", "logs", "start_time"),
    Trainer.save_model: ("self", "output_dir", "_internal_call"),
    Trainer.train: ("self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    Trainer._get_num_items_in_batch: ("self", "batch_samples", "device"),
    Trainer._save_checkpoint: ("self", "model", "trial"),
    Trainer._save_rng_state: ("self", "output_dir"),
    Trainer._load_rng_state: ("self", "checkpoint"),
    Trainer._maybe_log_save_evaluate: (
        "self",
        "tr_loss",
        "grad_norm",
        "model",
        "trial",
        "epoch",
        "ignore_keys_for_eval",
        "start_time",
        "learning_rate",
    ),
}


@pytest.mark.parametrize("method", SIGNATURES, ids=lambda method: method.__qualname__)
def test_signature(method):
    assert tuple(inspect.signature(method).parameters) == SIGNATURES[method]


# attributes of the trainer, and the text that shows that they still act
READ_OR_SET = {
    "_total_train_tokens": SFTTrainer.compute_loss,
    "aux_loss_enabled": SFTTrainer.compute_loss,
    "_tag_names": SFTTrainer.__init__,
    "_is_vision_dataset": SFTTrainer.__init__,
    "current_gradient_accumulation_steps": Trainer._run_epoch,
    "loss_is_scaled_for_ga": Trainer.training_step,
    "_tr_loss": Trainer._run_epoch,
    "_total_loss_scalar": Trainer._finalize_training,
    "_globalstep_last_logged": Trainer._maybe_log_save_evaluate,
    "model_accepts_loss_kwargs": Trainer._get_num_items_in_batch,
    "_loss_shifts_labels": Trainer._get_num_items_in_batch,
}


@pytest.mark.parametrize("name", READ_OR_SET)
def test_attribute(name, tmp_path):
    assert f"self.{name}" in inspect.getsource(READ_OR_SET[name])


def test_attributes_exist_before_training(tmp_path):
    trainer = make_trainer(tmp_path)
    missing = [name for name in READ_OR_SET if not hasattr(trainer, name)]
    # set by the loop
    loop = {"_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"}
    assert set(missing) <= {"current_gradient_accumulation_steps", *loop}


@pytest.mark.parametrize(
    "name",
    [
        "assistant_only_loss",
        "average_tokens_across_devices",
        "ddp_broadcast_buffers",
        "label_smoothing_factor",
        "loss_type",
        "max_length",
        "packing_strategy",
        "router_aux_loss_coef",
        "shuffle_dataset",
        "truncation_mode",
        "use_liger_kernel",
    ],
)
def test_argument(name):
    assert name in SFTConfig.__dataclass_fields__


def test_padding_free_collator():
    rows = [{"input_ids": [1, 2]}, {"input_ids": [3, 4, 5]}]
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 2, -100, 4, 5]]
    assert "attention_mask" not in batch
