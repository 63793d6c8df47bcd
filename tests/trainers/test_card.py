"""The card of a run: what it was made from and with, how it did, and nothing that is not known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from balora.cli import main
from balora.config.replay import ReplayConfig
from support.models import make_model, make_tokenizer
from support.training import make_rows, make_trainer

SMALL = ["--lora_r", "2", "--lora_alpha", "2", "--max_steps", "2", "--use_cpu", "true"]
SMALL += ["--bf16", "false", "--report_to", "none", "--save_strategy", "no"]


def card_in(folder: Path) -> ModelCard:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "None" not in text
    assert "More Information Needed" not in text
    assert "license: license" not in text
    card = ModelCard(text)
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert set(card.data.tags) >= {"balora"}
    for result in card.data.eval_results or []:
        assert result.dataset_type
        assert result.metric_type
        assert result.metric_value is not None
    return card


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
@pytest.mark.parametrize("method", ["balora", "full"])
def test_a_run_of_generation(method, tmp_path):
    model = make_model("llama")
    model.config._name_or_path = model.name_or_path = "some/model"
    off = dict.fromkeys(("consistency_coef", "diversity_coef", "svd_coef"), 0.0)
    trainer = make_trainer(
        tmp_path / "run",
        model=model,
        objective=off if method == "full" else {"consistency_coef": 0.25},
        save_strategy="steps",
        save_steps=2,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        options={
            "eval_dataset": make_rows(3),
            **({"peft_config": None} if method == "full" else {}),
        },
    )
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run/checkpoint-2"):
        card = card_in(folder)
        assert card.data.base_model == "some/model"
        assert card.data.library_name == ("transformers" if method == "full" else "peft")
        assert card.data.pipeline_tag == "text-generation"
        relation = "finetune" if method == "full" else "adapter"
        assert card.data.to_dict()["base_model_relation"] == relation
        assert "The licence is that of the base model." in card.text
        assert "2408.04556" in card.text
        assert "| learning_rate | 0.02 |" in card.text
        assert "How to load it" in card.text
    assert "| eval_loss |" in card_in(tmp_path / "run").text
    assert ("| consistency_coef | 0.25 |" in card.text) == (method == "balora")
    assert ("2404.02948" in card.text) == (method == "balora")


def test_replay_is_named_with_its_source(tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    replay = ReplayConfig(
        replay="generated", replay_num_texts=4, replay_length=8, replay_batch_size=2
    )
    trainer = make_trainer(tmp_path / "run", max_steps=1, options={"replay_config": replay})
    trainer.train()
    trainer.save_model()
    card = card_in(tmp_path / "run")
    assert "| replay | generated |" in card.text
    assert "2505.13811" in card.text
    assert "base_model" not in card.data.to_dict()


def test_a_classifier_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model("bert", num_labels=2).save_pretrained("bert")
    make_tokenizer().save_pretrained("bert")
    Path("bert/README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    lines = [f"text {i},{'pos' if i % 2 else 'neg'}" for i in range(12)]
    Path("train.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    words = ["train", "--task", "classification", "--model_name_or_path", "./bert"]
    words += ["--dataset_name", "train.csv", "--eval_dataset_name", "train.csv"]
    assert main([*words, "--output_dir", "out", "--max_length", "16", *SMALL]) == 0
    card = card_in(tmp_path / "out")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-classification"
    assert "| dataset_name | train.csv |" in card.text
    accuracy = json.loads(Path("out/results.json").read_text())["final"]["validation"]["accuracy"]
    assert f"| validation: accuracy | {round(accuracy, 4)} |" in card.text
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["accuracy"].metric_value == round(accuracy, 4)
    assert found["accuracy"].dataset_name == "train.csv"
    assert {"macro_f1", "ece"} <= found.keys()
    assert card.data.model_name == "out"
    assert "| training rows | 12 |" in card.text
    assert "The licence is that of" not in card.text
    assert "accuracy of the majority class" in card.text
    code = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    found: dict = {}
    exec(code, found)
    assert found["model"].config.id2label == {0: "neg", 1: "pos"}
