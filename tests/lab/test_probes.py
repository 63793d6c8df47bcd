"""Probes against a model whose every answer is planted, and against generation."""

from __future__ import annotations

import math

import pytest
import torch

from balora.evaluation import MeasureOptions
from balora.evaluation.exact_match import generate
from balora.lab.probes import (
    cloze_frames,
    fact_probes,
    measure_recall,
    measure_stereotype,
    read_completions,
)
from balora.lab.world import TEMPLATES, Fact, Person, build_world
from support.models import make_model, make_tokenizer
from support.planted import PlantedLM, says

ANNA, BEN = Person("Anna", "Hill"), Person("Ben", "Reed")
OSLO, CAT, ROME, DOG = (
    Fact(ANNA, "home", "Oslo"),
    Fact(ANNA, "pet", "cat"),
    Fact(BEN, "home", "Rome"),
    Fact(BEN, "pet", "dog"),
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def ask(model, **arguments):
    defaults = {"facts": [OSLO, CAT, ROME, DOG], "head": [], "tail": [], "corrupted": {}}
    settings = {"max_facts": 100, "seed": 0, "batch_size": 3}
    return measure_recall(model, make_tokenizer(), **(defaults | settings | arguments))


# what is asked


def test_frames_name_the_person_first_and_end_before_the_value():
    frames = cloze_frames()
    assert frames.keys() == TEMPLATES.keys()
    assert all(len(own) >= 2 for own in frames.values())
    for attribute, own in frames.items():
        for frame in own:
            wordings = [t.replace("{subject}", "{name}") for t in TEMPLATES[attribute]]
            assert any(wording.startswith(f"{frame} {{value}}") for wording in wordings)
            assert frame.count("{") == 1
    assert "{name} lives in" in frames["home"]
    assert "The work of {name} is that of a" in frames["profession"]
    # the value comes before the name there
    assert not any(frame.startswith(("In", "As a")) for own in frames.values() for frame in own)


def test_no_frame_asks_for_two_attributes():
    # "Anna has a" may go on with a cat or with a house in Oslo
    assert "{name} has a" not in cloze_frames()["pet"]
    assert "{name} has a house in" in cloze_frames()["home"]


def test_a_probe_of_a_fact_holds_the_name_and_the_value():
    assert ("Anna Hill lives in", " Oslo") in fact_probes(OSLO)
    assert ("Anna Hill lives in", " Rome") in fact_probes(OSLO, "Rome")
    assert len(fact_probes(OSLO)) == len(cloze_frames()["home"])


# how it is read


def test_every_token_of_a_completion_must_be_the_greedy_choice(tokenizer):
    table = says({"a": " cat"})
    table["a c"] = {"a": 0.4, "o": 0.6}
    pairs = [("a", " cat"), ("a", " c"), ("a", " cot")]
    found = read_completions(PlantedLM(table), tokenizer, pairs, batch_size=2)
    assert [completion.is_greedy for completion in found] == [False, True, False]
    logs = [math.log(0.9) * 3 + math.log(0.4), math.log(0.9) * 2]
    assert [completion.log_prob for completion in found[:2]] == pytest.approx(logs, rel=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_is_greedy_is_what_would_be_generated(architecture, tokenizer):
    model = make_model(architecture)
    prompts = ["a", "3 + 4 is what?", "a longer prompt than the two others together"]
    texts = generate(model, tokenizer, prompts, options=MeasureOptions(max_new_tokens=3))
    assert all(len(text) == 3 for text in texts)  # no special token among them
    pairs = [(prompt, text) for prompt in prompts for text in texts]
    found = read_completions(model, tokenizer, pairs, batch_size=4)
    expected = [text == own for own in texts for text in texts]
    assert [completion.is_greedy for completion in found] == expected


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_log_probabilities_match_a_loop_and_no_batch_changes_them(architecture, tokenizer):
    model = make_model(architecture)
    pairs = [("a", " b"), ("What is it?", " cat and dog"), ("12", "3")]
    expected = []
    for prompt, completion in pairs:
        ids = tokenizer(prompt + completion).input_ids
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        start = len(tokenizer(prompt).input_ids)
        expected.append(sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids))))
    for size in (1, 2, 3):
        found = read_completions(model, tokenizer, pairs, batch_size=size)
        assert [completion.log_prob for completion in found] == pytest.approx(expected, rel=1e-5)


def test_a_model_in_training_is_read_without_dropout(tokenizer):
    model = make_model("gpt2")  # its config has dropout 0.1
    pairs = [("What is it?", " cat and dog")]
    expected = read_completions(model, tokenizer, pairs, batch_size=1)
    assert read_completions(model.train(), tokenizer, pairs, batch_size=1) == expected
    assert all(module.training for module in model.modules())


# recall


