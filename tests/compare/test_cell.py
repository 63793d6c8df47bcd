"""One cell, trained and measured in this very process: text generation, classification, the lab."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from balora.cli import main as balora
from balora.compare import measured
from balora.compare.cell import main
from balora.compare.cells import Cell
from balora.compare.folder import Folder
from balora.compare.measured import classification_metrics
from balora.compare.memory import peak_memory_mib
from balora.compare.plan import Plan
from balora.errors import ConfigError
from support.comparison import ROWS, write_rows


@pytest.fixture
def data(tmp_path, model_folder):
    """Return the fields of a run on real rows."""
    text = tmp_path / "keep.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 5)
    return {
        "model_name_or_path": model_folder,
        "dataset_name": write_rows(tmp_path / "train.jsonl", ROWS),
        "eval_dataset_name": write_rows(tmp_path / "test.jsonl", ROWS[:5]),
        "learning_rate": 1e-2,
        "disable_tqdm": True,
    }, {"retention_file": str(text), "max_new_tokens": 4, "num_rows": 3}


def run(cells, folder):
    for cell in cells:
        assert main([str(folder.prepare(cell))]) == 0
    return [folder.row(cell) for cell in cells]


def details_of(folder, cell):
    return json.loads((folder.of(cell) / "details.json").read_text())


def test_a_cell_has_the_figures_of_train_and_eval(data, comparison, tmp_path, capsys):
    fields, evaluation = data
    found = comparison({"methods": ["base", "pissa+kl=0.5"], **evaluation}, **fields)
    folder = Folder(found.folder)
    base, tuned = Plan(found).final()
    first, second = run([base, tuned], folder)
    assert first["metrics"]["kl"] == 0.0
    assert second["metrics"]["kl"] > 0.0
    assert (first["seed"], first["num_trainable_parameters"], first["train_seconds"]) == (None,) * 3
    # q, k, v, o and the MLP of two layers, rank 2
    of_layer = 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)
    assert second["num_trainable_parameters"] == 2 * of_layer
    assert 0 < second["train_seconds"] < second["seconds"]
    assert second["evaluation_seconds"] < second["seconds"]
    assert 50 < second["peak_memory_mib"] < 50_000
    assert second["versions"]["torch"] == torch.__version__
    assert second["error"] is None
    # what `balora eval` says of the folder that is left
    figures = tmp_path / "figures.json"
    words = ["--base", fields["model_name_or_path"], "--json", str(figures)]
    words += ["--dataset_name", fields["eval_dataset_name"], "--num_rows", "3"]
    words += ["--retention_file", evaluation["retention_file"], "--max_new_tokens", "4"]
    assert balora(["eval", tuned.recipe["output_dir"], *words]) == 0
    told = json.loads(figures.read_text())
    for name in ("exact_match", "kl", "entropy", "response_loss", "retention_loss"):
        assert second["metrics"][name] == pytest.approx(told["run"][name], rel=1e-6)
        assert first["metrics"][name] == pytest.approx(told["base"][name], rel=1e-6)
    details = details_of(folder, tuned)
    assert [row["step"] for row in details["curves"]] == [1, 2]
    assert "consistency_loss" in details["curves"][0]
    assert details["spectrum"]["before"] != details["spectrum"]["after"]
    assert details["spectrum"]["before"] == details_of(folder, base)["spectrum"]["before"]
    assert len(details["updates"]) == 14
    assert len(details["samples"]) == 3


def test_everything_of_a_cell_is_loaded_at_the_revision_of_its_condition(
    data, comparison, encoder_folder, tmp_path, monkeypatch
):
    told = []

    def recording(cls):
        load = cls.from_pretrained.__func__

        def from_pretrained(own, name, *args, **given):
            if name in (data[0]["model_name_or_path"], encoder_folder):
                told.append((cls.__name__, given.get("revision"), given.get("attn_implementation")))
            return load(own, name, *args, **given)

        monkeypatch.setattr(cls, "from_pretrained", classmethod(from_pretrained))

    models = (AutoModelForCausalLM, AutoModelForSequenceClassification)
    for cls in (AutoConfig, AutoTokenizer, *models):
        recording(cls)
    fields, evaluation = data
    conditions = {
        "early": {"model_revision": "step1000"},
        "late": {"model_revision": "step2000", "attn_implementation": "eager"},
    }
    asked = {"methods": ["base", "lora"], "conditions": conditions}
    labelled = write_rows(tmp_path / "rows.jsonl", [{"text": w, "label": w[0]} for w in WORDS])
    classifies = {"task": "classification", "model_name_or_path": encoder_folder}
    classifies |= {"dataset_name": labelled, "eval_dataset_name": labelled}
    for given, own, loads in (
        (evaluation, fields, {True: 1, False: 3}),  # training, the base and the run
        ({"methods": ["lora"]}, {**fields, **classifies}, {False: 1}),
    ):
        found = comparison({**asked, **given}, **own, output_dir=str(tmp_path / f"{len(own)}"))
        for cell in Plan(found).final():
            told.clear()
            run([cell], Folder(found.folder))
            expected = conditions[cell.condition]
            assert {revision for _, revision, _ in told} == {expected["model_revision"]}
            kernels = [kernel for name, _, kernel in told if name in [m.__name__ for m in models]]
            assert kernels == [expected.get("attn_implementation")] * loads[cell.is_base]
            assert {name for name, *_ in told} >= {"AutoConfig", "AutoTokenizer"}


def test_training_is_that_of_balora_train(data, comparison, tmp_path):
    fields, evaluation = data
    found = comparison({"methods": ["lora"], "seeds": [7], **evaluation}, **fields)
    (cell,) = Plan(found).final()
    folder = Folder(found.folder)
    run([cell], folder)
    recipe = folder.of(cell) / "recipe.yaml"
    alone = tmp_path / "alone"
    assert balora(["train", "--config", str(recipe), "--output_dir", str(alone)]) == 0
    name = "adapter_model.safetensors"
    assert (alone / name).read_bytes() == (folder.of(cell) / "run" / name).read_bytes()
    assert cell.recipe["seed"] == 7


def test_a_wrong_cell_is_one_line_and_leaves_no_row(data, comparison, tmp_path, capsys):
    fields, evaluation = data
    found = comparison({"methods": ["lora"], **evaluation}, **fields)
    (cell,) = Plan(found).final()
    Path(fields["dataset_name"]).unlink()
    assert main([str(Folder(found.folder).prepare(cell))]) == 2
    assert "balora: " in capsys.readouterr().err
    assert Folder(found.folder).row(cell) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"method": "lora"}', '{"method": "a", "recipe": {}}'])
def test_a_damaged_cell_is_one_sentence_with_the_file(comparison, tmp_path, capsys, text):
    (cell,) = Plan(comparison({"methods": ["lora"]})).final()
    folder = Folder(tmp_path / "out").prepare(cell)
    (folder / "cell.json").write_text(text)
    assert main([str(folder)]) == 2
    assert f"balora: `{folder / 'cell.json'}` is " in capsys.readouterr().err


WORDS = ("red", "green")


def test_classification_takes_the_figures_that_the_run_leaves(comparison, encoder_folder, tmp_path):
    rows = [{"text": f"{WORDS[i % 2]} {i}", "label": "ab"[i % 2]} for i in range(12)]
    other = write_rows(tmp_path / "other.jsonl", rows[:5])
    found = comparison(
        {"methods": ["balora"]},
        task="classification",
        model_name_or_path=encoder_folder,
        dataset_name=write_rows(tmp_path / "rows.jsonl", rows),
        eval_dataset_name=write_rows(tmp_path / "held.jsonl", rows[4:]),
        out_of_domain=[{"name": "other", "dataset_name": other}],
        max_steps=None,
        num_train_epochs=2,
        disable_tqdm=True,
    )
    (cell,) = Plan(found).final()
    folder = Folder(found.folder)
    (row,) = run([cell], folder)
    results = json.loads((folder.of(cell) / "run" / "results.json").read_text())
    assert set(row["metrics"]) == {
        *("accuracy", "macro_f1", "ece"),
        *("other:accuracy", "other:macro_f1", "other:ece", "out_of_domain:accuracy"),
    }
    # of 8 rows held out 4 are in either class, of the other 5 three in the first
    assert row["majority"] == {
        **{"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)},
        **{"other:accuracy": 0.6, "other:macro_f1": pytest.approx(0.375)},
        "out_of_domain:accuracy": 0.6,
    }
    assert row["metrics"]["accuracy"] == results["last"]["validation"]["accuracy"]
    assert row["metrics"]["other:ece"] == results["out_of_domain"]["other"]["ece"]
    assert row["num_trainable_parameters"] == results["trained_parameters"]["total"]
    assert details_of(folder, cell)["curves"][0]["step"] == 1


def test_figures_of_several_sets_are_told_apart():
    results = {
        "final": {
            "matched": {"num_rows": 3, "accuracy": 0.5, "ece": 0.1},
            "mismatched": {"num_rows": 1, "accuracy": 0.4, "ece": 0.2},
        },
        "out_of_domain": {
            "hans": {"num_rows": 9, "accuracy": 0.3, "worst_group": {"value": 0.1}},
            "snli": {"num_rows": 1, "accuracy": 0.5},
        },
        "primary_metric": "accuracy",
    }
    assert classification_metrics(results) == {
        "accuracy": 0.5,
        "ece": 0.1,
        "mismatched:accuracy": 0.4,
        "mismatched:ece": 0.2,
        "hans:accuracy": 0.3,
        "snli:accuracy": 0.5,
        # MNLI's over its rows, GLUE-X's over its sets
        "overall:accuracy": pytest.approx((3 * 0.5 + 0.4) / 4),
        "out_of_domain:accuracy": pytest.approx(0.4),
    }


class FakeLab(NamedTuple):
    model: str
    test_file: Path


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """Put stand-ins in the lab's place; return the test files that the card was made of."""
    asked = []
    modules = {name: types.ModuleType(f"balora.lab.{name}") for name in ("build", "config")}
    modules["config"].lab_config = lambda mapping: dict(mapping)
    modules["build"].build_lab = lambda config: FakeLab(
        config["model"], tmp_path / f"{config['noise_rate']}.jsonl"
    )

    def measure_defects(model, tokenizer, lab, *, options):
        # as the recipe of the comparison asks, and no row left out
        assert (options.max_new_tokens, options.batch_size, options.max_rows) == (4, 2, 200)
        asked.append(lab.test_file)
        return {"exact_match": 0.25, "recall": 0.75, "retention_loss": 1.5}

    monkeypatch.setattr("balora.lab.card.measure_defects", measure_defects)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"balora.lab.{name}", module)
    return asked


