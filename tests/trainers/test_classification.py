"""The classification trainer: upstream's numbers, accumulation, the terms, data, refusals."""

from __future__ import annotations

import inspect
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import get_peft_model
from torch.nn import functional
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback

from balora.anchored import anchor_adapter, initialise, reference_mode
from balora.config import BALoraConfig
from balora.errors import ConfigError, DataError, NonFiniteError, RowError
from balora.models.classifier import ClassifierHead
from balora.trainers import BALoraTrainer
from balora.trainers.checks import check_single_device
from support.classification import (
    METHODS,
    arguments,
    logits_of,
    lora_config,
    make_classifier,
    make_rows,
    make_trainer,
)
from support.models import make_tokenizer
from support.training import GradientRecorder, loss_rows, recomposed, run, trained

TASK_TYPES = {"3-way": 3, "binary": 2, "regression": 1}
NAMES = ("consistency", "diversity", "svd")
ALONE = {name: {f"{other}_coef": 0.0 for other in NAMES if other != name} for name in NAMES}


def assert_adds_up(rows):
    for row in rows:
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6, rel=1e-6)


# transformers' own trainer


def upstream(output_dir, method, num_labels, **settings):
    """Return transformers' trainer of the same model; it knows nothing of the objective."""
    model = make_classifier(num_labels=num_labels, dropout=True).model
    if method != "full":
        model = get_peft_model(model, lora_config())
    if method in ("pissa", "balora"):
        initialise(anchor_adapter(model, BALoraConfig()))
    return Trainer(
        model,
        arguments(output_dir, **settings),
        train_dataset=make_rows(12, num_labels=num_labels),
        processing_class=make_tokenizer(),
    )


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("method", ["full", "lora", "pissa"])
def test_without_terms_it_is_the_trainer_of_transformers(tmp_path, method, task_type):
    num_labels = TASK_TYPES[task_type]
    torch.manual_seed(0)  # PEFT draws the start of a LoRA
    theirs = upstream(tmp_path, method, num_labels)
    expected_rows, expected = run(theirs), trained(theirs.model)
    torch.manual_seed(0)
    ours = make_trainer(
        tmp_path,
        model=make_classifier(num_labels=num_labels, dropout=True),
        method=method,
        num_labels=num_labels,
        rows=make_rows(12, num_labels=num_labels),
    )
    for own, other in zip(run(ours), expected_rows, strict=True):
        assert own["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
        assert own["task_loss"] == pytest.approx(own["loss"], rel=1e-6)
        assert not any(f"{name}_loss" in own for name in NAMES)
    for name, weight in trained(ours.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_evaluation_is_that_of_transformers_at_any_batch_size(tmp_path, task_type):
    num_labels = TASK_TYPES[task_type]
    rows = make_rows(7, num_labels=num_labels)
    theirs = upstream(tmp_path, "full", num_labels).evaluate(rows)["eval_loss"]
    for size in (2, 7):  # with 2 the last batch is shorter
        trainer = make_trainer(tmp_path, num_labels=num_labels, per_device_eval_batch_size=size)
        assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(theirs, rel=1e-5)


# accumulation

EXAMPLE_MEANS = {"diversity_coef": 0.0, "svd_coef": 0.0}


def accumulated(output_dir, method, num_labels, micro_steps):
    """Return log rows and gradients of three steps of the same eight rows."""
    objective = {}
    if method == "balora":  # with one output, the consistency of the logits is a batch term
        objective = {**EXAMPLE_MEANS, "space": "features" if num_labels == 1 else "logits"}
    torch.manual_seed(0)
    trainer = make_trainer(
        output_dir,
        method=method,
        objective=objective,
        num_labels=num_labels,
        per_device_train_batch_size=8 // micro_steps,
        gradient_accumulation_steps=micro_steps,
        train_sampling_strategy="sequential",
        optim="sgd",  # Adam would blow up the rounding of small gradients
        learning_rate=0.05,
        max_grad_norm=0.0,
    )
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    return run(trainer), recorder.steps


def pairwise():
    """Return method and task type with micro-steps: every pair of the three, and all of balora."""
    for i, method in enumerate(METHODS):
        for j, task_type in enumerate(TASK_TYPES):
            one = ((2,), (8,))[(i + j) % 2]
            yield method, task_type, (2, 8) if method == "balora" else one


@pytest.mark.parametrize(("method", "task_type", "micro"), list(pairwise()))
def test_1_x_8_is_2_x_4_is_8_x_1(tmp_path, method, task_type, micro):
    rows, gradients = accumulated(tmp_path, method, TASK_TYPES[task_type], 1)
    assert ("consistency_loss" in rows[-1]) == (method == "balora")
    assert rows[-1].get("consistency_loss", 1.0) > 1e-5
    for micro_steps in micro:
        others, other_gradients = accumulated(tmp_path, method, TASK_TYPES[task_type], micro_steps)
        assert_adds_up(others)
        for row, other in zip(rows, others, strict=True):
            for key in row:
                assert other[key] == pytest.approx(row[key], rel=1e-5, abs=1e-6), key
        for step, other in zip(gradients, other_gradients, strict=True):
            for name, gradient in step.items():
                torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_shorter_last_group_of_an_epoch_counts_its_own_micro_steps(tmp_path):
    trainer = make_trainer(
        tmp_path,
        rows=make_rows(12),
        gradient_accumulation_steps=2,
        max_steps=-1,
        num_train_epochs=1,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
    )
    last = run(trainer)[-1]
    alone = make_trainer(
        tmp_path, rows=make_rows(12).select(range(8, 12)), max_steps=1, learning_rate=0.0
    )
    (expected,) = run(alone)
    for name in ("task_loss", "diversity_loss", "svd_loss", "loss"):
        assert last[name] == pytest.approx(expected[name], rel=1e-5)


# the terms, by their definitions in float64


def turned(rows):
    norms = np.linalg.norm(rows, axis=0 if rows.shape[1] == 1 else 1, keepdims=True)
    return rows / norms


def consistency(rows, reference):
    return ((turned(rows) - turned(reference)) ** 2).sum() / len(rows)


def diversity(rows):
    centred = rows - rows.mean(axis=0)
    covariance = centred.T @ centred / (len(rows) - 1)
    return (covariance**2).sum() / len(covariance) - (np.diag(covariance) ** 2).sum() / len(
        covariance
    )


def svd(rows, fraction=0.3):
    sigma = np.linalg.svd(rows, compute_uv=False)
    return -sigma[: int(np.ceil(fraction * len(sigma)))].sum() / sigma.sum()


def task(logits, labels):
    if logits.shape[1] == 1:
        return ((logits[:, 0] - labels) ** 2).mean()
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_probs[np.arange(len(labels)), labels].mean()


@torch.no_grad()
def disturb(trainer):
    """Move the trained weights, so that the student is no longer the reference."""
    generator = torch.Generator().manual_seed(1)
    initialise(trainer.model)
    for parameter in (p for p in trainer.model.parameters() if p.requires_grad):
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def rows_now(trainer, space):
    """Return student rows, reference rows, logits and labels of all training rows, float64."""
    base, rows = trainer.model.get_base_model(), trainer.train_dataset
    kept = [{k: row[k] for k in ("input_ids", "attention_mask")} for row in rows]
    batch = make_tokenizer().pad(kept, return_tensors="pt")
    base.eval()

    def seen():
        output, features = ClassifierHead(base).run(base, dict(batch))
        return (output.logits if space == "logits" else features), output.logits

    student, logits = seen()
    with reference_mode(base):
        reference, _ = seen()
    found = [x.double().numpy() for x in (student, reference, logits)]
    return (*found, np.array(rows["labels"][:]))


@pytest.mark.parametrize("space", ["logits", "features"])
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_terms_are_their_definitions_averaged_over_the_micro_steps(tmp_path, task_type, space):
    num_labels = TASK_TYPES[task_type]
    trainer = make_trainer(
        tmp_path,
        objective={"space": space},
        num_labels=num_labels,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
    )
    disturb(trainer)
    student, reference, logits, labels = rows_now(trainer, space)
    (row,) = run(trainer)
    parts = [slice(0, 4), slice(4, 8)]
    expected = {
        "task_loss": task(logits, labels),
        "diversity_loss": np.mean([diversity(student[p]) for p in parts]),
        "svd_loss": np.mean([svd(student[p]) for p in parts]),
        # over examples the mean of halves is the mean; over batch vectors it is the definition
        "consistency_loss": np.mean([consistency(student[p], reference[p]) for p in parts]),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert row["consistency_loss"] > 1e-3
    assert_adds_up([row])
    if num_labels > 1:
        assert row["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    else:
        assert "accuracy" not in row


@pytest.mark.parametrize("name", NAMES)
def test_a_term_alone_is_all_there_is_in_the_log(tmp_path, name):
    trainer = make_trainer(tmp_path, objective=ALONE[name])
    rows = run(trainer)
    assert_adds_up(rows)
    found = {key for row in rows for key in row if key.endswith("_loss")}
    assert found == {"task_loss", f"{name}_loss"}


@pytest.mark.parametrize("space", ["logits", "features"])
def test_no_gradient_reaches_the_reference(tmp_path, space):
    trainer = make_trainer(tmp_path, objective={"space": space})
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    run(trainer)
    for name, parameter in trainer.model.named_parameters():
        is_trained = "lora_" in name or ".modules_to_save." in name
        assert parameter.requires_grad == is_trained, name
        assert torch.equal(parameter, start[name]) != is_trained, name


# dtypes


@pytest.mark.parametrize("space", ["logits", "features"])
@pytest.mark.parametrize("bf16", [False, True], ids=["bf16 model", "autocast"])
def test_half_precision(tmp_path, bf16, space, caplog):
    dtype = torch.float32 if bf16 else torch.bfloat16
    with caplog.at_level(logging.WARNING, "balora"):
        trainer = make_trainer(
            tmp_path, model=make_classifier(dtype=dtype), objective={"space": space}, bf16=bf16
        )
    assert ("some weights are trained in bfloat16" in caplog.text) != bf16
    rows = run(trainer)
    assert_adds_up(rows)
    # another padding, another rounding: as good as 0 at the start
    assert rows[0]["consistency_loss"] < 1e-3 < rows[-1]["consistency_loss"]
    assert trainer._reference.rows.dtype == torch.float32


# data


def test_formats_orders_and_other_columns_make_no_difference(tmp_path):
    plain = make_rows()
    expected = run(make_trainer(tmp_path, rows=plain))
    noisy = plain.map(lambda row, i: {"row": f"r{i}", "reference": None, "idx": i}, with_indices=1)
    mixed = noisy.select([3, 1, 0, 2, 7, 6, 5, 4])
    back = mixed.select([2, 1, 3, 0, 7, 6, 5, 4])  # indices in place of rows
    torch_format = plain.with_format("torch")
    some = noisy.with_format("numpy", columns=["input_ids", "attention_mask", "labels"])
    for rows in (noisy, back, torch_format, some):
        trainer = make_trainer(tmp_path, rows=rows, options={"eval_dataset": noisy})
        for row, other in zip(run(trainer), expected, strict=True):
            names = ("loss", "consistency_loss", "grad_norm")
            assert [row[n] for n in names] == pytest.approx([other[n] for n in names], rel=1e-5)
        assert trainer.train_dataset is rows
        assert trainer.evaluate()["eval_loss"] > 0
        assert trainer.evaluate(rows)["eval_loss"] > 0


class OwnCollator:
    """Lets only known columns through, and needs the labels."""

    def __init__(self):
        self.pad = DataCollatorWithPadding(make_tokenizer())

    def __call__(self, examples):
        known = ("input_ids", "attention_mask", "labels")
        return self.pad([{name: example[name] for name in known} for example in examples])


def test_a_collator_of_ones_own(tmp_path):
    expected = run(make_trainer(tmp_path))
    rows = run(make_trainer(tmp_path, options={"data_collator": OwnCollator()}))
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]


def test_batches_without_labels_are_refused(tmp_path):
    def unlabelled(examples):
        return {"input_ids": torch.tensor([example["input_ids"][:1] for example in examples])}

    trainer = make_trainer(tmp_path, options={"data_collator": unlabelled})
    with pytest.raises(ConfigError, match="the batches have no `labels`, only input_ids"):
        trainer.train()


def test_a_batch_from_elsewhere_has_no_reference(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = trainer.data_collator([make_rows(2)[i] for i in range(2)])
    with pytest.raises(ConfigError, match="the batch has no reference for the consistency term"):
        trainer.compute_loss(trainer.model.train(), batch)


def test_a_stream_trains_without_consistency_only(tmp_path):
    stream = make_rows().to_iterable_dataset()
    assert isinstance(stream, IterableDataset)
    rows = run(make_trainer(tmp_path, rows=stream, objective={"consistency_coef": 0.0}))
    assert_adds_up(rows)
    with pytest.raises(ConfigError, match=r"are a `IterableDataset`, .* `consistency_coef: 0`"):
        make_trainer(tmp_path, rows=stream)


def test_evaluate_and_predict_before_training(tmp_path):
    trainer = make_trainer(tmp_path, options={"eval_dataset": make_rows(5)})
    expected = logits_of(make_classifier().model, make_rows(5))
    prediction = trainer.predict(make_rows(5))
    torch.testing.assert_close(torch.tensor(prediction.predictions), expected, rtol=1e-4, atol=1e-5)
    loss = functional.cross_entropy(expected, torch.tensor(make_rows(5)["labels"][:]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    unlabelled = trainer.predict(make_rows(5).remove_columns("labels"))
    assert np.allclose(unlabelled.predictions, prediction.predictions)
    first = run(trainer)[0]
    assert first["consistency_loss"] == pytest.approx(0.0, abs=1e-8)


def test_a_regression_target_of_minus_100_counts(tmp_path):
    rows = make_rows(4, num_labels=1)
    far = rows.remove_columns("labels").add_column("labels", [-100.0, 0.0, 1.0, 2.0])
    (row,) = run(make_trainer(tmp_path, num_labels=1, rows=far, max_steps=1))
    logits = logits_of(make_classifier(num_labels=1).model, rows).double().numpy()
    assert row["task_loss"] == pytest.approx(task(logits, np.array(far["labels"][:])), rel=1e-4)


BAD_LABELS = {
    "too large": ([0, 1, 5, 2], 3, "the label 5 is none of the model's 3 classes, 0 to 2"),
    "negative": ([0, 1, -100, 2], 3, "the label -100 is none of the model's 3 classes"),
    "float": ([0.0, 1.0, 1.0, 0.0], 3, r"the label 0\.0 is not a class index"),
    "missing": ([0, 1, None, 2], 3, "is not a class index, and the model has 3 classes"),
    "nan": ([0.0, 1.0, float("nan"), 2.0], 1, "the label nan is not a finite number"),
}
BAD_ROW = {"float": 0, "missing": 0}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_the_head_cannot_learn(tmp_path, case):
    labels, num_labels, message = BAD_LABELS[case]
    rows = make_rows(4).remove_columns("labels").add_column("labels", labels)
    with pytest.raises(RowError, match=message) as caught:
        make_trainer(tmp_path, num_labels=num_labels, rows=rows)
    assert caught.value.row == BAD_ROW.get(case, 2)
    assert caught.value.dataset == "train"
    with pytest.raises(RowError, match="of the held_out data"):
        make_trainer(tmp_path, num_labels=num_labels, options={"eval_dataset": {"held_out": rows}})


def test_data_sets_that_are_no_data(tmp_path):
    with pytest.raises(DataError, match="the train data set is empty: it has no row"):
        make_trainer(tmp_path, rows=make_rows().select([]))
    unlabelled = make_rows().remove_columns("labels")
    with pytest.raises(
        DataError, match="train data set has no column `labels`, it has input_ids, attention_mask"
    ):
        make_trainer(tmp_path, rows=unlabelled)
    several = make_rows(2).remove_columns("labels").add_column("labels", [[0, 1], [1, 1]])
    with pytest.raises(DataError, match="must hold one number for each row"):
        make_trainer(tmp_path, rows=several)
    raw = Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]})
    sentence = (
        r"no column `input_ids`, it has sentence, labels\. Tokenize it first, or name its text"
    )
    with pytest.raises(DataError, match=sentence):
        make_trainer(tmp_path, rows=raw)
    no_tokenizer = {"processing_class": None}
    with pytest.raises(DataError, match=r"train data set .* Pass the tokenizer as `processing_cl"):
        make_trainer(tmp_path, rows=raw.rename_column("sentence", "text"), options=no_tokenizer)


# data as transformers' Trainer takes them


def as_of_a_tutorial(rows):
    """Return the same rows with the column of labels as most data sets call it."""
    return rows.rename_column("labels", "label")


@pytest.mark.parametrize("num_labels", [3, 1])
def test_a_column_label_trains_and_is_evaluated(tmp_path, num_labels):
    rows = make_rows(num_labels=num_labels)
    runs = []
    for data in (rows, as_of_a_tutorial(rows), rows.rename_column("labels", "label_ids")):
        options = {"eval_dataset": {"one": data, "other": data}}
        trainer = make_trainer(tmp_path, rows=data, num_labels=num_labels, options=options)
        found = [run(trainer), trainer.evaluate(), trainer.predict(data).label_ids.tolist()]
        runs.append((found, trainer.evaluate(data, metric_key_prefix="own")["own_loss"]))
    losses = [[row["loss"] for row in rows] for (rows, *_), _ in runs]
    assert losses[0] == losses[1] == losses[2]
    assert len({evaluated["eval_other_loss"] for (_, evaluated, _), _ in runs}) == 1
    assert len({own for _, own in runs}) == 1
    assert runs[0][0][2] == runs[1][0][2] == rows["labels"][:]


@pytest.mark.parametrize("is_pair", [False, True])
def test_texts_are_tokenized_where_there_is_a_tokenizer(tmp_path, is_pair):
    texts = {"text": ["ab", "cdefg", "h" * 400, "ij"], "label": [0, 1, 2, 0], "source": ["x"] * 4}
    if is_pair:
        texts["text_pair"] = ["z" * 400, "y", "w", "v"]
    data = Dataset.from_dict(texts)
    trainer = make_trainer(tmp_path, rows=data, options={"eval_dataset": data})
    assert len(run(trainer)) == 3
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    # the model takes 256 positions
    assert lengths == ([256, 6, 256, 3] if is_pair else [2, 5, 256, 2])
    assert trainer.train_dataset["labels"][:] == [0, 1, 2, 0]
    unlabelled = data.remove_columns("label")
    assert trainer.predict(unlabelled).predictions.shape == (4, 3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate(data)["eval_loss"])


def test_a_tokenizer_that_cannot_pad_is_copied(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    model = make_classifier("gpt2")
    trainer = make_trainer(tmp_path, model=model, options={"processing_class": tokenizer})
    run(trainer)
    assert tokenizer.pad_token is None
    assert trainer.model.config.pad_token_id == tokenizer.eos_token_id


# batches of one


@pytest.mark.parametrize("num_labels", [3, 1])
def test_batch_size_1_is_said_once_and_training_goes_on(tmp_path, num_labels, caplog):
    trainer = make_trainer(tmp_path, num_labels=num_labels, per_device_train_batch_size=1)
    with caplog.at_level(logging.WARNING, "balora"):
        rows = run(trainer)
    said = [r for r in caplog.records if "a batch has one example" in r.getMessage()]
    named = "diversity and svd" if num_labels > 1 else "consistency and diversity and svd"
    assert len(said) == 1
    assert f"{named} need at least two" in said[0].getMessage()
    assert len(rows) == 3
    assert all(row["diversity_loss"] == row["svd_loss"] == 0.0 for row in rows)
    assert (rows[-1]["consistency_loss"] > 0) == (num_labels > 1)
    assert_adds_up(rows)
    before = make_classifier(num_labels=num_labels).model
    assert not torch.equal(logits_of(trainer.model), logits_of(before))


def test_nothing_is_said_where_no_term_is_lost(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "balora"):
        run(make_trainer(tmp_path))
        run(make_trainer(tmp_path, objective=EXAMPLE_MEANS, per_device_train_batch_size=1))
    assert "a batch has one example" not in caplog.text


# NaN


class Break(TrainerCallback):
    """Puts NaN into the trained head before the second step."""

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == 1:
            head = [p for n, p in model.named_parameters() if "modules_to_save" in n]
            head[0].data.fill_(float("nan"))


@pytest.mark.parametrize("space", ["logits", "features"])
def test_nan_stops_the_run_with_the_step_the_place_and_the_rows(tmp_path, space):
    trainer = make_trainer(
        tmp_path,
        objective={"space": space},
        save_strategy="steps",
        save_steps=1,
        train_sampling_strategy="sequential",
    )
    trainer.add_callback(Break())
    with pytest.raises(
        NonFiniteError, match=r"^step 2, rows 4, 5, 6, 7: NaN or infinity in the logits\. "
    ):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert len(loss_rows(trainer)) == 1


def test_nan_before_the_first_step_is_of_the_model(tmp_path):
    model = make_classifier()
    model.model.classifier.weight.data[0, 0] = float("inf")
    trainer = make_trainer(tmp_path, model=model, save_strategy="steps")
    with pytest.raises(NonFiniteError, match=r"infinity for row \d of the training data before"):
        trainer.train()
    assert not list(tmp_path.iterdir())


# refusals


def test_settings_of_generation_are_refused(tmp_path):
    objective = {"temperature": 2.0, "entropy_top_k": 5}
    with pytest.raises(ConfigError, match=r"`temperature` is 2\.0, which acts in .*; `entropy_to"):
        make_trainer(tmp_path, objective=objective)


@pytest.mark.parametrize("targets", ["all-linear", ["query"]], ids=["adapted", "frozen"])
def test_a_head_that_is_not_trained_in_full_is_refused(tmp_path, targets):
    options = {"peft_config": lora_config(task_type=None, target_modules=targets)}
    with pytest.raises(ConfigError, match="`classifier` is frozen or adapted, and would not"):
        make_trainer(tmp_path, model=make_classifier().model, options=options)


def test_an_adapter_on_an_adapter_is_refused(tmp_path):
    adapted = get_peft_model(make_classifier().model, lora_config())
    with pytest.raises(ConfigError, match="carries an adapter already and `peft_config` asks for"):
        BALoraTrainer(adapted, arguments(tmp_path), peft_config=lora_config())
    trainer = make_trainer(tmp_path, model=adapted, options={"peft_config": None})
    assert_adds_up(run(trainer))


def test_a_trained_head_is_no_start(tmp_path):
    adapted = get_peft_model(make_classifier().model, lora_config())
    adapted.base_model.model.classifier.modules_to_save["default"].weight.data += 1
    with pytest.raises(ConfigError, match="the model's head is trained already"):
        make_trainer(tmp_path, model=adapted, options={"peft_config": None})


def test_full_fine_tuning_has_no_consistency(tmp_path):
    with pytest.raises(ConfigError, match="full fine-tuning would need a second copy"):
        make_trainer(tmp_path, method="full", objective={"consistency_coef": 0.1})


def test_several_devices_in_one_process_are_refused(tmp_path):
    args = arguments(tmp_path)
    check_single_device(args)
    args._n_gpu = 2
    with pytest.raises(ConfigError, match="this process sees 2 GPUs and would split each batch"):
        check_single_device(args)


def test_the_callers_objects_stay_as_they_are(tmp_path):
    args, config = arguments(tmp_path), lora_config()
    before = args.to_dict()
    make_trainer(tmp_path, options={"peft_config": config})
    BALoraTrainer(
        make_classifier(), args, peft_config=config, train_dataset=make_rows(), balora_config=None
    )
    assert args.to_dict() == before
    assert config.modules_to_save is None


# what is used of transformers without a public promise

SIGNATURES = {
    Trainer._remove_unused_columns: ("self", "dataset", "description"),
    Trainer._set_signature_columns_if_needed: ("self",),
    Trainer._get_num_items_in_batch: ("self", "batch_samples", "device"),
    Trainer.get_train_dataloader: ("self",),
}


@pytest.mark.parametrize("method", SIGNATURES, ids=lambda method: method.__qualname__)
def test_signature(method):
    assert tuple(inspect.signature(method).parameters) == SIGNATURES[method]


@pytest.mark.parametrize("name", ["train_dataset", "data_collator"])
def test_the_loader_of_batches_is_made_from_these(name):
    source = inspect.getsource(Trainer.get_train_dataloader)
    assert f"self.{name}" in source + inspect.getsource(Trainer._get_dataloader)
