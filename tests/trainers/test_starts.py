"""`balora train` with a start of PEFT's: trained, stopped and resumed, exported, loaded in PEFT."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from balora.anchored import get_balora_model
from balora.cli import main
from balora.config import BALoraConfig
from balora.errors import ConfigError
from support.models import make_model, make_tokenizer
from support.training import is_equal, lora_config, make_trainer, trained
from support.training import run as run_trainer

STEPS = ["--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--use_cpu", "true"]
SMALL = ["--lora_r", "2", "--lora_alpha", "4", "--bf16", "false", "--learning_rate", "0.01"]
RANKS = {"olora": 4, "mica": 2}
"""Of what is saved: an anchored start doubles it."""
pytestmark = pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a tiny model, its tokenizer and rows."""
    folder = tmp_path_factory.mktemp("starts")
    make_model("llama").save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(16)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module", params=RANKS)
def run(request, place):
    """Return the start and the folder of a run that has trained."""
    out = place / request.param
    assert main(call(place, out, request.param)) == 0
    return request.param, out


def call(place, out, start):
    given = {"model_name_or_path": place / "base", "dataset_name": place / "rows.jsonl"}
    given |= {"adapter_init": start, "output_dir": out}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["train", *options, *STEPS, *SMALL]


def test_the_first_loss_is_that_of_the_base(run):
    # the consistency compares with the base, so it is 0 in the first step and not later
    state = json.loads((run[1] / "trainer_state.json").read_text())
    rows = [row for row in state["log_history"] if "consistency_loss" in row]
    assert abs(rows[0]["consistency_loss"]) < 1e-9
    assert rows[-1]["consistency_loss"] > 1e-6


def test_a_resumed_run_ends_as_the_whole_one(run, place):
    start, out = run
    other = place / f"resumed-{start}"
    shutil.copytree(out / "checkpoint-2", other / "checkpoint-2")
    resume = ["--resume_from_checkpoint", str(other / "checkpoint-2")]
    assert main([*call(place, other, start), *resume, "--overwrite", "true"]) == 0
    whole, resumed = (load_file(folder / "adapter_model.safetensors") for folder in (out, other))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_what_is_saved_and_exported_loads_in_plain_peft(run, place):
    start, out = run
    ids = torch.tensor([[5, 17, 40, 9, 61]])

    def logits(model):
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits

    base = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    pre_trained = logits(base)
    tuned = PeftModel.from_pretrained(base, out)
    assert tuned.peft_config["default"].r == RANKS[start]
    expected = logits(tuned)
    assert (expected - pre_trained).abs().max() > 1e-3
    merged = place / f"merged-{start}"
    command = ["export", str(out), "--base", str(place / "base"), "--to", str(merged), "--merge"]
    assert main(command) == 0
    exported = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    torch.testing.assert_close(logits(exported), expected, rtol=0, atol=1e-5)


def test_a_start_that_needs_data_is_refused_before_the_model_is_loaded(place, capsys):
    assert main(call(place, place / "corda", "corda")) == 2
    assert "`adapter_init` is corda, which is computed from sample data" in capsys.readouterr().err
    assert not (place / "corda").exists()


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_model_that_has_its_start_is_trained_from_there(start, tmp_path):
    objective = BALoraConfig(adapter_init=start)
    whole = make_trainer(tmp_path / "whole", objective=objective)
    run_trainer(whole)
    model = get_balora_model(make_model("llama"), lora_config(), objective)
    started = make_trainer(
        tmp_path / "started", model=model, objective=objective, options={"peft_config": None}
    )
    run_trainer(started)
    assert is_equal(trained(started.model), trained(whole.model))


def test_a_model_with_another_start_is_refused(tmp_path):
    model = get_balora_model(make_model("llama"), lora_config(), BALoraConfig())
    with pytest.raises(ConfigError, match=r"`adapter_init` is olora, but .* starts from pissa"):
        make_trainer(
            tmp_path,
            model=model,
            objective=BALoraConfig(adapter_init="olora"),
            options={"peft_config": None},
        )
