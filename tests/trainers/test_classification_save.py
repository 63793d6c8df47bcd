"""What a classification run leaves: it loads without balora, head and pooler included."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from balora.anchored import ADAPTER_FILE
from balora.models.classifier import load_classifier
from support.classification import ARCHITECTURES, logits_of, make_rows, make_trainer, save_body
from support.models import make_tokenizer
from support.training import run

CLASSES = ("no", "yes", "perhaps")
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
# what a user of the saved model does, who has transformers and peft alone
RELOAD = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
folder, found = Path(sys.argv[1]), {}
batch = torch.load(folder / "batch.pt")
for run in sorted(folder.glob("*/*/saved")):
    torch.manual_seed(12345)
    if (run / "adapter_config.json").exists():
        body, num_labels = run.parents[1] / "body", 1 if "regression" in str(run) else 3
        base = AutoModelForSequenceClassification.from_pretrained(body, num_labels=num_labels)
        model = PeftModel.from_pretrained(base, run)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(run)
    with torch.no_grad():
        found["/".join(run.parts[-3:-1])] = model.eval()(**batch).logits
assert "balora" not in sys.modules
torch.save(found, folder / "found.pt")
"""
RUNS = {
    "balora": {},
    "lora": {"method": "lora"},
    "full": {"method": "full"},
    "regression": {"num_labels": 1},
}


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Return the folder, and by architecture and run the logits before and after reloading."""
    folder, expected = tmp_path_factory.mktemp("save"), {}
    rows = make_rows()
    kept = [{k: row[k] for k in ("input_ids", "attention_mask")} for row in rows]
    torch.save(dict(make_tokenizer().pad(kept, return_tensors="pt")), folder / "batch.pt")
    for architecture in ARCHITECTURES:
        body = save_body(folder / architecture / "body", architecture)
        for name, settings in RUNS.items():
            num_labels = settings.get("num_labels", 3)
            tokenizer = make_tokenizer()
            if architecture == "roberta":  # its positions are counted by the padding token
                tokenizer.pad_token = "<s>"
            trainer = make_trainer(
                folder / architecture / name / "run",
                model=load_classifier(
                    body,
                    class_names=CLASSES if num_labels == 3 else None,
                    tokenizer=tokenizer,
                ),
                options={"processing_class": tokenizer},
                rows=make_rows(num_labels=num_labels),
                **settings,
            )
            run(trainer)
            trainer.save_model(str(folder / architecture / name / "saved"))
            expected[f"{architecture}/{name}"] = logits_of(trainer.model)
    subprocess.run(
        [sys.executable, "-c", RELOAD, str(folder)], env=ENVIRONMENT, check=True, timeout=600
    )
    return folder, expected, torch.load(folder / "found.pt")


@pytest.mark.slow  # 20 trainings; test_run_classification.py reloads one of the command's
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_process_without_balora_gives_the_same_logits(reloaded, architecture, name):
    _, expected, found = reloaded
    key = f"{architecture}/{name}"
    torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6)
    assert expected[key].std() > 1e-3


@pytest.mark.slow
def test_the_adapter_holds_the_head_and_the_pooler(reloaded):
    folder, *_ = reloaded
    saved = load_file(folder / "deberta-v3" / "balora" / "saved" / ADAPTER_FILE)
    whole = {key for key in saved if "lora_" not in key}
    assert whole == {
        f"base_model.model.{module}.{kind}"
        for module in ("classifier", "pooler.dense")
        for kind in ("weight", "bias")
    }


@pytest.mark.slow
def test_full_fine_tuning_saves_the_names_of_the_classes(reloaded):
    folder, *_ = reloaded
    config = AutoConfig.from_pretrained(folder / "bert" / "full" / "saved")
    assert config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    assert config.problem_type == "single_label_classification"
    regression = json.loads((folder / "bert" / "full" / "saved" / "config.json").read_text())
    assert regression["label2id"] == {"no": 0, "yes": 1, "perhaps": 2}
