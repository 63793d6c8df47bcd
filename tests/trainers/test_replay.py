"""Replay in training: its numbers, its rows, and what must not change them."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch

from balora.anchored import reference_mode
from balora.config.replay import ReplayConfig
from balora.errors import ConfigError
from balora.replay.texts import REPLAY_FILE
from balora.trainers import replay as replay_module
from balora.trainers import step as step_module
from support.models import CAUSAL, OTHER_HEADS, make_model
from support.training import (
    CHECKPOINTING,
    LARGE,
    OFF,
    GradientRecorder,
    is_equal,
    make_rows,
    make_trainer,
    recomposed,
    run,
    trained,
)

REPLAY = {
    "replay": "generated",
    "replay_num_texts": 20,
    "replay_length": 20,
    "replay_batch_size": 8,
    "replay_every": 2,
    "replay_coef": 0.5,
}
METHODS = {
    "balora": LARGE,
    "pissa": OFF,
    "lora": {**OFF, "adapter_init": "lora"},
    "full": OFF,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep the texts of a test to itself."""
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))


def make(output_dir, method="balora", replay=None, model=None, **settings):
    options = settings.pop("options", {})
    if method == "full":
        options["peft_config"] = None
    return make_trainer(
        output_dir / "run",
        model=model,
        objective=settings.pop("objective", METHODS[method]),
        options=options | {"replay_config": ReplayConfig(**{**REPLAY, **(replay or {})})},
        **{"max_steps": 5, **settings},
    )


@pytest.mark.parametrize("method", METHODS)
def test_rows_add_up_and_begin_at_exactly_zero(tmp_path, method):
    rows = run(make(tmp_path, method))
    assert [("replay_loss" in row) for row in rows] == [True, False, True, False, True]
    assert rows[0]["replay_loss"] == 0.0
    assert rows[2]["replay_loss"] > 1e-4
    for row in rows:
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)


def test_the_other_terms_are_those_of_a_run_without_replay(tmp_path):
    # at step 0 replay has no gradient, so up to the second one the weights are the same
    alone = run(make_trainer(tmp_path / "alone", objective=LARGE, max_steps=5))
    beside = run(make(tmp_path))
    names = {name for name in alone[2] if name.endswith(("_loss", "_coef"))}
    assert {"task_loss", "consistency_loss", "diversity_loss", "svd_loss"} < names
    for expected, row in zip(alone[:3], beside[:3], strict=True):
        for name in names:
            assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    assert beside[2]["consistency_loss"] > 0.0
    assert beside[3]["consistency_loss"] != pytest.approx(alone[3]["consistency_loss"], rel=1e-3)


def test_a_row_over_several_steps_shows_the_term_and_the_mean_of_its_coefficient(tmp_path):
    rows = run(make(tmp_path, replay={"replay_every": 3}, max_steps=12, logging_steps=6))
    assert len(rows) == 2
    for row in rows:
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
        # 3 times the coefficient in every third step; weighted by the term, the same
        assert row["replay_coef"] == pytest.approx(0.5)


