"""What is not to be read once is refused; that two processes train the same is tested elsewhere.

See `test_sharded_training.py`.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from balora.cli import main
from balora.errors import ConfigError
from balora.trainers.reading_once import _check_buffers, make_room
from balora.trainers.sharding_settings import REPLAYED, Sharding, refuse_reading_once


def test_replay_and_saved_buffers_need_weights_on_every_process(tmp_path):
    once = Sharding(kind="FSDP", setting="a test", reads_once=True)
    with pytest.raises(ConfigError, match="the reference of `replay`"):
        refuse_reading_once(once, REPLAYED)
    refuse_reading_once(Sharding(kind="FSDP", setting="a test"), REPLAYED)
    refuse_reading_once(None, REPLAYED)
    model = nn.Linear(2, 2)
    model.register_buffer("inner", torch.ones(1), persistent=False)
    _check_buffers(model, once)
    model.register_buffer("scale", torch.ones(1))
    with pytest.raises(ConfigError, match="but accelerate cannot send `scale`"):
        _check_buffers(model, once)


def test_room_for_trained_weights_keeps_what_is_tied_and_leaves_what_is_frozen():
    model = nn.Sequential(*(nn.Linear(3, 3, device="meta") for _ in range(3)))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    make_room(model)
    assert model[0].weight is model[1].weight
    assert [p.device.type for p in model.parameters()] == ["cpu"] * 3 + ["meta"] * 2
    assert len({p.data_ptr() for p in model[:2].parameters()}) == 3


def test_the_command_line_refuses_replay_before_it_looks_at_data_and_model(tmp_path, capsys):
    options = {
        "model_name_or_path": "./none",
        "dataset_name": "./none.jsonl",
        "output_dir": str(tmp_path / "out"),
        "replay": "generated",
        "fsdp": "full_shard",
        "fsdp_config": "{cpu_ram_efficient_loading: true}",
    }
    assert main(["train", *(f"--{name}={value}" for name, value in options.items())]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "balora:" in text]
    assert "every process makes the reference of `replay` with them. Set `fsdp_cpu_ram" in line
    assert not (tmp_path / "out").exists()
