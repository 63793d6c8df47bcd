"""Texts that a model writes: its own distribution, whole texts, starts of its own kind."""

from __future__ import annotations

import logging

import pytest
import torch

from balora.config.replay import ReplayConfig
from balora.errors import ConfigError
from balora.replay.generate import generate_texts
from balora.replay.library import generated_texts, texts_of
from balora.replay.start import Start, start_of
from balora.replay.texts import REPLAY_FILE
from support.models import VOCAB, make_model, make_tokenizer

START = Start((1,), "<s>")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))


def write(model=None, tokenizer=None, start=START, **settings):
    settings = {"num_texts": 6, "length": 12, "seed": 0, "show_progress": False, **settings}
    return generate_texts(
        model or make_model("llama"), tokenizer or make_tokenizer(), start, **settings
    )


def test_the_tokens_have_the_models_own_distribution():
    # the second token of 20,000 texts of 2, against the softmax at the first
    model = make_model("llama")
    texts = write(model, num_texts=20_000, length=2)
    counts = torch.zeros(VOCAB)
    for text in texts.texts:
        counts[text.input_ids[1]] += 1
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[1]])).logits[0, 0].double().softmax(-1)
    chi_square = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()
    # mean V - 1, deviation sqrt(2 (V - 1)): a top-k, top-p or a temperature is far outside
    assert chi_square < VOCAB - 1 + 5 * (2 * (VOCAB - 1)) ** 0.5


def test_the_checkpoints_own_generation_settings_do_not_act():
    plain = write()
    model = make_model("llama")
    model.generation_config.update(
        top_k=1, temperature=0.1, repetition_penalty=5.0, min_new_tokens=9, suppress_tokens=[7, 8]
    )
    before = model.generation_config.to_dict()
    assert write(model) == plain
    assert model.generation_config.to_dict() == before


def test_a_text_ends_with_its_end_token_which_is_scored_or_at_the_length():
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[2] += 0.6 * model.lm_head.weight[2].sign()
    texts = write(model, num_texts=200, length=10).texts
    ended = [text for text in texts if 2 in text.input_ids]
    assert 5 < len(ended) < 200
    for text in texts:
        assert text.input_ids[0] == 1
        assert text.labels == (-100, *text.input_ids[1:])
        assert len(text.input_ids) <= 10
        if 2 in text.input_ids:
            assert text.input_ids.index(2) == len(text.input_ids) - 1
        else:
            assert len(text.input_ids) == 10


def test_the_seed_decides_and_the_generators_are_left_as_they_were():
    state = torch.get_rng_state()
    assert write() == write() != write(seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_start_as_long_as_the_text_is_refused():
    with pytest.raises(ConfigError, match="`replay_length` is 3, but a text begins with 4 tokens"):
        write(start=Start((1, 5, 6, 7), "a prompt"), length=3)


def test_a_chat_scores_question_and_answer_but_not_the_marks_between():
    tokenizer = make_tokenizer()
    start = start_of("chat", tokenizer, make_model("llama"))
    assert tokenizer.decode(start.input_ids) == "u: "
    assert tokenizer.decode(start.between) == "\nA: "
    texts = write(make_model("llama"), tokenizer, start, num_texts=120, length=24).texts
    answered = [text for text in texts if "\nA: " in tokenizer.decode(text.input_ids)]
    assert answered
    for text in answered:
        words = tokenizer.decode(text.input_ids)
        question = words[3 : words.index("\nA: ")]
        scored = "".join(tokenizer.decode([label]) for label in text.labels if label != -100)
        # the model drew the line's end itself; `A: ` is the template's
        rest = words[words.index("\nA: ") + 4 :]
        assert scored in (question + "\n" + rest, question + rest)
        assert text.labels[:3] == (-100,) * 3


@pytest.mark.parametrize(
    ("bos", "eos", "from_config", "expected"),
    [("<s>", "</s>", 1, (1,)), (None, "</s>", 5, (5,)), (None, "</s>", None, (2,))],
)
def test_where_a_text_begins(bos, eos, from_config, expected):
    tokenizer, model = make_tokenizer(), make_model("llama")
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    model.config.bos_token_id = from_config
    start = start_of(None, tokenizer, model)
    assert start.input_ids == expected
    assert repr(tokenizer.decode(expected)) in start.description


def test_a_model_without_a_beginning_is_refused():
    tokenizer, model = make_tokenizer(), make_model("llama")
    tokenizer.bos_token = tokenizer.eos_token = None
    model.config.bos_token_id = None
    with pytest.raises(ConfigError, match="Set `replay_prompt` to a text"):
        start_of(None, tokenizer, model)


def test_a_prompt_is_tokenized_and_chat_needs_a_template():
    tokenizer, model = make_tokenizer(), make_model("llama")
    assert start_of("ab", tokenizer, model).input_ids == (97, 98)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="`replay_prompt` is chat, but the tokenizer has no"):
        start_of("chat", tokenizer, model)


