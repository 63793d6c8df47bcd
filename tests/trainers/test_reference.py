"""The reference of classification: what it is, that it is made once, and that it is never stale."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, List, Value
from safetensors import safe_open
from safetensors.torch import load_file

from balora.anchored import initialise, reference_mode, starts
from balora.errors import ConfigError
from balora.models.classifier import ClassifierHead
from balora.trainers.reference import (
    REFERENCE_COLUMN,
    REFERENCE_FILE,
    ROW_COLUMN,
    CollateRows,
    ReferencePass,
    compute_reference,
    initial_head,
    keep_reference,
    load_reference,
    reference_key,
    with_row_numbers,
)
from support.adapters import anchors_of
from support.classification import METHODS, lora_config, make_classifier, make_rows, make_trainer
from support.models import make_tokenizer
from support.training import is_equal, loss_rows, run, trained

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(TESTS),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
NOT_COMPARED = ("_runtime", "_per_second")  # measured in seconds


def one_by_one(model, rows, space):
    """Return what the untouched model gives for each row alone, in eval mode."""
    head = ClassifierHead(model.eval())
    found = []
    for row in rows:
        batch = {k: torch.tensor([row[k]]) for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            output, features = head.run(model, batch)
        found.append((output.logits if space == "logits" else features)[0])
    return torch.stack(found)


# what it is


@pytest.mark.parametrize("space", ["logits", "features"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v3", "gpt2", "llama"])
def test_it_is_the_model_at_step_0_in_the_order_of_the_rows(tmp_path, architecture, space):
    model, rows = make_classifier(architecture, dropout=True), make_rows(11)
    expected = one_by_one(model.model, rows, space)
    model.model.train()
    trainer = make_trainer(
        tmp_path,
        model=model,
        rows=rows,
        objective={"space": space},
        per_device_eval_batch_size=4,
    )
    run(trainer)
    actual = trainer._reference.rows
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    # one row for another would show
    assert torch.cdist(expected, expected).add(torch.eye(11)).min() > 1e-3


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_training_moves_neither_the_reference_nor_what_it_comes_from(tmp_path, method):
    objective = {"adapter_init": method}
    trainer = make_trainer(tmp_path, objective=objective, max_steps=6)
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert any(".original_module." in name for name in frozen)
    run(trainer)
    kept = {n: p for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert is_equal(kept, frozen)
    again = one_by_one(make_classifier().model, make_rows(), "logits")
    torch.testing.assert_close(trainer._reference.rows, again, rtol=1e-4, atol=1e-5)
    with reference_mode(trainer.model):  # adapters off is still the model of step 0
        base = trainer.model.get_base_model()
        batch = make_tokenizer().pad(make_rows().remove_columns("labels")[:], return_tensors="pt")
        off = base(**batch).logits
    torch.testing.assert_close(off, again, rtol=1e-4, atol=1e-5)
    if method == "pissa":
        state = anchors_of(trainer.model)
        start = make_trainer(tmp_path)
        initialise(start.model)
        expected = anchors_of(start.model)
        for name, tensor in state.items():
            is_anchor = name.endswith(("A0", "B0"))
            assert torch.equal(tensor, expected[name]) == is_anchor, name


# made once


def count_passes(trainer):
    """Count rows and passes of the encoder, apart by whether it was in training mode."""
    seen = {True: [], False: []}
    encoder = trainer.model.get_base_model().bert

    def note(module, args, kwargs, _):
        ids = kwargs.get("input_ids", args[0] if args else None)
        seen[module.training].append(len(ids))

    encoder.register_forward_hook(note, with_kwargs=True)
    return seen


def test_three_epochs_run_the_encoder_once_more_for_each_row(tmp_path):
    trainer = make_trainer(
        tmp_path, rows=make_rows(10), max_steps=-1, num_train_epochs=3, per_device_eval_batch_size=4
    )
    seen = count_passes(trainer)
    run(trainer)
    assert seen[False] == [4, 4, 2]
    assert len(seen[True]) == 3 * math.ceil(10 / 4)
    assert sum(seen[True]) == 30


def test_a_second_call_of_train_compares_with_the_same_start(tmp_path):
    trainer = make_trainer(tmp_path)
    first = run(trainer)
    reference = trainer._reference.rows
    second = run(trainer)  # a new history
    assert torch.equal(trainer._reference.rows, reference)
    assert first[0]["consistency_loss"] < 1e-8 < second[0]["consistency_loss"]


def test_without_consistency_it_is_not_made(tmp_path):
    trainer = make_trainer(
        tmp_path, objective={"consistency_coef": 0.0}, save_strategy="steps", save_steps=3
    )
    seen = count_passes(trainer)
    run(trainer)
    assert not seen[False]
    assert not (tmp_path / "checkpoint-3" / REFERENCE_FILE).exists()


def test_it_draws_no_random_number(tmp_path):
    # so that runs with and without it see the same dropout
    trainer = make_trainer(tmp_path)
    before = torch.get_rng_state()
    trainer._reference_of_step_0(None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("is_quiet", [True, False])
def test_the_bar_follows_disable_tqdm(tmp_path, is_quiet, capsys):
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=4, disable_tqdm=is_quiet)
    trainer._reference_of_step_0(None)
    assert ("Reference" in capsys.readouterr().err) != is_quiet


def test_each_row_of_a_batch_has_its_own_reference(tmp_path):
    trainer = make_trainer(tmp_path, rows=make_rows(11), per_device_train_batch_size=3)
    run(trainer)
    expected, seen = trainer._reference.rows, []
    ids = make_rows(11)["input_ids"][:]
    for batch in trainer.get_train_dataloader():
        numbers = batch[ROW_COLUMN].tolist()
        seen += numbers
        assert torch.equal(batch[REFERENCE_COLUMN], expected[numbers])
        for number, tokens in zip(numbers, batch["input_ids"], strict=True):
            assert tokens[: len(ids[number])].tolist() == ids[number]
    assert sorted(seen) == list(range(11))
    assert seen != sorted(seen)


def test_collator_leaves_other_examples_alone():
    collate = CollateRows(lambda examples: {"seen": examples}, torch.eye(3))
    assert collate([{"a": 1}]) == {"seen": [{"a": 1}]}
    batch = collate([{"a": 1, ROW_COLUMN: 2}, {"a": 5, ROW_COLUMN: 0}])
    assert batch["seen"] == [{"a": 1}, {"a": 5}]
    assert batch[REFERENCE_COLUMN].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert CollateRows(lambda _: {})([{ROW_COLUMN: 1}]) == {ROW_COLUMN: torch.tensor([1])}


def test_numbering_keeps_the_format_and_replaces_old_numbers():
    rows = make_rows(5).with_format("torch", columns=["input_ids"], output_all_columns=True)
    numbered = with_row_numbers(with_row_numbers(rows).select([4, 2]))
    assert numbered.column_names == ["input_ids", "attention_mask", "labels", ROW_COLUMN]
    assert numbered.format["type"] == "torch"
    assert numbered[1][ROW_COLUMN] == 1
    assert isinstance(numbered[1]["labels"], int)
    assert torch.equal(numbered[0]["input_ids"], rows[4]["input_ids"])


# a resumed run

EPOCH_OF_5 = {
    "rows": make_rows(17),
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 3,  # the epoch ends after step 5
    "lr_scheduler_type": "linear",
}
RESUMED = {
    **{method: {"method": method} for method in METHODS},
    "lora with terms": {"objective": {"adapter_init": "lora"}},
    "features": {"objective": {"space": "features"}},
    "regression": {"num_labels": 1, "rows": make_rows(17, num_labels=1)},
}


def long_run(output_dir, name, *, head_seed=0, **settings):
    own = {**EPOCH_OF_5, **RESUMED[name], **settings}
    num_labels = own.get("num_labels", 3)
    model = make_classifier(num_labels=num_labels, dropout=True, head_seed=head_seed)
    return make_trainer(output_dir, model=model, **own)


def comparable(rows):
    return [{k: v for k, v in row.items() if not k.endswith(NOT_COMPARED)} for row in rows]


@pytest.fixture
def no_svd(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a resumed run computed singular vectors")

    return lambda: monkeypatch.setattr(starts, "principal_components", refuse)


# each of them trains three times: the others are of the slow suite
@pytest.mark.parametrize(
    "name",
    [name if name == "balora" else pytest.param(name, marks=pytest.mark.slow) for name in RESUMED],
)
def test_resuming_within_an_epoch_with_another_head_is_bit_for_bit(tmp_path, name, no_svd):
    whole = long_run(tmp_path, name)
    whole.train()
    no_svd()
    # full fine-tuning and the adapters alone do not need the head they started from
    resumed = long_run(tmp_path, name, head_seed=7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(loss_rows(whole)) == 8
    assert comparable(resumed.state.log_history) == comparable(whole.state.log_history)
    assert is_equal(trained(resumed.model), trained(whole.model))
    if whole._reference is not None:
        assert torch.equal(resumed._reference.rows, whole._reference.rows)
        assert is_equal(*(run._reference.head for run in (whole, resumed)))
        # the head that adapters off gives is the one of step 0 again
        assert is_equal(*(initial_head(run.model) for run in (whole, resumed)))
    # and again, from a checkpoint of the resumed run
    third = long_run(tmp_path, name, head_seed=8)
    third.train(resume_from_checkpoint=True)
    assert is_equal(trained(third.model), trained(whole.model))


RESUME = """
import sys, torch
torch.manual_seed(12345)
from test_reference import long_run
trainer = long_run(sys.argv[1], "balora", head_seed=12345)
trainer.train(resume_from_checkpoint=sys.argv[1] + "/checkpoint-3")
state = {n: p.detach() for n, p in trainer.model.named_parameters()}
torch.save({"state": state, "history": trainer.state.log_history}, sys.argv[2])
"""


@pytest.mark.slow  # it imports everything once more
def test_resuming_in_a_fresh_process_with_another_seed_is_bit_for_bit(tmp_path):
    whole = long_run(tmp_path / "run", "balora")
    whole.train()
    environment = ENVIRONMENT | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'trainers'}"}
    command = [sys.executable, "-c", RESUME, str(tmp_path / "run"), str(tmp_path / "resumed.pt")]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    resumed = torch.load(tmp_path / "resumed.pt")
    assert comparable(resumed["history"]) == comparable(whole.state.log_history)
    assert is_equal(resumed["state"], {n: p.data for n, p in whole.model.named_parameters()})


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 3,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,  # the worst counts as the best, so that it is not the last
    "learning_rate": 0.001,
    "options": {"eval_dataset": make_rows(17)},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_best_model_is_loaded_at_the_end(tmp_path, method):
    trainer = long_run(tmp_path, method, **BEST)
    trainer.train()
    history = trainer.state.log_history
    losses = [row["eval_loss"] for row in history if "eval_loss" in row]
    assert losses[0] > losses[1]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], rel=1e-6)
    resumed = long_run(tmp_path, method, head_seed=7, **BEST)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert is_equal(trained(resumed.model), trained(trainer.model))


# the file


def test_checkpoints_share_one_file_and_the_model_folder_has_none(tmp_path):
    trainer = long_run(tmp_path, "balora")
    trainer.train()
    trainer.save_model()
    files = sorted(tmp_path.glob(f"**/{REFERENCE_FILE}"))
    assert [file.parent.name for file in files] == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]
    assert len({file.stat().st_ino for file in files}) == 1
    with safe_open(files[0], framework="pt") as file:
        assert sorted(file.keys()) == ["head.classifier.bias", "head.classifier.weight", "rows"]
        assert torch.equal(file.get_tensor("head.classifier.weight"), own_head())


def own_head():
    return make_classifier(dropout=True).model.classifier.weight.detach()


def test_another_run_in_the_same_folder_does_not_touch_old_checkpoints(tmp_path):
    long_run(tmp_path, "balora").train()
    old = (tmp_path / "checkpoint-3" / REFERENCE_FILE).read_bytes()
    (tmp_path / "checkpoint-3").rename(tmp_path / "old")
    long_run(tmp_path, "balora", head_seed=5).train()
    assert (tmp_path / "old" / REFERENCE_FILE).read_bytes() == old
    assert (tmp_path / "checkpoint-3" / REFERENCE_FILE).read_bytes() != old


def test_another_call_of_train_with_other_rows_writes_its_own(tmp_path):
    trainer = long_run(tmp_path, "balora", max_steps=3)
    trainer.train()
    trainer.train_dataset, trainer.args.output_dir = make_rows(11), str(tmp_path / "second")
    trainer.train()  # the file of the first call is still there to be linked
    saved = load_file(tmp_path / "second" / "checkpoint-3" / REFERENCE_FILE)["rows"]
    assert torch.equal(saved, trainer._reference.rows)
    assert len(saved) == 11


def test_a_file_that_cannot_be_linked_is_written(tmp_path):
    trainer = make_trainer(tmp_path)
    reference = trainer._reference_of_step_0(None)
    first = keep_reference(tmp_path / "a", reference, None)
    again = keep_reference(tmp_path / "b", reference, first)
    assert first.stat().st_ino == again.stat().st_ino
    other = keep_reference(tmp_path / "c", reference, tmp_path / "gone" / REFERENCE_FILE)
    one, two = (load_file(path) for path in (first, other))
    assert is_equal(one, two)
    assert other.stat().st_ino != first.stat().st_ino
    assert not list(tmp_path.glob("**/.balora-*"))


# never stale


def changed_tokens(rows):
    def other(row, index):
        return {"input_ids": [*row["input_ids"][:-1], 9] if index == 3 else row["input_ids"]}

    return rows.map(other, with_indices=True)


def longer_tokens(rows):
    """Return the same tokens with a longer padding: the mask and the lengths differ."""
    return rows.map(
        lambda row: {
            "input_ids": [*row["input_ids"], 0],
            "attention_mask": [*row["attention_mask"], 0],
        }
    )


def moved_boundary(rows):
    """Move one token from a row to the next: the tokens in a row are the same."""
    table = rows.to_dict()
    for name in ("input_ids", "attention_mask"):
        first, second = table[name][1:3]
        table[name][1:3] = first[:-1], [first[-1], *second]
    return Dataset.from_dict(table)


DATA = {
    "one token": changed_tokens,
    "padding": longer_tokens,
    "boundary": moved_boundary,
    "order of rows": lambda rows: rows.select([1, 0, *range(2, 17)]),
    "fewer rows": lambda rows: rows.select(range(16)),
    "another column": lambda rows: rows.add_column(
        "token_type_ids", [[0] * len(ids) for ids in rows["input_ids"]]
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run with checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    long_run(folder, "balora").train()
    return folder


def refused(folder, trainer, names):
    with pytest.raises(
        ConfigError, match=rf"^the reference in `.*` was computed with other {names}\."
    ):
        trainer.prepare(folder / "checkpoint-3")
    # and a run that goes on is refused before
    with pytest.raises(ConfigError, match=r"checkpoint-3' belongs to another run: "):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))


@pytest.mark.parametrize("change", DATA)
def test_other_data_refuse_the_stored_reference(finished, change):
    rows = DATA[change](make_rows(17))
    refused(finished, long_run(finished, "balora", rows=rows), "data, batches")


class Truncated:
    """A data collator of one's own that keeps the first three tokens."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, examples):
        cut = ("input_ids", "attention_mask")
        return self.collate([{k: v[:3] if k in cut else v for k, v in e.items()} for e in examples])


