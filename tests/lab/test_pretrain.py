"""Pre-training in miniature: it runs, lowers the loss, and writes down how."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

from balora.evaluation import text_loss
from balora.lab.corpus import CorpusSettings
from balora.lab.pretrain import PretrainSettings, _Bar, main, pretrain

MINIATURE = PretrainSettings(
    num_passes=1,
    max_steps=20,
    vocab_size=512,
    hidden_size=32,
    intermediate_size=64,
    num_layers=1,
    num_heads=2,
    block_size=64,
    batch_size=4,
    learning_rate=1e-2,
    corpus=CorpusSettings(num_people=20, num_stories=300),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("pretrain") / "model"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield output, pretrain(MINIATURE, output)
    torch.set_num_threads(threads)


def test_twenty_steps_lower_the_held_out_loss(run):
    _, log = run
    assert log["num_steps"] == 20
    assert log["held_out_loss"] < log["held_out_loss_untrained"] - 1
    first, last = log["loss_curve"][0], log["loss_curve"][-1]
    assert last[1] < first[1]


def test_where_bars_are_off_a_line_tells_of_each_tenth(caplog):
    caplog.set_level("INFO", logger="balora")
    for is_off in (False, True):
        caplog.clear()
        callback = _Bar()
        callback.training_bar = tqdm(total=200, disable=is_off)
        for step in range(2, 202, 2):
            state = TrainerState(global_step=step, max_steps=200)
            callback.on_log(None, state, None, {"loss": 2.0 - step / 200})
        callback.on_log(None, state, None, {"train_runtime": 1.0})
        callback.training_bar.close()
        assert len(caplog.messages) == (10 if is_off else 0)
    assert caplog.messages[0] == "pre-training the lab's model: step 20 of 200, loss 1.900"


def test_the_folder_says_how_it_was_made(run):
    output, log = run
    assert json.loads((output / "pretrain_log.json").read_text()) == log
    assert log["seed"] == log["settings"]["corpus"]["seed"] == 0
    assert log["versions"].keys() >= {"torch", "transformers", "tokenizers"}


def test_no_file_names_the_place_where_it_was_made(run):
    output, _ = run
    for path in output.iterdir():
        assert str(output.parent).encode() not in path.read_bytes()
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "generation_config.json",
        "held_out.txt",
        "model.safetensors",
        "pretrain_log.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_saved_model_gives_the_logged_loss(run):
    output, log = run
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(output),
        AutoTokenizer.from_pretrained(output),
    )
    loss = text_loss(model, tokenizer, (output / "held_out.txt").read_text(), block=64)
    assert loss == pytest.approx(log["held_out_loss"], rel=1e-5)


def test_the_same_seed_gives_the_same_model(run, tmp_path):
    output, log = run
    again = pretrain(MINIATURE, tmp_path / "again")
    assert again["loss_curve"] == log["loss_curve"]
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (output, tmp_path / "again")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        pretrain(MINIATURE, tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_needs_an_output(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--seed", "1"])
    assert stopped.value.code == 2
    assert "--output" in capsys.readouterr().err
