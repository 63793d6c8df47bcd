"""What ships: a model that learned its world, data that the generator yields, small files."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from balora.assets import asset_path
from balora.evaluation import MeasureOptions, text_loss
from balora.evaluation.exact_match import generate
from balora.lab.corpus import CorpusSettings, build_corpus
from balora.lab.pretrain import PretrainSettings
from balora.lab.quickstart import QuickstartSettings, quickstart_files
from balora.lab.world import build_world

MODEL = asset_path("tiny_lm")
LOG = json.loads((MODEL / "pretrain_log.json").read_text("utf-8"))
BLOCK = LOG["settings"]["block_size"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


def test_the_files_are_small():
    sizes = {path: path.stat().st_size for path in MODEL.parent.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 6_000_000
    assert (MODEL / "model.safetensors").stat().st_size < 5_500_000


def test_no_file_names_a_place():
    for path in [*MODEL.iterdir(), *asset_path("quickstart").iterdir()]:
        if path.suffix != ".safetensors":
            assert not re.search(r"/(home|root|tmp|work|Users)/|\\\\Users", path.read_text("utf-8"))


def test_the_model_is_what_the_log_says(model):
    assert model.num_parameters() == LOG["num_parameters"] <= 1_300_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    settings = PretrainSettings()
    logged = LOG["settings"]
    assert logged["corpus"]["num_people"] == settings.corpus.num_people
    assert {name: logged[name] for name in ("num_passes", "hidden_size", "learning_rate")} == {
        name: getattr(settings, name) for name in ("num_passes", "hidden_size", "learning_rate")
    }


def test_the_held_out_loss_is_the_logged_one_and_far_below_an_untrained_model(model, tokenizer):
    text = (MODEL / "held_out.txt").read_text("utf-8")
    loss = text_loss(model, tokenizer, text, block=BLOCK)
    assert loss == pytest.approx(LOG["held_out_loss"], rel=1e-4)
    torch.manual_seed(0)
    untrained = text_loss(LlamaForCausalLM(model.config).eval(), tokenizer, text, block=BLOCK)
    assert untrained == pytest.approx(LOG["held_out_loss_untrained"], rel=0.05)
    assert loss < untrained / 5


def test_the_model_learned_facts_and_sums(model, tokenizer):
    world = build_world(seed=LOG["seed"], num_people=LOG["settings"]["corpus"]["num_people"])
    facts = [fact for fact in world.facts if fact.attribute == "profession"][:100]
    sums = [(a, b) for a in range(10) for b in range(1, 10)]
    options = MeasureOptions(max_new_tokens=4)
    told = generate(
        model, tokenizer, [f"{fact.person.name} works as a" for fact in facts], options=options
    )
    added = generate(model, tokenizer, [f"{a} + {b} =" for a, b in sums], options=options)
    known = sum(f" {fact.value}." in text for fact, text in zip(facts, told, strict=True))
    right = sum(text.startswith(f" {a + b}.") for (a, b), text in zip(sums, added, strict=True))
    assert known >= 0.9 * len(facts)
    assert right >= 0.9 * len(sums)


def test_every_piece_of_an_answer_was_read_in_pre_training(tokenizer):
    corpus = build_corpus(CorpusSettings(**LOG["settings"]["corpus"]))
    lines = tokenizer(corpus.train_lines(1), add_special_tokens=False)["input_ids"]
    read = {token for line in lines for token in line}
    rows = asset_path("quickstart/train.jsonl").read_text("utf-8").splitlines()
    outputs = [" " + json.loads(row)["output"] for row in rows]
    written = tokenizer(outputs, add_special_tokens=False)["input_ids"]
    assert {token for ids in written for token in ids} <= read


def test_the_data_is_what_the_generator_yields_for_the_logged_seed():
    log = json.loads(asset_path("quickstart/data_log.json").read_text("utf-8"))
    for name, text in quickstart_files(QuickstartSettings(seed=log["seed"])).items():
        assert asset_path(f"quickstart/{name}").read_text("utf-8") == text


def test_the_retention_text_is_the_text_held_out_from_this_model():
    held_out = (MODEL / "held_out.txt").read_text("utf-8")
    assert asset_path("quickstart/retention.txt").read_text("utf-8") == held_out
    assert build_corpus(CorpusSettings(**LOG["settings"]["corpus"])).held_out_text() == held_out


@pytest.mark.parametrize("name", ["tiny", "../__init__.py", "/etc", ""])
def test_an_unknown_asset_is_refused_with_the_list(name):
    with pytest.raises(FileNotFoundError, match=r"quickstart/train\.jsonl"):
        asset_path(name)