def test_another_data_collator_refuses_it(finished):
    trainer = long_run(finished, "balora")
    trainer.data_collator = Truncated(trainer.data_collator)
    refused(finished, trainer, "batches")


def test_other_labels_are_another_run_but_the_same_reference(finished):
    rows = make_rows(17)
    other = rows.remove_columns("labels").add_column("labels", [0] * 17)
    trainer = long_run(finished, "balora", rows=other)
    trainer.prepare(finished / "checkpoint-3")
    with pytest.raises(ConfigError, match="belongs to another run: the training rows are others"):
        trainer.train(resume_from_checkpoint=str(finished / "checkpoint-3"))


def test_unread_columns_are_no_matter(finished):
    trainer = long_run(finished, "balora", rows=make_rows(17).add_column("text", ["x"] * 17))
    trainer.train(resume_from_checkpoint=str(finished / "checkpoint-6"))


@pytest.mark.parametrize("size", [0, 50, -10])
def test_a_damaged_reference_is_refused(finished, size, tmp_path):
    checkpoint = shutil.copytree(finished / "checkpoint-3", tmp_path / "checkpoint-3")
    file = checkpoint / REFERENCE_FILE
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ConfigError, match=rf"^`{file}` is .* an earlier checkpoint"):
        load_reference(checkpoint, make_trainer(tmp_path).model, {})


