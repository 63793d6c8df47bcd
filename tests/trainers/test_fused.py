"""The objective without logits, inside the trainer: the plain one's numbers, and fewer rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

import balora.trainers.step as step_module
from balora.anchored import initialise
from balora.cli import main
from balora.config import BALoraConfig
from balora.errors import NonFiniteError
from balora.fused import FusedObjective
from balora.models.head import head_of
from balora.objective import Objective, nlg_objective
from support.models import CAUSAL, OTHER_HEADS, make_model, make_tokenizer
from support.training import (
    CHECKPOINTING,
    LARGE,
    GradientRecorder,
    make_rows,
    make_trainer,
    recomposed,
    run,
)

ALL_CAUSAL = [*CAUSAL, *OTHER_HEADS]
FUSED = FusedObjective.__call__
OBJECTIVES = {
    "paper": BALoraConfig(**LARGE, svd_variance_coef=0.01),
    # T = 2, the entropy of the top 20, k = 10, the Frobenius norm; on from the first step
    "iclr2026": BALoraConfig.preset("iclr2026", **LARGE, schedule="constant"),
}


def plain(self, *args, **kwargs):
    """Stand in for the fused objective: what it is to equal."""
    return nlg_objective(*args, config=self.config, **kwargs)


class MicroStep(NamedTuple):
    """What one micro-step was given, made, and left in the parameters."""

    hidden: Tensor
    reference_hidden: Tensor | None
    targets: Tensor
    objective: Objective
    gradients: dict[str, Tensor]

    def values(self) -> dict[str, float]:
        loss, terms, counts = self.objective
        named = {"loss": loss, **terms._asdict(), **counts._asdict()}
        is_on = {name: value for name, value in named.items() if value is not None}
        return {name: float(torch.as_tensor(value).detach()) for name, value in is_on.items()}


def make_batch(rng: torch.Generator) -> dict[str, Tensor]:
    """Return three rows of one length, some tokens of which are scored, also in two turns."""
    ids = torch.randint(3, 128, (3, 12), generator=rng)
    labels = ids.clone()
    labels[:, :4] = labels[0, 6:9] = labels[1, -5:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def moved_trainer(tmp_path, model, rng, objective=OBJECTIVES["paper"], by=0.1, **settings):
    """Return a trainer whose adapter has left its start, its model wrapped as for training."""
    trainer = make_trainer(tmp_path, model=model, objective=objective, **settings)
    initialise(trainer.model)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=rng).to(parameter.dtype)
    trainer.current_gradient_accumulation_steps = 2
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    return trainer


def micro_step(trainer, batch, objective: Callable[..., Any] = FUSED) -> MicroStep:
    """Take one micro-step of two, of 29 tokens together, with the objective that is given."""
    seen: list[Any] = []

    def spy(self: Any, *args: Any, **kwargs: Any) -> Objective:
        seen.append((*args, objective(self, *args, **kwargs)))
        return seen[-1][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedObjective, "__call__", spy)
        if objective is FUSED:
            patch.setattr(step_module, "nlg_objective", None)
        torch.manual_seed(0)  # the same dropout
        trainer.training_step(trainer.model_wrapped, dict(batch), torch.tensor(29))
    parameters = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
    gradients = {name: parameter.grad.clone() for name, parameter in parameters}
    trainer.model.zero_grad()
    ((hidden, reference_hidden, targets, result),) = seen
    return MicroStep(hidden, reference_hidden, targets, result, gradients)


def error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference over the largest value, of all tensors together."""
    assert actual.keys() == expected.keys()
    differences = [(actual[name] - value).abs().max() for name, value in expected.items()]
    return float(max(differences) / max(value.abs().max() for value in expected.values()))