def lab_cell(data, comparison, **changes):
    fields, _ = data
    (cell,) = Plan(comparison({"methods": ["lora"], "max_new_tokens": 4}, **fields)).final()
    evaluation = {"max_new_tokens": 4, "eval_batch_size": 2}
    lab = {"noise_rate": 0.2, "model": cell.recipe["model_name_or_path"]}
    return dataclasses.replace(cell, **{"lab": lab, "evaluation": evaluation, **changes})


def test_a_cell_of_the_lab_has_its_defect_card_and_the_drift(
    data, comparison, lab, tmp_path, monkeypatch
):
    used = []
    measure = measured.measure

    def recording(models, options, instruments):
        used.extend(instrument.name for instrument in instruments)
        return measure(models, options, instruments)

    monkeypatch.setattr(measured, "measure", recording)
    cell = lab_cell(data, comparison)
    (row,) = run([cell], Folder(tmp_path / "out"))
    assert used == ["responses", "lab"]  # the card has the exact match
    assert lab == [tmp_path / "0.2.jsonl"]
    metrics = row["metrics"]
    assert (metrics["exact_match"], metrics["recall"], metrics["retention_loss"]) == (
        0.25,
        0.75,
        1.5,
    )
    assert metrics["kl"] > 0


@pytest.mark.usefixtures("lab")
def test_a_model_is_not_measured_against_another_world(data, comparison, tmp_path):
    cell = lab_cell(data, comparison, lab={"noise_rate": 0.2, "model": "cache/lab/bbbb/model"})
    folder = Folder(tmp_path / "out")
    with pytest.raises(ConfigError, match="the lab is cache/lab/bbbb/model now, but the cell's"):
        measured.run_and_measure(cell, folder.prepare(cell))