def test_another_space_or_precision_refuses_it(finished):
    refused(finished, long_run(finished, "balora", objective={"space": "features"}), "space")
    refused(finished, long_run(finished, "balora", bf16=True), "precision")


@pytest.mark.parametrize("weight", ["embeddings.word_embeddings", "encoder.layer.1.output.dense"])
def test_a_changed_weight_refuses_it(finished, weight):
    model = make_classifier(dropout=True)
    model.model.bert.get_submodule(weight).weight.data[1, 1] += 1e-3
    refused(finished, make_trainer(finished, model=model, **EPOCH_OF_5), "weights")


def test_another_dtype_or_config_refuses_it(finished):
    half = make_classifier(dropout=True, dtype=torch.bfloat16)
    refused(finished, make_trainer(finished, model=half, **EPOCH_OF_5), "weights")
    other = make_classifier(dropout=True)
    other.model.config.layer_norm_eps = 1e-3
    refused(finished, make_trainer(finished, model=other, **EPOCH_OF_5), "config")


def test_another_adapter_does_not_change_the_key(finished):
    # the reference is of the model without an adapter, whichever layers that adapts
    rows = make_rows(5)
    keys = []
    for targets in ("all-linear", ["query"]):
        options = {"peft_config": lora_config(target_modules=targets)}
        trainer = make_trainer(finished, rows=rows, options=options)
        keys.append(
            reference_key(
                trainer._base, rows, collate=trainer.data_collator, space="logits", precision="no"
            )
        )
    assert keys[0] == keys[1]