def assert_equal_steps(trainer, batch, tolerance: float) -> MicroStep:
    """Assert that the fused objective makes of ``batch`` what the plain one does."""
    fused, expected = (micro_step(trainer, batch, objective) for objective in (FUSED, plain))
    assert expected.objective.terms.consistency > 1e-3
    for name, value in expected.values().items():
        # a small consistency is the difference of large logarithms
        tolerated = tolerance * max(abs(value), 0.1)
        assert fused.values()[name] == pytest.approx(value, abs=tolerated), name
    assert any("lora_A" in name for name in expected.gradients)
    assert error(fused.gradients, expected.gradients) < tolerance
    return fused


# every output layer


# float32 differs by the rounding of two ways to sum; in float64 the two are one function
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("architecture", ALL_CAUSAL)
def test_terms_and_gradients_are_the_plain_ones(
    tmp_path, architecture, objective, dtype, tolerance, rng
):
    model = make_model(architecture, dtype=dtype)
    trainer = moved_trainer(tmp_path, model, rng, OBJECTIVES[objective])
    step = assert_equal_steps(trainer, make_batch(rng), tolerance)
    assert step.hidden.dtype == dtype


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "cohere"])
def test_tied_and_untied_embeddings(tmp_path, architecture, tied, rng):
    model = make_model(architecture, tie_word_embeddings=tied)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied
    trainer = moved_trainer(tmp_path, model, rng)
    assert_equal_steps(trainer, make_batch(rng), 2e-6)


def test_the_svd_term_is_taken_before_the_soft_cap_and_the_others_after_it(tmp_path, rng):
    model = make_model("gemma2")
    step = micro_step(moved_trainer(tmp_path, model, rng), make_batch(rng))
    head, step = head_of(model), step._replace(hidden=step.hidden.detach())
    before = head.linear(step.hidden)
    assert (before.abs() > head.softcap).double().mean() > 0.1
    sigma = torch.linalg.svdvals(before.double())
    leading = sigma[: -(-3 * len(sigma) // 10)]
    svd = -(leading.sum() / sigma.sum() + 0.01 * leading.var(correction=0)) / 2
    assert step.values()["svd"] == pytest.approx(svd.item(), rel=1e-5)
    task = F.cross_entropy(head(step.hidden), step.targets, reduction="sum") / 29
    assert step.values()["task"] == pytest.approx(task.item(), rel=1e-5)


# both passes


def test_hidden_states_are_the_students_and_the_pre_trained_models(tmp_path, rng):
    trainer = moved_trainer(tmp_path, make_model("gpt2"), rng)
    batch = make_batch(rng)
    step = micro_step(trainer, batch)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    mask = batch["labels"].roll(-1, dims=1) != -100
    mask[:, -1] = False
    pre_trained = make_model("gpt2").transformer(**inputs).last_hidden_state
    assert torch.equal(step.reference_hidden, pre_trained[mask])  # without dropout
    assert not step.reference_hidden.requires_grad
    body = trainer.model.get_base_model().transformer.train()
    torch.manual_seed(0)
    assert torch.equal(step.hidden, body(**inputs).last_hidden_state[mask])  # with dropout
    assert not torch.equal(step.hidden, body.eval()(**inputs).last_hidden_state[mask])


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_checkpointed_gradients_are_the_plain_ones(tmp_path, architecture, use_reentrant):
    # GPT-2 with its dropout: the second forward has to draw the same
    settings = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": use_reentrant}}
    found, expected = (
        train_steps(tmp_path, architecture, objective, **chosen)
        for objective, chosen in ((FUSED, settings), (plain, {}))
    )
    assert error(found[-1], expected[-1]) < 1e-5


def train_steps(tmp_path, architecture, objective, **settings):
    """Return the gradients of three optimizer steps of a run with the objective that is given."""
    trainer = make_trainer(
        tmp_path, model=make_model(architecture), objective=LARGE, max_grad_norm=0.0, **settings
    )
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedObjective, "__call__", objective)
        rows = run(trainer)
    assert rows[-1]["consistency_loss"] > 1e-3
    return recorder.steps


# half precision


# also near the reference, where the rounding of bfloat16 logits would be larger than the term
@pytest.mark.parametrize("by", [0.1, 0.003], ids=["far", "near"])
@pytest.mark.parametrize("precision", ["autocast", "bfloat16 base"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "phi"])
def test_half_precision_agrees_with_the_plain_objective(tmp_path, architecture, precision, by, rng):
    autocast = precision == "autocast"
    model = make_model(architecture, dtype=torch.float32 if autocast else torch.bfloat16)
    objective = BALoraConfig(**LARGE | {"consistency_coef": 100.0})
    trainer = moved_trainer(tmp_path, model, rng, objective, by=by, bf16=autocast)
    batch = make_batch(rng)
    fused, expected = (micro_step(trainer, batch, objective) for objective in (FUSED, plain))
    # the plain head multiplies in float32; an 8-bit mantissa rounds by up to 2^-9, in many places
    for name, value in expected.values().items():
        assert fused.values()[name] == pytest.approx(value, rel=5e-3), name
    assert error(fused.gradients, expected.gradients) < 3e-2


@pytest.mark.parametrize("precision", ["autocast", "bfloat16 base"])
def test_half_precision_trains(tmp_path, precision):
    autocast = precision == "autocast"
    model = make_model("llama", dtype=torch.float32 if autocast else torch.bfloat16)
    settings = {"objective": BALoraConfig(), "max_steps": 10, "per_device_train_batch_size": 8}
    half = run(make_trainer(tmp_path, model=model, bf16=autocast, **settings))
    full = run(make_trainer(tmp_path, **settings))
    assert half[-1]["loss"] < 0.5 * half[0]["loss"]
    for row, expected in zip(half, full, strict=True):
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.03, abs=0.03)


