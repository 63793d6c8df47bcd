"""What a save leaves: a plain LoRA that PEFT reads, complete or not at all."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from balora.errors import BaloraError
from support.models import make_model
from support.training import LARGE, OFF, make_trainer, run


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 17)[None]).logits


@pytest.mark.parametrize("adapter_init", ["pissa", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_is_saved_loads_in_plain_peft(tmp_path, adapter_init, architecture):
    objective = {**LARGE, "adapter_init": adapter_init}
    trainer = make_trainer(tmp_path, model=make_model(architecture), objective=objective)
    run(trainer)
    trainer.save_model()
    loaded = PeftModel.from_pretrained(make_model(architecture), tmp_path)
    assert type(loaded).__module__.startswith("peft.")
    expected = logits_of(trainer.model)
    scale = expected.abs().max()
    assert (logits_of(loaded) - expected).abs().max() <= 1e-5 * scale
    assert (logits_of(make_model(architecture)) - expected).abs().max() > 1e-2 * scale
    rank = loaded.peft_config["default"].r
    assert rank == (4 if adapter_init == "pissa" else 2)


def test_a_fully_trained_model_loads_in_plain_transformers(tmp_path):
    trainer = make_trainer(tmp_path, objective=OFF, options={"peft_config": None})
    run(trainer)
    trainer.save_model(str(tmp_path / "elsewhere"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")
    assert torch.equal(logits_of(loaded), logits_of(trainer.model))


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_crash_while_saving_leaves_the_old_files(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    run(trainer)
    trainer.save_model()
    before = contents(tmp_path)
    run(trainer)
    original = type(trainer.model).save_pretrained

    def save_half(self, save_directory, *args, **kwargs):
        original(self, save_directory, *args, **kwargs)
        with open(os.path.join(save_directory, "half"), "w") as file:
            file.write("a file of the save that crashed")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(trainer.model), "save_pretrained", save_half)
    with pytest.raises(BaloraError, match=f"`output_dir` '{tmp_path}' cannot be written: no space"):
        trainer.save_model()
    assert contents(tmp_path) == before

    monkeypatch.setattr(type(trainer.model), "save_pretrained", original)
    trainer.save_model()
    finished = contents(tmp_path)
    assert finished.keys() == before.keys()  # nothing of the crashed save came along
    assert finished != before


def test_a_first_save_has_a_card(tmp_path):
    trainer = make_trainer(tmp_path / "new")
    trainer.save_model()
    assert "README.md" in os.listdir(tmp_path / "new")
