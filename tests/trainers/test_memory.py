"""The memory report, and that the reference of the consistency costs the anchor and no more."""

from __future__ import annotations

import gc
import logging
from types import FunctionType, ModuleType

import pytest
import torch
from torch import Tensor

from balora.anchored import initialise, lora_layers
from balora.trainers.memory import MemoryReport, memory_report
from support.adapters import adapted_model, anchored_model, start_of
from support.models import VOCAB, make_model
from support.training import LARGE, OFF, make_trainer, run

LOGGER = "balora.trainers.memory"
FLOAT32 = 4


def bytes_of_anchors(model):
    anchors = [anchor for _, layer in lora_layers(model) for anchor in start_of(layer)]
    return sum(anchor.untyped_storage().nbytes() for anchor in anchors)


def reachable_storages(root) -> dict[int, int]:
    """Return address and bytes of every storage that something held by ``root`` uses."""
    storages, seen, queue = {}, set(), [root]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type | ModuleType):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
            queue.append(item.grad)
        if isinstance(item, FunctionType):  # not its globals: they are everybody's
            queue += [item.__closure__, item.__defaults__, item.__kwdefaults__, item.__dict__]
        else:
            queue += gc.get_referents(item)
    return storages


def trained_model(tmp_path, **objective):
    trainer = make_trainer(tmp_path, objective={**OFF, **objective}, max_steps=2)
    run(trainer)
    return trainer.model


# what the report counts


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_is_counted_once_by_what_it_is_for(architecture, dtype):
    base = make_model(architecture, dtype=dtype)
    num_base_bytes = sum(reachable_storages(list(base.parameters())).values())
    num_base_bytes += sum(b.untyped_storage().nbytes() for b in base.buffers())
    model = anchored_model(architecture, dtype=dtype)
    initialise(model)
    report = memory_report(model)
    assert report.anchor == bytes_of_anchors(model) > 0
    assert report.trained == report.anchor  # A and B, as A0 and B0, in float32
    assert report.frozen == num_base_bytes


def test_an_anchor_in_half_precision_takes_half():
    whole, half = (
        anchored_model("llama", dtype=torch.bfloat16, autocast_adapter_dtype=is_cast)
        for is_cast in (True, False)
    )
    for model in (whole, half):
        initialise(model)
    assert 2 * memory_report(half).anchor == memory_report(whole).anchor


def test_an_anchor_that_is_not_computed_yet_has_its_room_already():
    model = anchored_model("llama")
    before = memory_report(model)
    initialise(model)
    assert memory_report(model) == before


def test_tied_embeddings_count_once():
    untied, tied = (
        memory_report(make_model("llama", tie_word_embeddings=tie)) for tie in (False, True)
    )
    assert untied.trained - tied.trained == VOCAB * 32 * FLOAT32
    assert untied.frozen == tied.frozen


def test_plain_lora_has_no_anchor():
    report, model = memory_report(adapted_model("llama")), anchored_model("llama")
    initialise(model)
    assert report == memory_report(model)._replace(anchor=0)


# what a run holds


def test_the_reference_costs_the_anchor_and_no_second_copy_of_anything(tmp_path):
    plain = reachable_storages(trained_model(tmp_path, adapter_init="lora"))
    model = trained_model(tmp_path, consistency_coef=0.7)
    report = memory_report(model)
    with_reference = reachable_storages(model)
    assert sum(with_reference.values()) - sum(plain.values()) == report.anchor > 0
    assert len(with_reference) - len(plain) == 2 * len(lora_layers(model))
    assert sum(plain.values()) == report.frozen + report.trained


def test_lora_with_the_consistency_holds_what_lora_does(tmp_path):
    plain, with_reference = (
        reachable_storages(trained_model(tmp_path, adapter_init="lora", consistency_coef=c))
        for c in (0.0, 0.7)
    )
    assert sorted(with_reference.values()) == sorted(plain.values())


def test_the_svd_term_holds_a_square_of_the_hidden_size(tmp_path):
    without, with_svd = (
        reachable_storages(trained_model(tmp_path, adapter_init="lora", svd_coef=c))
        for c in (0.0, 0.5)
    )
    assert sum(with_svd.values()) - sum(without.values()) == 32 * 32 * 8  # in float64


# what a user reads


def test_the_sentences():
    plain = MemoryReport(frozen=13_476_831_232, trained=319_815_680, anchor=0)
    assert str(plain) == (
        "Weights: 13.5 GB frozen, 320 MB trained. The pre-trained model serves as its own "
        "reference, without a second model."
    )
    assert str(plain._replace(anchor=319_815_680)) == (
        "Weights: 13.5 GB frozen, 320 MB trained. The pre-trained model serves as its own "
        "reference, at the cost of the anchor alone: 320 MB for a frozen copy of the adapter's "
        "start."
    )


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (999_600_000_000, "1000 GB"),
        (1_234_500_000_000, "1234 GB"),
    ],
)
def test_units(num_bytes, text):
    assert f" {text} frozen" in str(MemoryReport(num_bytes, 0, 0))


def logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize("adapter_init", ["pissa", "lora"])
def test_it_is_logged_once_when_training_begins(tmp_path, adapter_init, caplog):
    trainer = make_trainer(tmp_path, objective={**LARGE, "adapter_init": adapter_init})
    with caplog.at_level(logging.INFO, LOGGER):
        assert logged(caplog) == []
        run(trainer)
    assert logged(caplog) == [str(memory_report(trainer.model))]
    assert ("anchor" in logged(caplog)[0]) == (adapter_init == "pissa")
    assert ("without a second model" in logged(caplog)[0]) == (adapter_init == "lora")


def test_a_resumed_run_logs_the_same_line(tmp_path, caplog):
    settings = {"objective": LARGE, "save_strategy": "steps", "save_steps": 2}
    with caplog.at_level(logging.INFO, LOGGER):
        run(make_trainer(tmp_path, **settings))
        run(
            make_trainer(tmp_path, **settings),
            resume_from_checkpoint=str(tmp_path / "checkpoint-2"),
        )
    first, second = logged(caplog)
    assert first == second
    assert "at the cost of the anchor alone: " in first


def test_full_fine_tuning_logs_nothing(tmp_path, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        run(make_trainer(tmp_path, objective=OFF, options={"peft_config": None}, max_steps=1))
    assert logged(caplog) == []