def test_a_checkpoint_without_it_is_refused(finished, tmp_path):
    shutil.copytree(finished / "checkpoint-3", tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / REFERENCE_FILE).unlink()
    with pytest.raises(ConfigError, match=r"has no reference\.safetensors, so the head that"):
        long_run(tmp_path, "balora").prepare(tmp_path / "checkpoint-3")
    with pytest.raises(ConfigError, match=r"checkpoint-3/reference\.safetensors` is missing"):
        long_run(tmp_path, "balora").train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="holds no complete checkpoint"):
        long_run(tmp_path / "nothing", "balora").train(resume_from_checkpoint=True)


def test_other_modules_trained_in_full_refuse_it(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    run(make_trainer(tmp_path, **options))
    own = {"peft_config": lora_config(modules_to_save=["pooler"], target_modules=["query"])}
    trainer = make_trainer(tmp_path, options=own, **options)
    with pytest.raises(ConfigError, match=r"computed with other weights\."):
        trainer.prepare(tmp_path / "checkpoint-1")
    with pytest.raises(ConfigError, match=r"`peft_config\.modules_to_save` was"):
        trainer.train(resume_from_checkpoint=True)


def of_columns(examples):
    """Return a batch of examples as lists of their columns."""
    return {name: [example[name] for example in examples] for name in examples[0]}


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 3)], ids=str
)
def test_how_arrow_stores_the_tokens_is_no_matter(finished, kind):
    ids = [[5, 6, 7], [8, 9, 10], [4, 4, 4]]
    base = make_classifier().model
    expected = Dataset.from_dict({"input_ids": ids})
    keys = [
        reference_key(base, rows, collate=of_columns, space="logits", precision="no")
        for rows in (expected, Dataset(pa.table({"input_ids": pa.array(ids, kind)})))
    ]
    assert keys[0] == keys[1]
    passes = ReferencePass(
        rows_of=lambda batch: base(**batch).logits,
        collate=lambda examples: {"input_ids": torch.tensor([e["input_ids"] for e in examples])},
        batch_size=2,
        width=3,
    )
    stored = Dataset(pa.table({"input_ids": pa.array(ids, kind)}))
    rows = compute_reference(base, stored, passes)
    with torch.no_grad():
        torch.testing.assert_close(rows, base(input_ids=torch.tensor(ids)).logits)


def test_every_value_of_a_column_counts():
    base = make_classifier().model
    kinds = {"input_ids": List(Value("int64")), "x": List(Value("int64")), "y": Value("string")}
    features = Features({**kinds, "labels": Value("int64")})
    table = {"input_ids": [[1], [2]], "x": [[1, 2], [3]], "y": ["a", "b"], "labels": [0, 1]}

    def key(**changes):
        rows = Dataset.from_dict({**table, **changes}, features=features)
        found = reference_key(base, rows, collate=of_columns, space="logits", precision="no")
        return found["data"]

    assert key() == key(labels=[1, 1])
    others = {key(x=[[1], [2, 3]]), key(x=[[1, 2], None]), key(x=[[1, 2], []]), key(y=["a", "c"])}
    others |= {key(x=[[2, 1], [3]]), key(y=["a", None]), key()}
    assert len(others) == 7
