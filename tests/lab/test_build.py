"""The laboratory on disk: what it holds, when it is built anew, and when it is not."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.config import DataConfig
from balora.data import load_examples
from balora.evaluation import text_loss
from balora.lab import corpus, problems
from balora.lab.build import build_lab
from balora.lab.config import LabConfig
from balora.lab.corpus import build_corpus
from balora.lab.planted import plant_world
from balora.lab.task import task_rows

TINY = LabConfig(
    num_people=20,
    num_stories=100,
    num_passes=2,
    max_steps=2,
    vocab_size=400,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    block_size=64,
    batch_size=2,
    num_train=20,
    num_test=5,
    label_noise=0.25,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def lab(cache):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build_lab(TINY, cache=cache)
    torch.set_num_threads(threads)


@pytest.fixture
def no_training(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("pre-trained again")

    monkeypatch.setattr("balora.lab.pretrain.pretrain", fail)


def entries(cache):
    return sorted(path.name for path in (cache / "lab").iterdir())


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_model_and_its_tokenizer_load(lab):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(lab.model),
        AutoTokenizer.from_pretrained(lab.model),
    )
    assert model.config.hidden_size == 16
    assert len(tokenizer) == model.config.vocab_size <= 400


def test_the_retention_text_is_what_the_record_has_the_loss_of(lab):
    text = lab.retention_file.read_text("utf-8")
    assert text == build_corpus(TINY.pretraining().corpus).held_out_text()
    record = json.loads((lab.model.parent / "lab.json").read_text())
    loss = text_loss(
        AutoModelForCausalLM.from_pretrained(lab.model).eval(),
        AutoTokenizer.from_pretrained(lab.model),
        text,
        block=64,
    )
    assert loss == pytest.approx(record["held_out_loss"], rel=1e-5)


def test_the_record_says_how_it_was_made(lab):
    record = json.loads((lab.model.parent / "lab.json").read_text())
    settings = dataclasses.asdict(TINY.pretraining())
    assert {name: record["recipe"][name] for name in settings} == settings
    assert record["versions"].keys() >= {"torch", "transformers"}
    assert record["seconds"] > 0
    assert [step for step, _ in record["loss_curve"]] == [1, 2]
    assert record["statements"].keys() == {"none", "wrong", "copied", "scrambled"}
    assert "command" not in record


def test_no_file_names_the_place_where_it_was_built(lab, cache):
    for path in lab.model.parent.rglob("*"):
        assert path.is_dir() or str(cache).encode() not in path.read_bytes()


def test_the_world_is_the_planted_one(lab):
    assert lab.world == plant_world(TINY.pretraining().corpus)


def test_the_files_of_the_task_are_its_rows(lab):
    expected = task_rows(TINY.task())
    assert rows(lab.train_file) == expected.train
    assert rows(lab.test_file) == expected.test
    assert rows(lab.noisy_file) == expected.noisy
    assert len(expected.noisy) == 5


def test_the_files_are_data_that_can_be_trained_on(lab):
    for path, number in ((lab.train_file, 20), (lab.test_file, 5), (lab.noisy_file, 5)):
        examples = load_examples(DataConfig(dataset_name=str(path)), split="train").dataset
        assert len(examples) == number


@pytest.mark.usefixtures("no_training")
def test_a_second_time_it_is_found(lab, cache):
    before = entries(cache)
    assert build_lab(TINY, cache=cache) == lab
    assert build_lab(dataclasses.replace(TINY, noise_rate=0.2), cache=cache) == lab
    assert entries(cache) == before


@pytest.mark.usefixtures("no_training")
def test_another_task_takes_the_same_model(lab, cache):
    clean = build_lab(dataclasses.replace(TINY, label_noise=0), cache=cache)
    assert clean.model == lab.model
    assert clean.noisy_file is None
    assert clean.train_file.parent != lab.train_file.parent
    assert rows(clean.train_file) != rows(lab.train_file)
    assert len(rows(lab.noisy_file)) == 5


def test_another_world_is_a_new_entry_and_the_old_one_stays(lab, cache):
    before = {p: p.read_bytes() for p in lab.model.parent.rglob("*") if p.is_file()}
    other = build_lab(dataclasses.replace(TINY, noise_rate=0.0), cache=cache)
    assert other.model.parent != lab.model.parent
    assert other.world.corrupted == {}
    assert before == {p: p.read_bytes() for p in lab.model.parent.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("no_training", "lab")
@pytest.mark.parametrize(
    "change",
    [{"zipf_exponent": 0.9}, {"stereotype_rate": 0.8}, {"num_layers": 2}, {"max_steps": 1}],
)
def test_what_decides_the_model_is_in_the_key(cache, change):
    with pytest.raises(AssertionError, match="pre-trained again"):
        build_lab(dataclasses.replace(TINY, **change), cache=cache)


@pytest.mark.usefixtures("no_training", "lab")
def test_changed_code_is_a_new_entry(cache, monkeypatch):
    monkeypatch.setattr(corpus, "GENERIC_FRAMES", ("The {profession} says what {pronoun} has.",))
    with pytest.raises(AssertionError, match="pre-trained again"):
        build_lab(TINY, cache=cache)


@pytest.mark.usefixtures("no_training")
def test_changed_wording_of_the_task_is_a_new_entry(lab, cache, monkeypatch):
    monkeypatch.setattr(problems, "_QUESTIONS", ("How many {things} has {one}?",) * 3)
    changed = build_lab(TINY, cache=cache)
    assert changed.model == lab.model
    assert changed.train_file != lab.train_file


@pytest.mark.usefixtures("no_training")
def test_without_a_folder_the_variable_says_where(lab, cache, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(cache))
    assert build_lab(TINY) == lab