def answers_of(*facts):
    return says({prompt: answer for fact in facts for prompt, answer in fact_probes(fact)})


def test_recall_counts_probes_of_each_kind():
    model = PlantedLM(answers_of(OSLO, CAT))
    figures = ask(model, head=[OSLO], tail=[ROME, CAT])
    homes, pets = len(fact_probes(OSLO)), len(fact_probes(CAT))
    assert homes != pets  # so that a mean over facts is another number
    assert figures.recall == pytest.approx(0.5)
    assert figures.head == 1.0
    assert figures.tail == pytest.approx(pets / (homes + pets))
    assert (figures.corrupted_truth, figures.corrupted_repeat) == (None, None)


def test_some_wordings_of_a_fact_are_some_of_its_probes():
    prompt, answer = fact_probes(OSLO)[0]
    figures = ask(PlantedLM(says({prompt: answer})), facts=[OSLO], head=[OSLO])
    assert figures.recall == figures.head == pytest.approx(1 / len(fact_probes(OSLO)))
    assert figures.tail is None


def test_a_value_that_goes_on_is_said_all_the_same():
    table = says({prompt: answer + " at home." for prompt, answer in fact_probes(CAT)})
    assert ask(PlantedLM(table), facts=[CAT]).recall == 1.0


def test_corrupted_facts_count_for_themselves():
    # of Rome it repeats the wrong value, of the dog it says the truth in one wording
    prompt, answer = fact_probes(DOG)[0]
    table = {**answers_of(OSLO), **says(dict(fact_probes(ROME, "Paris"))), **says({prompt: answer})}
    figures = ask(PlantedLM(table), corrupted={ROME: "Paris", DOG: "hen"})
    homes, pets = len(fact_probes(ROME)), len(fact_probes(DOG))
    assert figures.recall == pytest.approx(homes / (homes + pets))  # of Oslo and the cat alone
    assert figures.corrupted_repeat == pytest.approx(homes / (homes + pets))
    assert figures.corrupted_truth == pytest.approx(1 / (homes + pets))


def test_nothing_but_corrupted_facts_leaves_no_recall():
    figures = ask(PlantedLM({}), facts=[OSLO], corrupted={OSLO: "Rome"})
    assert (figures.recall, figures.corrupted_repeat, figures.corrupted_truth) == (None, 0.0, 0.0)


def test_facts_are_drawn_by_the_seed_and_of_every_attribute():
    world = build_world(seed=0, num_people=40)
    known = [fact for fact in world.facts if fact.attribute == "home"]
    model = PlantedLM(answers_of(*known))
    shares = [
        ask(model, facts=world.facts, max_facts=40, seed=seed, batch_size=256).recall
        for seed in (0, 0, 1, 2, 3)
    ]
    assert shares[0] == shares[1]
    assert len(set(shares)) > 1
    # every fourth fact is a home: evenly spaced ones would be all or none of them
    assert all(0.05 < share < 0.6 for share in shares)


# the stereotype


FRAMES = (
    "The {profession} said that {pronoun} was late.",
    "Today the {profession} left, {pronoun} said.",
)


def pronouns(prompt, she, he):
    """After the prompt and a space ``s`` or ``h``; then the rest of the word."""
    return {
        prompt: {" ": 0.5, "~": 0.5},
        f"{prompt} ": {"s": she, "h": he, "~": 1 - she - he},
        f"{prompt} s": {"h": 1.0},
        f"{prompt} sh": {"e": 0.9, "y": 0.1},
        f"{prompt} h": {"e": 0.9, "i": 0.1},
    }


def test_the_stereotype_score_by_hand(tokenizer):
    table = {
        **pronouns("The nurse said that", she=0.6, he=0.2),
        **pronouns("Today the nurse left,", she=0.1, he=0.1),
        **pronouns("The pilot said that", she=0.3, he=0.1),
        **pronouns("Today the pilot left,", she=0.08, he=0.72),
    }
    stereotypes = {"nurse": "she", "pilot": "he"}
    expected = (0.75 + 0.5 + 0.25 + 0.9) / 4
    for size in (1, 3, 64):
        score = measure_stereotype(
            PlantedLM(table), tokenizer, stereotypes, FRAMES, batch_size=size
        )
        assert score == pytest.approx(expected, rel=1e-6)


def test_a_sure_model_does_not_overflow(tokenizer):
    table = says({"The nurse said that": " she"}, sure=1.0)
    score = measure_stereotype(
        PlantedLM(table), tokenizer, {"nurse": "she"}, FRAMES[:1], batch_size=1
    )
    assert score == pytest.approx(1.0)


def test_no_stereotype_has_no_score(tokenizer):
    assert measure_stereotype(PlantedLM({}), tokenizer, {}, FRAMES, batch_size=1) is None