def expected_loss(trainer, model, step, pretrained=None):
    """Return the mean divergence of the texts of a step, one token at a time, in float64.

    From ``pretrained``, or from the model with its adapters off.
    """
    replay = trainer.replay
    schedule = replay._schedule
    total, number = 0.0, 0
    for index in schedule.groups[schedule.group_at(step)]:
        text = replay.texts.texts[index]
        ids = torch.tensor([text.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double()
            with nullcontext() if pretrained else reference_mode(model):
                reference = (pretrained or model)(input_ids=ids).logits[0].double()
        for place, label in enumerate(text.labels[1:]):
            if label != -100:
                log_p = logits[place].log_softmax(-1)
                log_q = reference[place].log_softmax(-1)
                total += float((log_q.exp() * (log_q - log_p)).sum())
                number += 1
    return total / number


@pytest.mark.parametrize("architecture", [*CAUSAL, *OTHER_HEADS])
def test_the_term_is_the_mean_divergence_over_the_scored_tokens(tmp_path, architecture):
    model = make_model(architecture)
    trainer = make(
        tmp_path,
        "pissa",
        model=model.eval(),
        replay={"replay_every": 1},
        max_steps=3,
        options={"callbacks": [recorder := Expected()]},
    )
    recorder.trainer = trainer
    for module in model.modules():  # its own dropout would be on in the student alone
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = run(trainer)
    assert recorder.losses[1] > 1e-4
    for row, expected in zip(rows, recorder.losses, strict=True):
        assert row["replay_loss"] == pytest.approx(expected, rel=2e-4, abs=2e-7)


def test_the_term_of_full_fine_tuning_is_the_divergence_from_the_model_and_head_that_were(tmp_path):
    model = make_model("gpt2").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    recorder = Expected(copy.deepcopy(model))
    replay = {"replay_every": 1, "replay_reference": "memory"}
    recorder.trainer = make(
        tmp_path,
        "full",
        model=model,
        replay=replay,
        max_steps=3,
        options={"callbacks": [recorder]},
    )
    rows = run(recorder.trainer)
    assert recorder.losses[1] > 1e-4
    for row, expected in zip(rows, recorder.losses, strict=True):
        assert row["replay_loss"] == pytest.approx(expected, rel=2e-4, abs=2e-7)


class Expected(GradientRecorder):
    """Computes the term anew before every step."""

    def __init__(self, pretrained=None):
        super().__init__()
        self.losses, self.trainer, self.pretrained = [], None, pretrained

    def on_step_begin(self, args, state, control, model=None, **_):
        model.eval()
        step = state.global_step
        self.losses.append(expected_loss(self.trainer, model, step, self.pretrained))
        model.train()


@pytest.mark.parametrize("reference", ["memory", "disk"])
def test_a_kept_reference_equals_the_live_one(tmp_path, reference):
    kept = make(tmp_path, replay={"replay_reference": reference})
    live = make(tmp_path, replay={"replay_reference": "live"})
    for row, other in zip(run(kept), run(live), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-6)
    assert kept.replay.place.name == reference
    scored = sum(text.num_scored for text in kept.replay.texts.texts)
    assert kept.replay.place.num_bytes == scored * 32 * 4 == kept.replay._hidden.num_bytes


def kept_texts(replay):
    """Return the texts whose reference has been computed."""
    return {text for number in replay._first_steps for text in replay._schedule.groups[number]}


@pytest.mark.parametrize(
    ("method", "steps", "num_kept", "num_passes"),
    [
        ("pissa", 2, 13, 2),  # texts that the run never reaches cost nothing
        ("pissa", 5, 20, 3),  # and none is computed twice
        ("full", 2, 20, 3),  # its weights move, so all are computed before
    ],
)
def test_a_reference_is_computed_once_and_only_where_it_is_read(
    tmp_path, monkeypatch, method, steps, num_kept, num_passes
):
    calls = []
    original = step_module.reference_states

    def counted(*args):
        calls.append(args)
        return original(*args)

    for module in (step_module, replay_module):
        monkeypatch.setattr(module, "reference_states", counted)
    trainer = make(tmp_path, method, replay={"replay_every": 1}, max_steps=steps)
    rows = run(trainer)
    assert rows[0]["replay_loss"] == 0
    assert len(kept_texts(trainer.replay)) == num_kept
    assert len(calls) == num_passes


@pytest.mark.parametrize("method", ["pissa", "full"])
def test_the_kept_reference_is_the_pretrained_model_in_eval_mode(tmp_path, method):
    model = make_model("gpt2").train()  # with dropout
    trainer = make(tmp_path, method, model=model, max_steps=1)
    run(trainer)
    number = min(kept_texts(trainer.replay))
    text = trainer.replay.texts.texts[number]
    with torch.no_grad():
        fresh = make_model("gpt2").eval()
        hidden = fresh.base_model(input_ids=torch.tensor([text.input_ids])).last_hidden_state[0]
    scored = torch.tensor([label != -100 for label in text.labels[1:]])
    torch.testing.assert_close(trainer.replay._hidden.rows([number]), hidden[:-1][scored])


@pytest.mark.parametrize("method", ["pissa", "full"])
def test_it_does_not_depend_on_micro_batches(tmp_path, method):
    found = {}
    for batch, steps in ((8, 1), (1, 8), (2, 4)):
        trainer = make(
            tmp_path,
            method,
            replay={"replay_every": 1},
            rows=make_rows(16),
            max_steps=3,
            max_grad_norm=0.0,
            optim="sgd",  # Adam would make the sign of a rounding error a step
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            options={"callbacks": [recorder := GradientRecorder()]},
        )
        found[batch] = run(trainer), recorder.steps
    for batch in (1, 2):
        for row, other in zip(found[batch][0], found[8][0], strict=True):
            assert row["replay_loss"] == pytest.approx(other["replay_loss"], abs=1e-6)
            assert row["loss"] == pytest.approx(other["loss"], abs=2e-6)
        for step, other in zip(found[batch][1], found[8][1], strict=True):
            for name, gradient in step.items():
                torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("settings", [{CHECKPOINTING: True}, {"packing": True, "max_length": 32}])
def test_it_goes_with_checkpointing_and_packing(tmp_path, settings):
    expected = {} if CHECKPOINTING in settings else settings
    rows = run(make(tmp_path, **settings))
    others = run(make(tmp_path, replay={"replay_reference": "live"}, **expected))
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-6)
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)


