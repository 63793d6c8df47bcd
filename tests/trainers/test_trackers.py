"""What a tracker is handed: every term, its coefficient, and the settings of the method."""

from __future__ import annotations

import json

import pytest

from support.command_line import train_with
from support.models import make_model, make_tokenizer

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_sees_every_term_and_every_coefficient(tmp_path, monkeypatch):
    logs = tmp_path / "logs"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(logs))
    make_model("llama").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(8)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"model_name_or_path": str(tmp_path / "base"), "dataset_name": str(data)}
    fields |= {"output_dir": str(tmp_path / "out"), "max_steps": "2", "lora_r": "2"}
    fields |= {"lora_alpha": "2", "save_strategy": "no", "consistency_coef": "0.125"}
    assert train_with({**fields, "report_to": "tensorboard"}, []) == 0
    files = list(logs.rglob("events.out.tfevents.*"))
    assert files
    events = event_accumulator.EventAccumulator(str(files[0].parent))
    events.Reload()
    tags = events.Tags()
    for term in ("consistency", "diversity", "svd"):
        assert {f"train/{term}_loss", f"train/{term}_coef"} <= set(tags["scalars"])
        assert len(events.Scalars(f"train/{term}_loss")) == 2
    assert "train/task_loss" in tags["scalars"]
    assert events.Scalars("train/consistency_coef")[0].value == 0.125
    text = b"".join(
        part
        for tag in tags["tensors"]
        for event in events.Tensors(tag)
        for part in event.tensor_proto.string_val
    ).decode()
    assert '"consistency_coef": 0.125' in text
