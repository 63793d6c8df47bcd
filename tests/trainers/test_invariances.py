"""What must not change the objective: micro-batches, packing, checkpointing, the seed's replay."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

from balora.config import BALoraConfig
from balora.errors import ConfigError
from balora.objective import coefficients_at
from support.models import make_model
from support.training import (
    CHECKPOINTING,
    LARGE,
    REGULARIZERS,
    GradientRecorder,
    is_equal,
    make_rows,
    make_trainer,
    recomposed,
    run,
    trained,
)

TOKEN_TERMS = {"consistency_coef": 0.7, "diversity_coef": 0.3, "svd_coef": 0.0}
KEYS = ("loss", "task_loss", "consistency_loss", "diversity_loss", "entropy", "grad_norm")


def run_with_gradients(output_dir, **settings):
    trainer = make_trainer(output_dir, max_grad_norm=0.0, **settings)
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    return run(trainer), recorder.steps


def assert_same(rows, expected_rows, keys=KEYS):
    assert len(rows) == len(expected_rows)
    for row, expected in zip(rows, expected_rows, strict=True):
        for key in keys:
            assert row[key] == pytest.approx(expected[key], abs=1e-6, rel=1e-6), key


# 11 rows: the last group of the epoch holds 3 rows, in 1 or in 3 micro-steps
@pytest.mark.parametrize(("batch", "steps"), [(1, 8), (2, 4)])
def test_token_terms_do_not_depend_on_micro_batches(tmp_path, batch, steps):
    common = {"objective": TOKEN_TERMS, "rows": make_rows(11), "max_steps": 4}
    whole, whole_gradients = run_with_gradients(tmp_path, per_device_train_batch_size=8, **common)
    parts, part_gradients = run_with_gradients(
        tmp_path,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        **common,
    )
    assert_same(parts, whole, (*KEYS, "mean_token_accuracy", "num_tokens"))
    for one, other in zip(part_gradients, whole_gradients, strict=True):
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-6)


def test_the_normaliser_of_gpt2_counts_shifted_labels(tmp_path):
    # every token of `text` is a label, also the first, which nothing predicts
    rows = Dataset.from_list([{"text": "abc"}, {"text": "defghijk"}, {"text": "lm"}])
    common = {"objective": TOKEN_TERMS, "rows": rows, "max_steps": 2}
    found = [
        run(
            make_trainer(
                tmp_path,
                model=make_model("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=4 // batch,
                **common,
            )
        )
        for batch in (1, 4)
    ]
    assert_same(*found)
    # uniform guessing costs log(128) a token; one label too many for each row would show
    model = make_model("gpt2")
    row = found[0][0]
    with torch.no_grad():
        ids = [torch.tensor([[*map(ord, text), 2]]) for text in ("abc", "defghijk", "lm")]
        losses = [
            torch.nn.functional.cross_entropy(
                model(input_ids=i).logits[0, :-1], i[0, 1:], reduction="sum"
            )
            for i in ids
        ]
    num_tokens = sum(i.shape[1] - 1 for i in ids)
    assert row["task_loss"] == pytest.approx(sum(losses).item() / num_tokens, rel=1e-5)


def test_the_normaliser_does_not_ask_whether_the_model_takes_loss_arguments(tmp_path, monkeypatch):
    model = make_model("llama")
    model.accepts_loss_kwargs = False
    common = {"objective": TOKEN_TERMS, "max_steps": 2}
    parts = run(
        make_trainer(
            tmp_path,
            model=model,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            **common,
        )
    )
    assert_same(parts, run(make_trainer(tmp_path, per_device_train_batch_size=4, **common)))


def test_svd_term_is_the_mean_over_the_micro_steps(tmp_path):
    # 3 micro-steps of an accumulation of 4: the only, incomplete, group
    common = {"objective": {"svd_coef": 1.0, "svd_k": 2}, "learning_rate": 0.0, "max_steps": 1}
    rows = make_rows(6)
    (group,) = run(
        make_trainer(
            tmp_path,
            rows=rows,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            train_sampling_strategy="sequential",
            **common,
        )
    )
    singles = [
        run(
            make_trainer(
                tmp_path,
                rows=rows.select(range(i, i + 2)),
                per_device_train_batch_size=2,
                **common,
            )
        )[0]["svd_loss"]
        for i in (0, 2, 4)
    ]
    assert len(set(singles)) == 3
    assert group["svd_loss"] == pytest.approx(sum(singles) / 3, abs=1e-6)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("logging_steps", [1, 2])
@pytest.mark.parametrize(
    "objective",
    [
        BALoraConfig.preset("paper"),
        BALoraConfig.preset("iclr2026", svd_variance_coef=0.01),
        BALoraConfig(**LARGE, temperature=2.0, entropy_top_k=20, svd_k=3),
        BALoraConfig(**LARGE, schedule="iclr2026"),
    ],
    ids=["paper", "iclr2026", "large", "large with schedule"],
)
def test_every_row_adds_up(tmp_path, accumulation, logging_steps, objective):
    rows = run(
        make_trainer(
            tmp_path,
            objective=objective,
            rows=make_rows(11),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            logging_steps=logging_steps,
            max_steps=8,
            learning_rate=5e-3,
        )
    )
    assert len(rows) == 8 // logging_steps
    for row in rows:
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
    assert all(f"{name}_coef" in rows[-1] for name in REGULARIZERS)


def test_coefficients_in_the_rows_follow_the_schedule(tmp_path):
    config = BALoraConfig.preset("iclr2026")
    rows = run(make_trainer(tmp_path, objective=config, max_steps=10))
    for step, row in enumerate(rows):
        for name, coefficient in coefficients_at(config, step / 10)._asdict().items():
            assert row.get(f"{name}_coef", 0.0) == pytest.approx(coefficient, rel=1e-6)


# packing

PACKED = {"packing": True, "max_length": 64}


def test_packed_rows_equal_unpacked_ones(tmp_path):
    # both see all eight rows in each of four steps; the SVD term sees them in another order
    common = {"objective": LARGE, "max_steps": 4}
    unpacked, gradients = run_with_gradients(tmp_path, per_device_train_batch_size=8, **common)
    packed, packed_gradients = run_with_gradients(
        tmp_path, per_device_train_batch_size=2, **PACKED, **common
    )
    assert_same(packed, unpacked, (*KEYS, "svd_loss", "mean_token_accuracy", "num_tokens"))
    assert unpacked[-1]["consistency_loss"] > 1e-3
    for one, other in zip(packed_gradients, gradients, strict=True):
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-5)


def test_both_passes_get_the_same_inputs(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, **PACKED)
    body, seen = trainer.model.get_base_model().base_model, []
    body.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    run(trainer)
    student, reference = seen[-2:]
    assert student.keys() == reference.keys()
    assert student["position_ids"] is reference["position_ids"]
    assert (student["position_ids"] == 0).sum() > 1
    assert student["use_cache"] is False


def make_bloom(rng):
    settings = {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **settings))
    for parameter in model.parameters():  # at its initial size attention hardly matters
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15, generator=rng)
    return model.eval()


@pytest.mark.parametrize("setting", [PACKED, {"padding_free": True, "max_length": None}], ids=str)
def test_a_model_that_lets_packed_rows_see_each_other_is_refused(tmp_path, setting, rng):
    trainer = make_trainer(tmp_path, model=make_bloom(rng), **setting)
    with pytest.raises(ConfigError, match="packed rows see each other in `BloomForCausalLM`"):
        trainer.train()


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma"])
def test_models_that_keep_packed_rows_apart_are_not_refused(tmp_path, name):
    (row,) = run(make_trainer(tmp_path, model=make_model(name), max_steps=1, **PACKED))
    assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)


# the same numbers in another way


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(tmp_path, use_reentrant):
    plain, gradients = run_with_gradients(tmp_path, objective=LARGE)
    checkpointed, checkpointed_gradients = run_with_gradients(
        tmp_path,
        objective=LARGE,
        **{CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": use_reentrant}},
    )
    assert_same(checkpointed, plain, (*KEYS, "svd_loss"))
    assert plain[-1]["consistency_loss"] > 0.01
    for one, other in zip(checkpointed_gradients, gradients, strict=True):
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-6)


def test_checkpointing_with_dropout_changes_nothing(tmp_path):
    rows = [
        run(make_trainer(tmp_path, model=make_model("gpt2"), objective=LARGE, **{CHECKPOINTING: c}))
        for c in (False, True)
    ]
    assert_same(*rows)


def test_the_same_seed_gives_the_same_run(tmp_path):
    def once(seed):
        trainer = make_trainer(tmp_path, model=make_model("gpt2"), objective=LARGE, seed=seed)
        return run(trainer), trained(trainer.model)

    (rows, weights), (rows_again, weights_again), (rows_other, _) = once(1), once(1), once(2)
    assert rows == rows_again
    assert is_equal(weights, weights_again)
    assert rows[0]["loss"] != rows_other[0]["loss"]  # dropout and order both follow the seed


def test_autocast_stays_near_float32(tmp_path):
    full = run(make_trainer(tmp_path, objective=LARGE, learning_rate=2e-3))
    half = run(make_trainer(tmp_path, objective=LARGE, learning_rate=2e-3, bf16=True))
    assert half[0]["consistency_loss"] == 0.0
    for row, expected in zip(half, full, strict=True):
        assert row["task_loss"] != expected["task_loss"]
        for key in ("task_loss", "diversity_loss", "svd_loss", "entropy"):
            assert row[key] == pytest.approx(expected[key], rel=0.02)
        # the difference of two close distributions: bfloat16 states leave a few percent
        assert row["consistency_loss"] == pytest.approx(
            expected["consistency_loss"], rel=0.15, abs=1e-4
        )
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
