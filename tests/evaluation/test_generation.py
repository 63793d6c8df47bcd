"""Generation: the same text in any batch, the order of the prompts, halving, room, stop strings."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from balora.errors import BaloraError
from balora.evaluation.generation import Sampling, TransformersGenerator, cut_at, in_order
from support.models import make_model, make_tokenizer

PROMPTS = [letter * length for letter, length in zip("abcdefghij", [3, 40, 1, 17, 9, 60, 2, 33, 5, 21], strict=True)]  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def texts_of(model, tokenizer, prompts=PROMPTS, *, batch_size=4, max_length=None, **sampling):
    generator = TransformersGenerator(
        model, tokenizer, batch_size=batch_size, max_length=max_length
    )
    answers = list(generator.generate(prompts, Sampling(**sampling)))
    return in_order(answers), [number for number, _ in answers], generator


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_batch_size_writes_the_same_texts_in_the_order_of_the_prompts(
    architecture, tokenizer
):
    # gpt2 has absolute positions: padding that shifts them shows at once
    model = make_model(architecture)
    alone, written, _ = texts_of(model, tokenizer, batch_size=1, max_new_tokens=12)
    for size in (2, 3, 10):
        assert texts_of(model, tokenizer, batch_size=size, max_new_tokens=12)[0] == alone
    assert len(set(map(tuple, alone))) > 1
    lengths = [len(PROMPTS[number]) for number in written]
    assert lengths == sorted(lengths, reverse=True)


def test_a_batch_that_does_not_fit_is_halved_and_the_texts_are_the_same(tokenizer, monkeypatch):
    model = make_model("llama")
    expected, _, _ = texts_of(model, tokenizer, batch_size=8, max_new_tokens=6)
    generate, sizes = model.generate, []

    def small(input_ids, **arguments):
        sizes.append(len(input_ids))
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(input_ids=input_ids, **arguments)

    monkeypatch.setattr(model, "generate", small)
    found, _, generator = texts_of(model, tokenizer, batch_size=8, max_new_tokens=6)
    assert found == expected
    assert sizes[:3] == [8, 4, 2]
    assert generator.batch_size == 2  # the batches after it are small at once
    assert max(sizes[3:]) <= 2


def test_one_answer_that_does_not_fit_is_an_error_that_says_what_to_lower(tokenizer, monkeypatch):
    model = make_model("llama")

    def never(**_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "generate", never)
    with pytest.raises(BaloraError, match=r"6 tokens to a prompt of \d+ does not fit.*Lower"):
        texts_of(model, tokenizer, max_new_tokens=6)


def test_other_errors_pass(tokenizer, monkeypatch):
    model = make_model("llama")

    def wrong(**_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(model, "generate", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        texts_of(model, tokenizer, max_new_tokens=6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prompt_and_its_answer_stay_within_the_model_whatever_stands_beside(
    architecture, tokenizer
):
    model = make_model(architecture)
    options = {"max_length": 48, "max_new_tokens": 40}
    alone, _, _ = texts_of(model, tokenizer, batch_size=1, **options)
    together, _, _ = texts_of(model, tokenizer, batch_size=10, **options)
    assert together == alone
    rooms = {len(prompt): len(text) for prompt, (text,) in zip(PROMPTS, alone, strict=True)}
    # a token is a letter: 40 fit behind the short ones, at least 12 behind any
    assert rooms[1] > 30
    assert rooms[21] <= 27
    assert 0 < rooms[60] <= 12
    assert all(min(length, 36) + room <= 48 for length, room in rooms.items())
    # a prompt that fits is whole, whatever is asked for the answer
    short, _, _ = texts_of(model, tokenizer, ["abc"], max_length=48, max_new_tokens=400)
    assert short == texts_of(model, tokenizer, ["abc"], max_length=48, max_new_tokens=45)[0]


def test_an_answer_ends_at_a_stop_string_which_is_cut_off(tokenizer):
    model = make_model("llama")
    ((whole,),), _, _ = texts_of(model, tokenizer, ["ab"], max_new_tokens=30)
    stop = whole[5:7]
    ((cut,),), _, _ = texts_of(model, tokenizer, ["ab"], max_new_tokens=30, stop=(stop,))
    assert cut == whole[: whole.index(stop)]
    assert cut_at("one### two", ("two", "###")) == "one"


def test_the_checkpoint_s_own_settings_do_not_act_but_its_end_of_text_does(tokenizer):
    model = make_model("llama")
    ((plain,),), _, _ = texts_of(model, tokenizer, ["ab"], max_new_tokens=20)
    own = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1, eos_token_id=[2])
    model.generation_config = own
    assert texts_of(model, tokenizer, ["ab"], max_new_tokens=20)[0] == [[plain]]
    assert model.generation_config is own
    end = tokenizer(plain[3:4]).input_ids[-1]
    model.generation_config = GenerationConfig(eos_token_id=[2, end])
    ((ended,),), _, _ = texts_of(model, tokenizer, ["ab"], max_new_tokens=20)
    assert plain.startswith(ended)
    assert len(ended) < len(plain)


def test_several_answers_are_drawn_by_the_seed_and_leave_the_generators_alone(tokenizer):
    model, drawn = make_model("llama"), {"temperature": 1.0, "num_samples": 3, "max_new_tokens": 8}
    before = torch.random.get_rng_state()
    first, again, other = (
        texts_of(model, tokenizer, PROMPTS[:4], seed=seed, **drawn)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == again != other
    assert [len(texts) for texts in first] == [3] * 4
    assert len(set(first[0])) > 1


def test_no_prompts_have_no_answers(tokenizer):
    assert texts_of(make_model("llama"), tokenizer, [], max_new_tokens=3)[0] == []
