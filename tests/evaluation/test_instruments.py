"""The figures against plain float64 loops, on tiny random models of several architectures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from balora.errors import DataError
from balora.evaluation import MeasureOptions, Models, measure, text_loss
from balora.evaluation.exact_match import generate, measure_answers
from balora.evaluation.instruments import INSTRUMENTS
from balora.evaluation.responses import count_responses
from support.models import CAUSAL, EXAMPLES, make_model, make_tokenizer

TEXT = "Anna lives in Oslo. She keeps a cat. 3 + 4 = 7.\n" * 5
OPTIONS = MeasureOptions(batch_size=2, max_new_tokens=8, examples=EXAMPLES)
WITH_TEXT = replace(OPTIONS, retention_text=TEXT)


def float64_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().numpy()


def log_softmax(row):
    return row - np.logaddexp.reduce(row)


def reference_figures(model, base, tokenizer, examples):
    """KL, entropy and loss one token at a time: the logits at t speak of token t + 1."""
    kl, entropy, loss = [], [], []
    for prompt, completion in examples:
        start = len(tokenizer(prompt).input_ids)
        ids = [*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id]
        tuned, pretrained = float64_logits(model, ids), float64_logits(base, ids)
        for position in range(start, len(ids)):
            q, p = log_softmax(tuned[position - 1]), log_softmax(pretrained[position - 1])
            kl.append((np.exp(p) * (p - q)).sum())
            entropy.append(-(np.exp(q) * q).sum())
            loss.append(-q[ids[position]])
    return np.mean(kl), np.mean(entropy), np.mean(loss), len(kl)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.mark.parametrize("architecture", CAUSAL)
def test_measure_matches_a_float64_loop(architecture, tokenizer):
    model, base = (make_model(architecture, seed=seed) for seed in (1, 2))
    models = Models(model, base, tokenizer)
    figures = measure(models, OPTIONS)
    kl, entropy, loss, num_tokens = reference_figures(model, base, tokenizer, EXAMPLES)
    assert figures["kl"] == pytest.approx(kl, rel=1e-5)
    assert figures["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert figures["response_loss"] == pytest.approx(loss, rel=1e-5)
    assert count_responses(models, OPTIONS) == {
        "num_examples": 3,
        "num_tokens": num_tokens,
        "num_truncated": 0,
    }
    assert figures["retention_loss"] is None
    # the other direction is another number, so the test above tells them apart
    assert reference_figures(base, model, tokenizer, EXAMPLES)[0] != pytest.approx(kl, rel=1e-2)


def test_the_examples_are_tokenized_once_for_all_models(tokenizer):
    calls = []

    class Counted(type(tokenizer)):
        def __call__(self, text, **options):
            calls.append(text)
            return super().__call__(text, **options)

    counted, model = make_tokenizer(), make_model("llama")
    counted.__class__ = Counted
    options = replace(OPTIONS)
    for tuned in (model, make_model("llama", seed=2)):
        models = Models(tuned, model, counted)
        INSTRUMENTS["responses"].measure(models, options)
        count_responses(models, options)
    assert len(calls) == 2 * len(EXAMPLES)  # a prompt, and the prompt with its completion


def test_a_model_against_itself_has_no_kl(tokenizer):
    model = make_model("llama")
    assert measure(Models(model, model, tokenizer), OPTIONS)["kl"] == 0.0


def test_the_batch_size_changes_nothing(tokenizer):
    model, base = make_model("gpt2", seed=1), make_model("gpt2", seed=2)
    one, all_at_once = (
        measure(Models(model, base, tokenizer), replace(WITH_TEXT, batch_size=size))
        for size in (1, 3)
    )
    assert one == pytest.approx(all_at_once, rel=1e-5)


def test_dropout_is_off_and_the_mode_comes_back(tokenizer):
    model = make_model("gpt2")  # its config has dropout 0.1
    expected = measure(Models(model, model, tokenizer), WITH_TEXT)
    model.train()
    assert measure(Models(model, model, tokenizer), WITH_TEXT) == expected
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_text_loss_matches_a_loop_over_windows(block, tokenizer):
    model = make_model("llama", max_position_embeddings=1024)
    ids = tokenizer(TEXT).input_ids
    losses = []
    for start in range(0, len(ids), block):
        window = ids[start : start + block]
        rows = float64_logits(model, window)
        losses += [-log_softmax(rows[i])[window[i + 1]] for i in range(len(window) - 1)]
    actual = text_loss(model, tokenizer, TEXT, block=block)
    assert actual == pytest.approx(np.mean(losses), rel=1e-5)


def test_text_too_short_to_score_is_refused(tokenizer):
    with pytest.raises(ValueError, match="fewer than two tokens"):
        text_loss(make_model("llama"), tokenizer, "a", block=8)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_left_padded_generation_equals_one_by_one(architecture, tokenizer):
    # gpt2 has absolute positions: padding that shifts them shows at once
    model = make_model(architecture)
    prompts = ["a", "3 + 4 is what?", "a longer prompt than the two others together"]
    batch = generate(model, tokenizer, prompts, options=MeasureOptions(max_new_tokens=12))
    alone = [
        generate(model, tokenizer, [prompt], options=MeasureOptions(max_new_tokens=12))[0]
        for prompt in prompts
    ]
    assert batch == alone
    assert len(set(batch)) == 3


def test_padding_with_the_end_of_sequence_is_still_padding():
    # many tokenizers have no padding token; what fills up must then be masked, not read
    model, tokenizer = make_model("llama"), make_tokenizer()
    model.generation_config.pad_token_id = None
    tokenizer.pad_token = None
    prompts, options = ["a", "3 + 4 is what?"], MeasureOptions(max_new_tokens=12)
    alone = [generate(model, tokenizer, [prompt], options=options)[0] for prompt in prompts]
    assert generate(model, tokenizer, prompts, options=options) == alone


def test_generation_is_greedy(tokenizer):
    model = make_model("llama")
    ids = tokenizer("3 + 4").input_ids
    for _ in range(6):
        ids.append(int(float64_logits(model, ids)[-1].argmax()))
    text = generate(model, tokenizer, ["3 + 4"], options=MeasureOptions(max_new_tokens=6))[0]
    assert text == tokenizer.decode(ids[-6:], skip_special_tokens=True)


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A tiny model that has learned three answers by heart."""
    model = make_model("llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [[*tokenizer(p + c).input_ids, tokenizer.eos_token_id] for p, c in EXAMPLES]
    for _ in range(40):
        for row in rows:
            ids = torch.tensor([row])
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_exact_match_counts_answers(trained, tokenizer):
    def share(examples):
        options = MeasureOptions(batch_size=2, max_new_tokens=40, examples=examples)
        return measure_answers(Models(trained, trained, tokenizer), options)["exact_match"]

    assert share(EXAMPLES) == 1.0
    wrong = [EXAMPLES[0], (EXAMPLES[1][0], " The answer is: 4"), EXAMPLES[2]]
    assert share(wrong) == pytest.approx(2 / 3)
    # an example without an answer is left out, not wrong
    assert share([*wrong[:2], ("Hm", " no idea")]) == pytest.approx(1 / 2)
    assert share([("Hm", " no idea")]) is None


def test_training_shows_in_the_figures(trained, tokenizer):
    base = make_model("llama")
    options = MeasureOptions(max_new_tokens=40, examples=EXAMPLES)
    before, after = (measure(Models(model, base, tokenizer), options) for model in (base, trained))
    assert (before["exact_match"], after["exact_match"]) == (0.0, 1.0)
    assert after["response_loss"] < 0.1 < before["response_loss"]
    assert after["kl"] > before["kl"] == 0.0


def test_long_prompts_lose_their_start_and_are_counted(tokenizer):
    model, base = make_model("llama", seed=1), make_model("llama", seed=2)
    prompt, completion = "x" * 30 + "2 and 3?", " The answer is: 5"
    examples = [(prompt, completion), ("2", " 3")]
    options = MeasureOptions(max_new_tokens=2, max_length=24, examples=examples)
    models = Models(model, base, tokenizer)
    figures, counts = measure(models, options), count_responses(models, options)
    assert counts["num_truncated"] == 1
    assert counts["num_tokens"] == len(completion) + 1 + len(" 3") + 1  # one piece per character
    kept = prompt[-(24 - len(completion) - 1) :]
    shortened = reference_figures(model, base, tokenizer, [(kept, completion), ("2", " 3")])
    assert (
        figures["kl"],
        figures["entropy"],
        figures["response_loss"],
    ) == pytest.approx(shortened[:3], rel=1e-5)


def test_no_examples_are_refused(tokenizer):
    model = make_model("llama")
    with pytest.raises(ValueError, match="`examples` is empty"):
        measure(Models(model, model, tokenizer), replace(WITH_TEXT, examples=()))


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_an_instrument_measures_the_metrics_that_the_registry_gives_it(name, tokenizer):
    model = make_model("llama")
    figures = INSTRUMENTS[name].measure(Models(model, model, tokenizer), WITH_TEXT)
    assert set(figures) == set(INSTRUMENTS[name].metrics)


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_a_token_that_the_model_does_not_know_is_refused_by_every_instrument(name, tokenizer):
    model = make_model("llama", vocab_size=len(tokenizer) - 1)
    word = tokenizer.decode([len(tokenizer) - 1])
    options = MeasureOptions(
        examples=[("a", " #### 1"), (word, " #### 1")], retention_text=word * 2
    )
    with pytest.raises(DataError, match="row"):
        INSTRUMENTS[name].measure(Models(model, model, tokenizer), options)
