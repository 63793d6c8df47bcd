"""`balora lab` on a world of four people and a model that has seen two batches."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.config.values import dump_mapping
from balora.errors import ConfigError, WriteError
from balora.evaluation import format_table
from balora.lab import command
from balora.lab.build import build_lab
from balora.lab.card import measure_defects
from balora.lab.config import LabConfig

TINY = {
    "num_people": 4,
    "num_stories": 5,
    "num_passes": 1,
    "max_steps": 2,
    "batch_size": 2,
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_train": 6,
    "num_test": 2,
    "label_noise": 0.5,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with one model."""
    folder = tmp_path_factory.mktemp("cache")
    build_lab(LabConfig(**TINY), cache=folder)
    return folder


@pytest.fixture
def recipe(tmp_path, cache, monkeypatch):
    """A recipe of that lab, and a cache that has it."""
    monkeypatch.setenv("BALORA_CACHE", str(cache))
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_mapping({"learning_rate": 1e-3, "lab": TINY}))
    return path


def lab(*given, **options):
    """Return what the command shows."""
    shown = []
    command.lab(*given, show=shown.append, **options)
    return "\n".join(shown)


def make_run(folder, model):
    """An adapter that is not 0, on the model of the lab."""
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "up_proj"]),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=generator)
    adapted.save_pretrained(str(folder))
    return folder


def test_the_card_of_the_base_and_of_a_run_beside_it(recipe, tmp_path):
    built = build_lab(LabConfig(**TINY))
    run = make_run(tmp_path / "lora", built.model)
    text = lab([run], recipe, {}, json_file=tmp_path / "figures.json")
    tokenizer = AutoTokenizer.from_pretrained(built.model)
    base = AutoModelForCausalLM.from_pretrained(built.model)
    expected = measure_defects(base, tokenizer, built)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["base", "lora"]
    assert {card.pop("dtype") for card in figures.values()} == {"float32"}
    assert figures["base"] == pytest.approx(expected, rel=1e-6)
    assert figures["lora"]["retention_loss"] != figures["base"]["retention_loss"]
    assert figures["lora"]["memorised_noise"] is not None
    assert text.startswith(f"{format_table(figures)}\nComputed in float32.\n\nThe model is ")
    assert f"The model is {built.model}." in text
    files = (built.train_file, built.test_file, built.retention_file, built.noisy_file)
    assert all(str(file.relative_to(built.model.parent)) in text for file in files)


def test_the_card_is_shown_before_its_file_is_written(recipe, monkeypatch):
    def full(*_, **__):
        raise WriteError("no space left")

    monkeypatch.setattr("balora.lab.command.write_json", full)
    shown = []
    with pytest.raises(WriteError):
        command.lab([], recipe, {}, show=shown.append, json_file=recipe.with_name("figures.json"))
    assert "Computed in float32." in shown[0]


def test_the_users_own_folder_is_short(recipe, cache, monkeypatch):
    monkeypatch.setenv("HOME", str(cache.parent))
    built = build_lab(LabConfig(**TINY))
    text = lab([], recipe, {})
    assert f"The model is ~/{built.model.relative_to(cache.parent)}." in text
    assert str(cache) not in text


def test_options_replace_the_fields_of_the_recipe(recipe, cache):
    before = len(list((cache / "lab").iterdir()))
    text = lab([], recipe, {"label_noise": "0", "num_test": "3"})
    built = build_lab(LabConfig(**{**TINY, "label_noise": 0.0, "num_test": 3}))
    assert str(built.test_file.relative_to(built.model.parent)) in text
    assert "memorised noisy labels" not in text
    # the task is another one, the model is not
    assert len(list((cache / "lab").iterdir())) == before


def test_wrong_fields_and_recipes_are_refused(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"`num_peple` is no field of the lab .*`num_people`"):
        lab([], recipe, {"num_peple": "3"})
    with pytest.raises(ConfigError, match=r"`noise_rate` must be 0 or greater .* got 2"):
        lab([], recipe, {"noise_rate": "2"})
    for content in ({"learning_rate": 1e-3}, {"lab": 3}, {"lab": None}):
        recipe.write_text(dump_mapping(content))
        with pytest.raises(ConfigError, match="has no mapping `lab`"):
            lab([], recipe, {})
    with pytest.raises(ConfigError, match="does not exist"):
        lab([], tmp_path / "none.yaml", {})


def test_runs_that_are_none_or_share_a_name_are_refused(recipe, tmp_path):
    for name in ("a/run", "b/run", "base"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match="`missing` does not exist"):
        lab([type(tmp_path)("missing")], recipe, {})
    with pytest.raises(ConfigError, match="must have different names"):
        lab([tmp_path / "a/run", tmp_path / "b/run"], recipe, {})
    with pytest.raises(ConfigError, match="none may be `base`"):
        lab([tmp_path / "base"], recipe, {})
    with pytest.raises(ConfigError, match="holds neither an adapter nor a model"):
        lab([tmp_path / "a/run"], recipe, {})


def test_a_run_of_another_model_is_refused_and_a_moved_cache_is_not(recipe, tmp_path, cache):
    built = build_lab(LabConfig(**TINY))
    run = make_run(tmp_path / "lora", built.model)
    config = json.loads((run / "adapter_config.json").read_text())
    key = built.model.parent.name
    for base, is_refused in ((f"elsewhere/lab/{key}/model", False), ("elsewhere/model", True)):
        config["base_model_name_or_path"] = base
        (run / "adapter_config.json").write_text(json.dumps(config))
        if is_refused:
            with pytest.raises(ConfigError, match=f"was fine-tuned from {base}"):
                lab([run], recipe, {})
        else:
            assert "lora" in lab([run], recipe, {})
    # the run's own recipe goes before
    (run / "recipe.yaml").write_text(dump_mapping({"model_name_or_path": str(built.model)}))
    assert "lora" in lab([run], recipe, {})


def test_the_defaults_need_no_recipe(cache, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(cache))
    given = {name: str(value) for name, value in TINY.items()}
    assert str(cache) in lab([], None, given)
    assert {field.name for field in fields(LabConfig)} >= TINY.keys()