def test_a_run_that_a_sweep_tries_has_no_card(data, comparison, lab, tmp_path):
    sweep = {"values": {"learning_rate": 1e-2}}
    cell = lab_cell(data, comparison, stage="choose", sweep=sweep)
    (row,) = run([cell], Folder(tmp_path / "out"))
    assert lab == []
    assert row["metrics"]["exact_match"] == 0.0
    assert "updates" not in details_of(Folder(tmp_path / "out"), cell)


def test_importing_the_cells_module_waits_for_nothing():
    code = "import sys, balora.compare.cell; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel is not Linux")
def test_peak_memory_is_not_that_of_the_process_that_started_it():
    code = "from balora.compare.memory import peak_memory_mib as peak; print(peak())"
    held = bytearray(os.urandom(1)) * (400 * 2**20)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert len(held) / 2**20 == 400
    assert 5 < float(result.stdout) < 200
    assert peak_memory_mib() > 400


def test_a_cell_read_from_its_folder_is_the_one_that_runs(data, comparison):
    fields, evaluation = data
    (cell,) = Plan(comparison({"methods": ["lora"], **evaluation}, **fields)).final()
    assert Cell.read(Folder(Path(fields["dataset_name"]).parent / "x").prepare(cell)) == cell
    assert measured.DETAILS_FILE == "details.json"