@pytest.mark.parametrize("method", ["balora", "full"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, method):
    settings = {
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 6,
        "lr_scheduler_type": "cosine",
    }
    whole = make(tmp_path / "whole", method, model=make_model("gpt2"), **settings)
    rows = run(whole)
    again = make(tmp_path / "whole", method, model=make_model("gpt2"), **settings)
    resumed = run(again, resume_from_checkpoint=str(tmp_path / "whole/run/checkpoint-2"))
    for row, other in zip(resumed, rows, strict=True):
        assert row["loss"] == other["loss"]
        assert row.get("replay_loss") == other.get("replay_loss")
    assert is_equal(trained(again.model), trained(whole.model))


PAIRS = [["a", "b"], ["c", "d"]]


def test_a_balanced_reference_is_the_mean_of_a_text_and_its_swap(tmp_path):
    model = make_model("llama")
    kept = make(tmp_path, "pissa", model=model, replay={"replay_swap": PAIRS})
    rows = run(kept)
    live = run(make(tmp_path, "pissa", replay={"replay_swap": PAIRS, "replay_reference": "live"}))
    for row, other in zip(rows, live, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
    full = run(make(tmp_path, "full", replay={"replay_swap": PAIRS}))
    assert full[0]["replay_loss"] == pytest.approx(rows[0]["replay_loss"], rel=1e-5)
    # the definition, at the start, where the student is the pre-trained model
    partner = {ord(x): ord(y) for pair in PAIRS for x, y in (pair, pair[::-1])}
    partner |= {ord(chr(x).upper()): ord(chr(y).upper()) for x, y in partner.items()}
    fresh, replay, total, number = make_model("llama"), kept.replay, 0.0, 0
    order = torch.tensor([partner.get(token, token) for token in range(128)])
    for index in replay._schedule.groups[replay._schedule.group_at(0)]:
        text = replay.texts.texts[index]
        ids = torch.tensor([text.input_ids])
        with torch.no_grad():
            p, other = (
                fresh(input_ids=x).logits[0].double().softmax(-1) for x in (ids, order[ids])
            )
        q = (p + other[:, order]) / 2
        scored = torch.tensor([label != -100 for label in text.labels[1:]])
        total += float((q * (q.log() - p.log()))[:-1][scored].sum())
        number += int(scored.sum())
    assert rows[0]["replay_loss"] == pytest.approx(total / number, rel=1e-4)
    assert total / number > 1e-4


def test_a_text_without_a_word_of_a_pair_has_no_second_row(tmp_path):
    swap = {"replay_swap": [["a", "b"]]}
    trainer = make(tmp_path, "pissa", replay=swap, max_steps=1)
    run(trainer)
    moved = {ord(letter) for letter in "abAB"}
    texts = trainer.replay.texts.texts
    swapped = [text for text in texts if moved & set(text.input_ids)]
    assert 0 < len(swapped) < len(texts)
    rows = sum(t.num_scored for t in texts) + sum(t.num_scored for t in swapped)
    assert trainer.replay.place.num_bytes == rows * 32 * 4


def test_bf16_autocast_is_as_right_near_the_reference(tmp_path):
    rows = run(make(tmp_path, "pissa", bf16=True, learning_rate=4e-3, max_steps=3))
    exact = run(make(tmp_path, "pissa", learning_rate=4e-3, max_steps=3))
    assert rows[0]["replay_loss"] == 0.0
    # what is left is the rounding of the model's body: its hidden states are in bfloat16
    assert 1e-3 < exact[2]["replay_loss"] < 2e-2
    assert rows[2]["replay_loss"] == pytest.approx(exact[2]["replay_loss"], rel=0.05)


def test_the_texts_lie_beside_the_run_and_are_generated_once(tmp_path, monkeypatch):
    run(make(tmp_path / "one", max_steps=1))
    monkeypatch.setattr("balora.replay.library.generate_texts", None)  # a call would fail
    run(make(tmp_path / "two", max_steps=1))
    first, second = (tmp_path / name / "run" / REPLAY_FILE for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_text("utf-8").splitlines()) == 20
    # given as a file, nothing is generated either, and the numbers are the same
    given = make(tmp_path / "three", replay={"replay": str(first)}, max_steps=1)
    assert run(given)[0]["replay_loss"] == 0.0
    assert given.replay.texts.digest() == make_texts(first, given).digest()


def make_texts(file, trainer):
    from balora.replay.library import texts_of

    config = ReplayConfig(**{**REPLAY, "replay": str(file)})
    return texts_of(str(file), config, trainer.processing_class, 128)


def test_cross_entropy_has_the_same_expectation_up_to_a_constant(tmp_path):
    rows = run(make(tmp_path, "pissa", replay={"replay_loss": "cross_entropy"}))
    assert rows[0]["replay_loss"] > 1.0
    for row in rows:
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)


def test_it_holds_the_model_back(tmp_path):
    settings = {"max_steps": 12, "learning_rate": 0.05}
    with_replay = make(tmp_path / "a", "pissa", replay={"replay_coef": 5.0}, **settings)
    run(with_replay)
    without = make(tmp_path / "b", "pissa", replay={"replay_coef": 1e-9}, **settings)
    run(without)
    drift = [expected_loss(t, t.model.eval(), 0) for t in (with_replay, without)]
    assert drift[0] < 0.5 * drift[1]
    assert math.isfinite(drift[0])


@pytest.mark.parametrize(
    ("replay", "settings", "match"),
    [
        ({"replay_length": 300}, {}, "`replay_length` is 300, but the model has 256 positions"),
        ({"replay_prompt": "x" * 30}, {}, "`replay_length` is 20, but a text begins with 30"),
    ],
)
def test_refused_before_anything_is_generated(tmp_path, replay, settings, match, monkeypatch):
    monkeypatch.setattr("balora.replay.generate._Sampler", None)  # a call would fail
    with pytest.raises(ConfigError, match=match):
        run(make(tmp_path, replay=replay, **settings))


def test_live_reference_of_full_fine_tuning_is_refused(tmp_path):
    trainer = make(tmp_path, "full", replay={"replay_reference": "live"})
    with pytest.raises(ConfigError, match="`replay_reference` is live, but full fine-tuning"):
        run(trainer)


def test_without_replay_nothing_changes(tmp_path):
    plain = make_trainer(tmp_path / "a", objective=LARGE)
    off = make_trainer(tmp_path / "b", objective=LARGE, options={"replay_config": ReplayConfig()})
    rows = run(plain)
    assert [row["loss"] for row in rows] == [row["loss"] for row in run(off)]
    assert is_equal(trained(plain.model), trained(off.model))
    assert not any("replay_loss" in row for row in rows)


def test_a_resumed_run_takes_the_texts_of_its_checkpoint(tmp_path, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = make(tmp_path, **settings)
    run(first)
    checkpoint = tmp_path / "run/checkpoint-2"
    monkeypatch.setattr("balora.replay.library.generate_texts", None)  # a call would fail
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "another cache"))
    (tmp_path / "run" / REPLAY_FILE).unlink()
    again = make(tmp_path, **settings)
    run(again, resume_from_checkpoint=str(checkpoint))
    assert again.replay.texts == first.replay.texts
    assert is_equal(trained(again.model), trained(first.model))
    (checkpoint / REPLAY_FILE).unlink()
    with pytest.raises(ConfigError, match=f"checkpoint-2` has no {REPLAY_FILE}"):
        run(make(tmp_path, **settings), resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(("name", "value"), [("replay_coef", 0.4), ("replay_every", 1)])
def test_another_replay_is_refused_by_name_when_resuming(tmp_path, name, value):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run(make(tmp_path, **settings))
    other = make(tmp_path, replay={name: value}, **settings)
    with pytest.raises(ConfigError, match=f"`{name}`"):
        run(other, resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
