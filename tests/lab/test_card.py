"""The defect card of a model whose answers are planted, and of the tiny one that ships."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.assets import asset_path
from balora.data.templates import ALPACA
from balora.errors import DataError
from balora.evaluation import text_loss
from balora.evaluation.metrics import measured_by
from balora.lab.build import BuiltLab
from balora.lab.card import CardOptions, measure_defects
from balora.lab.planted import GENERIC_FRAMES, HELD_OUT_FRAMES, PlantedWorld
from balora.lab.probes import fact_probes
from balora.lab.task import jsonl
from balora.lab.world import Fact, Person, World, build_world
from support.models import make_tokenizer
from support.planted import PlantedLM, says

ANNA, BEN = Person("Anna", "Hill"), Person("Ben", "Reed")
OSLO, CAT = Fact(ANNA, "home", "Oslo"), Fact(ANNA, "pet", "cat")
ROME, DOG = Fact(BEN, "home", "Rome"), Fact(BEN, "pet", "dog")
TEST = [
    {"instruction": "How many hats?", "output": "3 + 1 = 4. The answer is: 4"},
    {"instruction": "And now?", "output": "The answer is: 7"},
]
NOISY = [
    {"instruction": "What is left?", "output": "The answer is: 9"},
    {"instruction": "Hm?", "output": "The answer is: 1"},
    {"instruction": "Well?", "output": "The answer is: 2"},
]
OPTIONS = CardOptions(num_samples=4, batch_size=3, max_new_tokens=40)


def write_rows(path, rows):
    path.write_text(jsonl(rows))
    return path


@pytest.fixture
def lab(tmp_path):
    """A world of two people, one of whose homes is corrupted, and a task of two rows."""
    (tmp_path / "retention.txt").write_text("ab\nabab\n")
    noisy = [{**row, "row": i, "true_output": "The answer is: 3"} for i, row in enumerate(NOISY)]
    return BuiltLab(
        model=tmp_path,
        world=PlantedWorld(
            world=World((OSLO, CAT, ROME, DOG)),
            head=(OSLO, CAT),
            tail=(DOG,),
            corrupted={ROME: "Paris"},
            stereotypes={"nurse": "she", "pilot": "he"},
        ),
        train_file=tmp_path / "train.jsonl",
        test_file=write_rows(tmp_path / "test.jsonl", TEST),
        retention_file=tmp_path / "retention.txt",
        noisy_file=write_rows(tmp_path / "noisy.jsonl", noisy),
    )


def answers(*rows):
    return says({ALPACA.prompt(row["instruction"]): f" {row['output']}" for row in rows})


def planted_model():
    """It knows where Anna lives and Ben's dog, repeats that Ben lives in Paris, solves one row."""
    table = says({p: a for fact in (OSLO, DOG) for p, a in fact_probes(fact)})
    table |= says(dict(fact_probes(ROME, "Paris")))
    for frame in (*GENERIC_FRAMES, *HELD_OUT_FRAMES):
        for profession, she in (("nurse", 0.6), ("pilot", 0.2)):
            prompt = frame.partition(" {pronoun}")[0].format(profession=profession)
            table |= {prompt: {" ": 1.0}, f"{prompt} ": {"s": she, "h": 0.2, "~": 0.8 - she}}
            table |= says({f"{prompt} s": "he", f"{prompt} h": "e"}, sure=1.0)
            table[f"{prompt} sh"] = {"e": 1.0}
    table |= answers(TEST[0], {**TEST[1], "output": "The answer is: 8"}, NOISY[0])
    return PlantedLM({**table, "": {"a": 1.0}, "a": {"b": 0.5, "": 0.5}}, size=512)