CONFIG = ReplayConfig(replay="generated", replay_num_texts=8, replay_length=12, replay_batch_size=4)


def test_the_cache_is_under_everything_that_decides_the_texts(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tokenizer = make_tokenizer()

    def write_all(model=None, config=CONFIG, tokenizer=tokenizer):
        return generated_texts(model or make_model("llama"), tokenizer, config, show_progress=False)

    first = write_all()
    assert "Replay texts begin with '<s>', the tokenizer's beginning-of-text token." in caplog.text
    assert write_all() == first
    entries = tmp_path / "cache" / "replay"
    assert len(list(entries.iterdir())) == 1
    write_all(make_model("llama", seed=1))
    for name, value in (("replay_seed", 1), ("replay_length", 11), ("replay_prompt", "ab")):
        fields = {n: getattr(CONFIG, n) for n in ("replay", "replay_num_texts", "replay_length")}
        write_all(config=ReplayConfig(**{**fields, "replay_batch_size": 4, name: value}))
    other = make_tokenizer()
    other.add_tokens(["<new>"])
    write_all(tokenizer=other)
    assert len(list(entries.iterdir())) == 6


def test_a_damaged_entry_of_the_cache_is_refused_with_its_file(tmp_path):
    arguments = make_model("llama"), make_tokenizer(), CONFIG
    generated_texts(*arguments, show_progress=False)
    (file,) = (tmp_path / "cache" / "replay").glob(f"*/{REPLAY_FILE}")
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[1:] + lines[:1]), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{REPLAY_FILE} is damaged"):
        generated_texts(*arguments, show_progress=False)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ('{"text": "ab", "input_ids": [97, 99]}', "made with another tokenizer"),
        ('{"input_ids": [97, 500]}', "the token 500 is not one of the model's 128"),
        ('{"input_ids": [97, 98], "labels": [-100]}', "2 `input_ids` and 1 `labels`"),
        ('{"input_ids": [97, 98], "labels": [-100, 5]}', "the label 5 is neither its token"),
        ('{"input_ids": [97]}', "1 `input_ids`"),
        ('{"body": "ab"}', "has no column `text`, only body"),
        ('{"text": "a"}', "has 0 texts of 2 tokens or more, but a step takes 4"),
    ],
)
def test_a_file_that_cannot_be_replayed_is_refused_with_its_name(tmp_path, row, match):
    file = tmp_path / "texts.jsonl"
    file.write_text((row + "\n") * 5, encoding="utf-8")
    config = ReplayConfig(replay=str(file), replay_num_texts=8, replay_batch_size=4)
    with pytest.raises(ValueError, match=match) as caught:
        texts_of(str(file), config, make_tokenizer(), VOCAB)
    assert "texts.jsonl" in str(caught.value)


def test_tokens_without_labels_are_scored_but_for_the_first(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"input_ids": [97, 98, 99]}\n' * 2, encoding="utf-8")
    config = ReplayConfig(replay=str(file), replay_batch_size=2)
    texts = texts_of(str(file), config, make_tokenizer(), VOCAB).texts
    assert [text.labels for text in texts] == [(-100, 98, 99)] * 2


def test_plain_text_is_cut_into_pieces_and_every_token_but_the_first_is_scored(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"body": "abcdefgh"}\n{"body": "ij"}\n', encoding="utf-8")
    config = ReplayConfig(
        replay=str(file), replay_column="body", replay_length=3, replay_batch_size=2
    )
    texts = texts_of(str(file), config, make_tokenizer(), VOCAB).texts
    assert ["".join(map(chr, text.input_ids)) for text in texts] == ["abc", "def", "gh", "ij"]
    assert texts[0].labels == (-100, 98, 99)