# what reaches a head


def count_positions(model) -> list[int]:
    """Return a list that grows by the positions of every call of the model's own head."""
    counts: list[int] = []

    def count(_module, args, kwargs, _output):
        if not kwargs:  # in there the objective is computed too
            counts.append(args[0][..., 0].numel())

    model.get_output_embeddings().register_forward_hook(count, with_kwargs=True)
    return counts


def count_rows(monkeypatch) -> list[int]:
    """Return a list that grows by the rows of every call of the fused objective."""
    counts: list[int] = []

    def spy(self, hidden, reference_hidden, targets, **kwargs):
        assert hidden.shape == reference_hidden.shape
        counts.append(len(hidden))
        return FUSED(self, hidden, reference_hidden, targets, **kwargs)

    monkeypatch.setattr(FusedObjective, "__call__", spy)
    return counts


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_models_own_head_sees_the_four_tokens_of_its_check(tmp_path, architecture):
    model = make_model(architecture)
    positions = count_positions(model)
    trainer = make_trainer(tmp_path, model=model, objective=LARGE, max_steps=4)
    run(trainer)
    assert positions == [4]


TEXTS = ["abc", "defghijk", "lm", "nopqrstuvw"]
SCORED = {
    # the completion and the end of the row
    "completions": ([{"prompt": "ab=", "completion": text} for text in TEXTS], {}, 1),
    # every token but the first, which nothing predicts
    "text": ([{"text": text} for text in TEXTS], {}, 0),
    "packed": ([{"text": text} for text in TEXTS], {"packing": True, "max_length": 64}, 0),
    "padding-free": (
        [{"text": text} for text in TEXTS],
        {"padding_free": True, "max_length": None},
        0,
    ),
}


@pytest.mark.parametrize("name", SCORED)
def test_only_scored_positions_reach_the_objective(tmp_path, name, monkeypatch):
    rows, settings, num_ends = SCORED[name]
    trainer = make_trainer(tmp_path, rows=Dataset.from_list(rows), max_steps=2, **settings)
    counts = count_rows(monkeypatch)
    run(trainer)
    num_scored = sum(len(text) + num_ends for text in TEXTS)
    assert counts == [num_scored] * 2


