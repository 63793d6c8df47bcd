"""The trainer: where ``SFTTrainer`` stood, with the objective computed on the right tokens."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from balora import BALoraConfig, BALoraSFTTrainer
from balora.errors import ConfigError
from balora.trainers.sft import default_arguments
from support.models import make_model, make_tokenizer
from support.training import (
    LARGE,
    OFF,
    REGULARIZERS,
    lora_config,
    make_plain_trainer,
    make_rows,
    make_trainer,
    recomposed,
    run,
    sft_config,
)

PLAIN = {**OFF, "adapter_init": "lora"}
TEXT = [{"text": "abc"}, {"text": "defghijk"}, {"text": "lm"}, {"text": "nopqrstuvw"}]


# where SFTTrainer stood


@pytest.mark.parametrize("rows", [None, Dataset.from_list(TEXT)], ids=["completions", "text"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_terms_it_is_trls_trainer(tmp_path, rows, accumulation):
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 5,
        "lr_scheduler_type": "cosine",
    }
    options = {"train_dataset": make_rows() if rows is None else rows}
    expected = run(make_plain_trainer(tmp_path, options=options, **settings))
    found = run(make_trainer(tmp_path, objective=PLAIN, options=options, **settings))
    assert len(found) == len(expected) == 5
    keys = ["loss", "grad_norm", "learning_rate", "num_tokens", "epoch"]
    if accumulation == 1:  # trl averages the means of the micro-steps, here it is over the tokens
        keys += ["entropy", "mean_token_accuracy"]
    for row, other in zip(found, expected, strict=True):
        assert other.keys() <= row.keys()
        for key in keys:
            assert row[key] == pytest.approx(other[key], abs=1e-6, rel=1e-6), key
        assert row["task_loss"] == pytest.approx(row["loss"], abs=1e-6)
        assert not any(f"{name}_loss" in row for name in REGULARIZERS)


def test_names_at_the_top_of_the_package(tmp_path):
    trainer = BALoraSFTTrainer(
        model=make_model("llama"),
        args=sft_config(tmp_path),
        train_dataset=make_rows(),
        processing_class=make_tokenizer(),
        peft_config=lora_config(),
        balora_config=BALoraConfig.preset("paper", task="nlg"),
    )
    assert len(run(trainer)) == 3


def test_the_callers_arguments_stay_as_they_were(tmp_path):
    args = sft_config(tmp_path)
    before = args.to_dict()
    rows = [{"messages": [{"role": "assistant", "content": "abc"}]}]
    trainer = BALoraSFTTrainer(
        make_model("llama"),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
        peft_config=lora_config(),
    )
    assert trainer.args.assistant_only_loss
    assert args.to_dict() == before


def test_plain_training_arguments_are_taken_as_trl_takes_them(tmp_path):
    args = TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to="none", logging_steps=1
    )
    trainer = BALoraSFTTrainer(
        make_model("llama"),
        args,
        train_dataset=make_rows(),
        processing_class=make_tokenizer(),
        peft_config=lora_config(),
    )
    assert len(run(trainer)) == 1


def test_without_arguments_it_runs_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = default_arguments(make_model("llama"))
    assert (args.bf16, args.gradient_checkpointing) == (torch.cuda.is_available(), False)
    assert default_arguments("someone/some-model/").output_dir == "some-model-BALoRA"
    trainer = BALoraSFTTrainer(
        make_model("llama"),
        train_dataset=make_rows(2),
        processing_class=make_tokenizer(),
        peft_config=lora_config(),
    )
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(
    ("rows", "settings"),
    [(TEXT, {}), (TEXT, {"packing": True, "max_length": 16}), (None, {})],
    ids=["text", "packed", "completions"],
)
def test_a_micro_step_outside_the_loop_is_a_mean_over_the_shifted_labels(tmp_path, rows, settings):
    # of plain text the first label counts too, and predicts nothing
    data = None if rows is None else Dataset.from_list(rows)
    trainer = make_trainer(tmp_path, objective=OFF, rows=data, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, dict(batch))
        others = {k: v for k, v in batch.items() if k != "labels"}
        logits = trainer.model(**others).logits[:, :-1]
    following = batch["labels"][:, 1:]
    counts = following != -100
    expected = F.cross_entropy(logits[counts], following[counts])
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


# the reference pass


def count_forwards(trainer):
    """Return a list that grows by the training flag at every pass through the body."""
    flags, body = [], trainer.model.get_base_model().base_model
    body.register_forward_pre_hook(lambda module, _: flags.append(module.training))
    return flags


def test_a_reference_pass_is_run_for_the_consistency_only(tmp_path):
    trainer = make_trainer(tmp_path, objective={"consistency_coef": 0.0})
    flags = count_forwards(trainer)
    run(trainer)
    # the first step checks the head with two passes over four tokens
    assert flags == [False, False, True, True, True]

    trainer = make_trainer(tmp_path)
    flags = count_forwards(trainer)
    run(trainer)
    assert flags == [False, False, True, False, True, False, True, False]


class Independent:
    """Computes every row anew from the logits of the student and of a copy of the base."""

    def __init__(self, trainer, base):
        self.rows, self.num_tokens, self.base = [], 0, base
        self.inner, trainer.compute_loss = trainer.compute_loss, self

    @torch.no_grad()
    def __call__(self, model, inputs, **kwargs):
        labels = inputs["labels"][:, 1:]
        scored = labels != -100
        passed = {k: v for k, v in inputs.items() if k != "labels"}
        logits = model(**passed).logits[:, :-1][scored].double()
        reference = self.base(**passed).logits[:, :-1][scored].double()
        self.num_tokens += int(inputs["attention_mask"].sum())
        p, q = reference.log_softmax(-1), logits.log_softmax(-1)
        self.rows.append(
            {
                "task_loss": F.nll_loss(q, labels[scored]).item(),
                "consistency_loss": (p.exp() * (p - q)).sum(-1).mean().item(),
                "diversity_loss": (q.exp() * q).sum(-1).mean().item(),
                "entropy": -(q.exp() * q).sum(-1).mean().item(),
                "mean_token_accuracy": (q.argmax(-1) == labels[scored]).double().mean().item(),
                "num_tokens": self.num_tokens,
            }
        )
        with torch.enable_grad():
            return self.inner(model, inputs, **kwargs)


def test_rows_equal_an_independent_computation(tmp_path):
    model = make_model("llama")
    trainer = make_trainer(
        tmp_path, model=model, objective=LARGE, max_steps=6, rows=make_rows(), learning_rate=0.1
    )
    independent = Independent(trainer, make_model("llama"))
    rows = run(trainer)
    assert rows[0]["consistency_loss"] == 0.0
    assert rows[-1]["consistency_loss"] > 0.1
    assert any(row["mean_token_accuracy"] > 0 for row in rows)
    for row, expected in zip(rows, independent.rows, strict=True):
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, abs=2e-6, rel=2e-6), key


def test_dropout_is_off_in_the_reference_and_on_in_the_student(tmp_path):
    model = make_model("gpt2")
    model.transformer.h[1].mlp.dropout.p = 0.0
    trainer = make_trainer(tmp_path, model=model, objective=LARGE, max_steps=1)
    frozen = trainer.model.get_base_model().transformer.h[1].mlp
    flags = []
    for name, module in trainer.model.named_modules():
        if name.endswith("drop"):
            module.register_forward_pre_hook(lambda module, _: flags.append(module.training))
    train = trainer.model.train
    # one part of the model is kept in eval mode: it must stay so
    trainer.model.train = lambda mode=True: (train(mode), frozen.eval())[0]
    inner, found = trainer.compute_loss, []

    def compute_loss(*args, **kwargs):
        before = {name for name, module in trainer.model.named_modules() if module.training}
        loss = inner(*args, **kwargs)
        found.append(before == {n for n, m in trainer.model.named_modules() if m.training})
        found.append(bool(before) and not frozen.training)
        return loss

    trainer.compute_loss = compute_loss
    (row,) = run(trainer)
    assert flags == [False, False, True, False]
    assert found == [True, True]
    assert row["consistency_loss"] > 1e-4  # dropout alone moves the student at the start


def test_what_is_trained_does_not_change(tmp_path):
    trainer = make_trainer(tmp_path, objective=LARGE)
    before = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    base = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert before
    assert all("lora_A" in name or "lora_B" in name for name in before)
    run(trainer)
    assert before == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in base.items())


def test_optimizer_holds_a_and_b_in_the_order_of_plain_lora(tmp_path):
    def held(trainer):
        names = {id(p): n for n, p in trainer.model.named_parameters()}
        groups = trainer.create_optimizer().param_groups
        return [[names[id(p)] for p in group["params"]] for group in groups]

    found = held(make_trainer(tmp_path))
    assert found == held(make_plain_trainer(tmp_path))
    assert sum(map(len, found)) == 28  # two layers of seven matrices, A and B


# evaluation


def test_eval_loss_is_the_task_loss(tmp_path):
    trainer = make_trainer(
        tmp_path,
        objective=LARGE,
        options={"eval_dataset": make_rows(5)},
        eval_strategy="steps",
        eval_steps=2,
        max_steps=2,
        per_device_eval_batch_size=5,
    )
    flags = count_forwards(trainer)
    run(trainer)
    assert len(flags) == 2 + 2 * 2 + 1  # head check, two steps, one evaluation without reference
    row = next(row for row in trainer.state.log_history if "eval_loss" in row)
    batch = trainer.data_collator(list(trainer.eval_dataset))
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits[:, :-1]
    expected = F.cross_entropy(logits[labels != -100], labels[labels != -100])
    assert row["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert {"eval_entropy", "eval_mean_token_accuracy"} <= row.keys()


def test_evaluation_between_two_rows_counts_the_tokens_so_far(tmp_path):
    trainer = make_trainer(
        tmp_path,
        options={"eval_dataset": make_rows(2)},
        eval_strategy="steps",
        eval_steps=1,
        logging_steps=2,
        max_steps=2,
    )
    (row,) = run(trainer)
    counts = [r["eval_num_tokens"] for r in trainer.state.log_history if "eval_num_tokens" in r]
    assert 0 < counts[0] < counts[1] == row["num_tokens"]
    assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)


# rows that do not add up by accident


class LogsSomething(TrainerCallback):
    trainer = None

    def on_substep_end(self, args, state, control, **_):
        self.trainer.log({"mine": 1.0})


def test_a_users_own_log_call_does_not_take_the_terms_away(tmp_path):
    trainer = make_trainer(tmp_path, objective=LARGE, gradient_accumulation_steps=2, max_steps=2)
    callback = LogsSomething()
    callback.trainer = trainer
    trainer.add_callback(callback)
    for row in run(trainer):
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
    assert [set(r) for r in trainer.state.log_history if "mine" in r] == [
        {"mine", "epoch", "step"}
    ] * 2


def test_a_second_call_of_train_starts_with_empty_rows(tmp_path):
    trainer = make_trainer(tmp_path, objective=LARGE, logging_steps=2, max_steps=3)
    run(trainer)  # the third step is never logged
    *_, row = run(trainer)
    assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)


def test_a_micro_batch_without_a_scored_token_gives_a_finite_row(tmp_path):
    rows = [
        {"input_ids": [5, 6, 7, 2], "labels": [-100] * 4},
        {"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2]},
    ]
    trainer = make_trainer(
        tmp_path,
        objective=LARGE,
        rows=Dataset.from_list(rows),
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=1,
        max_steps=4,
    )
    found = run(trainer)
    empty = [row for row in found if row["task_loss"] == 0.0]
    assert len(empty) == 2
    for row in found:
        assert all(value == value and abs(value) < 1e3 for value in row.values())
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
    assert all(row["loss"] == row["entropy"] == row["grad_norm"] == 0.0 for row in empty)


# which tokens are scored


def labelled_text(trainer):
    tokenizer = make_tokenizer()
    return [
        tokenizer.decode([label for label in row["labels"] if label != -100])
        for row in trainer.train_dataset
    ]


def test_only_the_completion_and_its_end_are_scored(tmp_path):
    rows = Dataset.from_list([{"prompt": "ab=", "completion": "cd"}])
    trainer = make_trainer(tmp_path, rows=rows)
    assert labelled_text(trainer) == ["cd</s>"]
    (row,) = run(make_trainer(tmp_path, rows=rows, max_steps=1))
    model = make_model("llama")
    ids = torch.tensor([[*map(ord, "ab=cd"), 2]])
    with torch.no_grad():
        expected = F.cross_entropy(model(input_ids=ids).logits[0, 2:5], ids[0, 3:])
    assert row["task_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_only_the_assistants_turns_are_scored(tmp_path):
    turns = [("user", "ab"), ("assistant", "cd"), ("user", "ef"), ("assistant", "gh")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rows = Dataset.from_list([{"messages": messages}])
    assert labelled_text(make_trainer(tmp_path, rows=rows)) == ["cd</s>gh</s>"]


def test_only_the_completion_of_a_chat_is_scored(tmp_path):
    prompt, completion = (
        [{"role": role, "content": text}] for role, text in (("user", "ab"), ("assistant", "cd"))
    )
    rows = Dataset.from_list([{"prompt": prompt, "completion": completion}])
    assert labelled_text(make_trainer(tmp_path, rows=rows)) == ["cd</s>"]


# training every weight


def test_full_fine_tuning(tmp_path):
    objective = {**LARGE, "consistency_coef": 0.0}
    model = make_model("llama")
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(
        tmp_path, model=model, objective=objective, options={"peft_config": None}
    )
    rows = run(trainer)
    assert "consistency_loss" not in rows[0]
    assert rows[-1]["loss"] < rows[0]["loss"]
    for row in rows:
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
    assert all(not torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_full_fine_tuning_with_consistency_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"`consistency_coef` is 0.0001, but full fine-tuning"):
        make_trainer(tmp_path, options={"peft_config": None})


def test_a_formatting_function_is_used_without_a_warning(tmp_path, caplog):
    rows = Dataset.from_list([{"a": "12", "b": "34"}])
    options = {"formatting_func": lambda row: row["a"] + row["b"]}
    trainer = make_trainer(tmp_path, rows=rows, options=options)
    assert labelled_text(trainer) == ["1234</s>"]
    assert "formatting" not in caplog.text


def test_a_streamed_data_set(tmp_path):
    rows = run(make_trainer(tmp_path, rows=make_rows().to_iterable_dataset()))
    assert len(rows) == 3