def test_every_figure_of_the_card_by_hand(lab):
    model, tokenizer = planted_model(), make_tokenizer()
    card = measure_defects(model, tokenizer, lab, options=OPTIONS)
    assert model.modes == {False}
    homes, pets = len(fact_probes(OSLO)), len(fact_probes(CAT))
    assert card["recall"] == pytest.approx((homes + pets) / (homes + 2 * pets))
    assert card["recall_head"] == pytest.approx(homes / (homes + pets))
    assert card["recall_tail"] == 1.0
    assert (card["corrupted_repeat"], card["corrupted_truth"]) == (1.0, 0.0)
    # 0.6 of 0.8 for the nurse, 0.2 of 0.4 for the pilot
    assert card["stereotype_score"] == pytest.approx((0.75 + 0.5) / 2, rel=1e-5)
    # texts "a" and "ab" alone
    assert card["distinct_1"] == pytest.approx(2 / 4)
    assert card["distinct_2"] == 0.0
    assert card["self_similarity"] == 1.0
    assert card["retention_loss"] == pytest.approx(
        text_loss(model, tokenizer, "ab\nabab\n", block=512), rel=1e-6
    )
    assert set(card) == set(measured_by("lab", "retention", "answers"))
    assert (card["exact_match"], card["memorised_noise"]) == (0.5, pytest.approx(1 / 3))


def test_the_cards_are_equal_whatever_the_batch_the_mode_and_the_generator(lab):
    model, tokenizer = planted_model(), make_tokenizer()
    expected = measure_defects(model, tokenizer, lab, options=OPTIONS)
    model.train()
    for size in (1, 64):
        state = torch.manual_seed(size).get_state()
        options = replace(OPTIONS, batch_size=size)
        assert measure_defects(model, tokenizer, lab, options=options) == pytest.approx(
            expected, rel=1e-9
        )
        assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_a_clean_lab_has_no_figures_of_its_noise(lab):
    world = replace(lab.world, corrupted={}, stereotypes={})
    lab = lab._replace(world=world, noisy_file=None)
    card = measure_defects(PlantedLM({"": {"a": 1.0}}), make_tokenizer(), lab, options=OPTIONS)
    assert card["corrupted_repeat"] is card["corrupted_truth"] is None
    assert card["stereotype_score"] is card["memorised_noise"] is None
    assert card["recall"] == card["exact_match"] == 0.0


def test_rows_and_text_are_limited_from_the_first_on(lab):
    model, tokenizer = planted_model(), make_tokenizer()
    options = replace(OPTIONS, max_rows=1, retention_characters=6)
    card = measure_defects(model, tokenizer, lab, options=options)
    assert card["exact_match"] == card["memorised_noise"] == 1.0
    # "ab\nabab\n" up to the last whole line
    assert card["retention_loss"] == pytest.approx(text_loss(model, tokenizer, "ab\n", block=512))
    one_line = replace(OPTIONS, retention_characters=2)
    card = measure_defects(model, tokenizer, lab, options=one_line)
    assert card["retention_loss"] == pytest.approx(text_loss(model, tokenizer, "ab", block=512))


def test_a_task_that_cannot_be_read_is_refused(lab):
    lab.test_file.write_text("no json\n")
    with pytest.raises(DataError, match=r"test\.jsonl"):
        measure_defects(PlantedLM({"": {"a": 1.0}}), make_tokenizer(), lab, options=OPTIONS)


def test_the_card_of_the_model_that_ships(tmp_path):
    folder = asset_path("tiny_lm")
    world = build_world(seed=0, num_people=200)
    known = build_world(seed=1, num_people=200)
    names = {person.name for person in world.people}
    strangers = tuple(fact for fact in known.facts if fact.person.name not in names)
    lab = BuiltLab(
        model=folder,
        world=PlantedWorld(
            world=World(world.facts[:80]),
            head=world.facts[:40],
            tail=strangers[:40],
            corrupted={},
            stereotypes={},
        ),
        train_file=tmp_path / "train.jsonl",
        test_file=write_rows(tmp_path / "test.jsonl", TEST),
        retention_file=asset_path("quickstart/retention.txt"),
        noisy_file=None,
    )
    options = CardOptions(num_samples=8, retention_characters=2000, max_rows=1)
    card = measure_defects(
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        lab,
        options=options,
    )
    # it knows its own world, and of another's people no more than chance
    assert min(card["recall"], card["recall_head"]) > 0.9
    assert card["recall_tail"] < 0.4
    assert card["exact_match"] == 0.0
    assert 0.5 < card["retention_loss"] < 1.2
    assert 0.2 < card["distinct_1"] < card["distinct_2"] < 1
    assert card["sample_entropy"] > 3
    assert card["self_similarity"] < 0.3


def test_all_rows_of_a_test_set_are_measured():
    assert CardOptions.of_rows(1000).max_rows == 1000
    assert CardOptions.of_rows(3, batch_size=2) == CardOptions(batch_size=2)