# training every weight


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # untied and tied
def test_full_fine_tuning_gives_the_head_its_own_gradient(tmp_path, architecture, monkeypatch):
    monkeypatch.setattr(FusedObjective, "__call__", None)
    objective = {"consistency_coef": 0.0, "diversity_coef": 0.3, "svd_coef": 0.5}
    model = make_model(architecture)
    recorder = GradientRecorder()
    trainer = make_trainer(
        tmp_path,
        model=model,
        objective=objective,
        options={"peft_config": None},
        max_steps=1,
        max_grad_norm=0.0,
    )
    trainer.add_callback(recorder)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = plain_gradients(make_model(architecture), batch)
    torch.manual_seed(trainer.args.seed)
    run(trainer)
    assert error(recorder.steps[0], expected) < 1e-5
    assert model.get_output_embeddings().weight.requires_grad


def plain_gradients(model, batch):
    """Return the gradients of the objective by its definition, from the model's own logits."""
    labels = batch.pop("labels")[:, 1:]
    outputs = model(**batch, output_hidden_states=True)
    logits = outputs.logits[:, :-1][labels != -100]
    linear = head_of(model).linear(outputs.hidden_states[-1][:, :-1][labels != -100])
    log_probs = logits.log_softmax(-1)
    sigma = torch.linalg.svdvals(linear.double())
    leading = sigma[: -(-3 * min(len(linear), 32) // 10)]
    loss = F.nll_loss(log_probs, labels[labels != -100])
    loss = loss + 0.3 * (log_probs.exp() * log_probs).sum(-1).mean()
    loss = loss - 0.5 * leading.sum() / sigma.sum()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_head_frozen_by_hand_is_not_trained(tmp_path):
    model = make_model("llama")
    model.get_output_embeddings().requires_grad_(False)
    before = model.get_output_embeddings().weight.clone()
    objective = {**LARGE, "consistency_coef": 0.0}
    trainer = make_trainer(
        tmp_path, model=model, objective=objective, options={"peft_config": None}
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model_wrapped = trainer.model
    fused, expected = (micro_step(trainer, batch, objective) for objective in (FUSED, plain))
    assert error(fused.gradients, expected.gradients) < 2e-6
    run(trainer)
    assert torch.equal(model.get_output_embeddings().weight, before)


# a run that diverges


def spoil_after(num_steps, value=float("nan")):
    """Return a callback that breaks the model's last norm after ``num_steps`` steps."""

    class Spoil(GradientRecorder):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step == num_steps:
                model.get_base_model().model.norm.weight.data[0] = value

    return Spoil()


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_model_that_becomes_nan_stops_the_run_and_names_the_step(tmp_path, num_steps):
    trainer = make_trainer(tmp_path, objective=LARGE, max_steps=5)
    trainer.add_callback(spoil_after(num_steps))
    sentence = rf"^step {num_steps + 1}: `hidden` holds NaN or infinity in (\d+) of its \1 rows"
    with pytest.raises(NonFiniteError, match=sentence):
        trainer.train()
    assert trainer.state.global_step == num_steps


def test_full_fine_tuning_that_diverges_stops_and_names_the_step(tmp_path):
    objective = {**LARGE, "consistency_coef": 0.0}
    trainer = make_trainer(
        tmp_path, objective=objective, options={"peft_config": None}, learning_rate=1e30
    )
    with pytest.raises(NonFiniteError, match=r"^step 2: the loss is NaN or infinite"):
        trainer.train()


def test_a_diverged_run_is_one_sentence_and_exit_status_1(tmp_path, capsys):
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    rows = [json.dumps(row) for row in make_rows()]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    fields = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "rows.jsonl",
        "output_dir": tmp_path / "out",
        "lora_r": 2,
        "max_steps": 5,
        "learning_rate": 1e30,
        "lr_scheduler_type": "constant",
        "disable_tqdm": "true",
    }
    status = main(["train", *(f"--{name}={value}" for name, value in fields.items())])
    assert status == 1
    assert "balora: step 2: `hidden` holds NaN or infinity" in capsys.readouterr().err
