"""The lines that a command prints last load its result: as printed, from another folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import pipeline

from balora.cli import main
from balora.errors import ConfigError
from balora.recipes.load import check_recipe
from balora.trainers.build import peft_config
from balora.usage import absolute_name, loading_lines
from support.models import make_model, make_tokenizer

SMALL = ["--lora_r", "2", "--lora_alpha", "2", "--max_steps", "2", "--use_cpu", "true"]
SMALL += ["--bf16", "false", "--report_to", "none", "--save_strategy", "no"]
SMALL += ["--learning_rate", "0.05", "--lora_target_modules", "all-linear"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder with models and data that are named by relative paths."""
    monkeypatch.chdir(tmp_path)
    for name in ("llama", "bert"):
        make_model(name).save_pretrained(name)
        make_tokenizer().save_pretrained(name)
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["neg", "pos", "so so"]
    for number in (2, 3):
        lines = [f"text {i},{names[i % number]}" for i in range(12)]
        Path(f"{number}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return tmp_path


def run_printed(text: str, folder: Path, monkeypatch):
    """Run the indented lines at the end of a command's output, and return ``model``."""
    lines = text.rpartition("These lines load it:\n\n")[2].splitlines()
    assert len(lines) > 1, text
    monkeypatch.chdir(folder)
    found: dict = {}
    exec("\n".join(lines), found)
    return found["model"].eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def check(text, place, monkeypatch):
    """Return the model of the printed lines, run in another folder."""
    elsewhere = place / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    model = run_printed(text, elsewhere, monkeypatch)
    monkeypatch.chdir(place)
    return model


def check_by_name(place, monkeypatch, model, names=None):
    """Load the run by its folder alone, from another one: the auto classes and a pipeline."""
    monkeypatch.chdir(place / "elsewhere")
    out, task, auto = str(place / "out"), "text-generation", AutoPeftModelForCausalLM
    given = {}
    if names is not None:
        task, auto = "text-classification", AutoPeftModelForSequenceClassification
        given = {"id2label": dict(enumerate(names)), "ignore_mismatched_sizes": True}
    if (place / "out/adapter_config.json").is_file():
        torch.testing.assert_close(logits(auto.from_pretrained(out, **given).eval()), logits(model))
    use = pipeline(task, model=out, model_kwargs=given)
    torch.testing.assert_close(logits(use.model), logits(model))
    if names is not None:
        assert use("a text")[0]["label"] in names
    monkeypatch.chdir(place)


@pytest.mark.parametrize("method", ["balora", "full"])
def test_generation(method, place, monkeypatch, capsys):
    own = SMALL if method == "balora" else [*SMALL[4:-4], "--learning_rate", "0.01"]
    words = ["train", "--method", method, "--model_name_or_path", "./llama", "--dataset_name"]
    assert main([*words, "rows.jsonl", "--output_dir", "out", *own]) == 0
    first = check(capsys.readouterr().out, place, monkeypatch)
    check_by_name(place, monkeypatch, first)
    assert not torch.equal(logits(first), logits(make_model("llama")))
    if method == "full":
        return
    for options in ([], ["--rank", "3"], ["--merge"]):
        assert main(["export", "out", "--base", "./llama", *options]) == 0
        other = check(capsys.readouterr().out, place, monkeypatch)
        tolerance = {"rtol": 0, "atol": 10 if "--rank" in options else 1e-4}
        torch.testing.assert_close(logits(other), logits(first), **tolerance)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("base", ["bert", "llama"])
def test_classification(base, number, place, monkeypatch, capsys):
    words = ["train", "--task", "classification", "--model_name_or_path", f"./{base}"]
    words += ["--dataset_name", f"{number}.csv", "--output_dir", "out", "--max_length", "16"]
    words += ["--ignore_mismatched_sizes", "true"]  # the encoder comes with a head for three
    assert main([*words, *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "`balora predict out TEXT` uses it" in printed
    model = check(printed, place, monkeypatch)
    names = ["neg", "pos", "so so"][:number]
    assert model.config.id2label == dict(enumerate(names))
    assert logits(model).shape == (1, number)
    check_by_name(place, monkeypatch, model, names)
    # padding is told from text: a short row in a batch is the row alone
    batch = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    with torch.no_grad():
        together = model(input_ids=batch, attention_mask=(batch != 0).long()).logits[1]
        alone = model(input_ids=batch[1:, :2]).logits[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert main(["export", "out", "--base", f"./{base}"]) == 0
    other = check(capsys.readouterr().out, place, monkeypatch)
    assert other.config.id2label == model.config.id2label
    torch.testing.assert_close(logits(other), logits(model))
    assert main(["export", "out", "--base", f"./{base}", "--merge"]) == 0
    merged = check(capsys.readouterr().out, place, monkeypatch)
    assert merged.config.id2label == model.config.id2label
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)


def test_a_saved_adapter_names_the_folder_of_its_base_by_the_whole_path(place, monkeypatch):
    words = ["train", "--model_name_or_path", "./llama", "--dataset_name", "rows.jsonl"]
    assert main([*words, "--output_dir", "out", *SMALL]) == 0
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "llama")
    assert absolute_name("some/model") == "some/model"


def test_a_revision_of_the_hub_stands_in_the_lines(tmp_path):
    config = {"base_model_name_or_path": "some/model", "task_type": "SEQ_CLS"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lines = loading_lines(tmp_path, revision="v1")
    assert (
        "from_pretrained('some/model', revision='v1', num_labels=1, problem_type='regression')"
        in lines
    )


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        loading_lines(tmp_path)


def test_a_language_model_is_asked_as_it_was_trained(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for template, asked in {
        "none": "prompt = 'Write a sentence.'",
        "alpaca": "### Instruction:\\nWrite a sentence.\\n\\n### Response:'",
        "chat": "prompt = [{'role': 'user', 'content': 'Write a sentence.'}]",
    }.items():
        assert asked in loading_lines(tmp_path, prompt_template=template)


def test_the_revision_of_a_base_is_in_the_config_of_its_adapter():
    fields = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    for revision, expected in (("main", None), ("v1", "v1")):
        recipe = check_recipe({**fields, "model_revision": revision})
        assert peft_config(recipe, "CAUSAL_LM").revision == expected
