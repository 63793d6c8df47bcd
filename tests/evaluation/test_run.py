"""`balora eval` of text generation: what the base is loaded with, and a base of another run."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from balora.cli import main
from support.adapters import anchored_model, make_batch, train
from support.classification_runs import error_of
from support.models import make_model, make_tokenizer


def saved(folder, model):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base in bfloat16, a run on it whose update is small, and rows."""
    folder = tmp_path_factory.mktemp("place")
    base = make_model("llama", dtype=torch.bfloat16)
    saved(folder / "base", base)
    model = anchored_model("llama")
    batch = make_batch("llama", torch.Generator().manual_seed(0))
    train(model, batch, num_steps=2, learning_rate=3e-4)
    saved(folder / "run", model)
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = f"model_name_or_path: {folder / 'base'}\nlora_target_modules: all-linear\n"
    (folder / "run" / "recipe.yaml").write_text(recipe)
    return folder


def evaluated(place, *words, base=None):
    figures = place / "figures.json"
    words = ["--dataset_name", str(place / "rows.jsonl"), "--max_new_tokens", "2", *words]
    base = str(place / "base") if base is None else str(base)
    status = main(["eval", str(place / "run"), "--base", base, "--json", str(figures), *words])
    return status, json.loads(figures.read_text()) if status == 0 else None


def test_a_half_precision_checkpoint_is_measured_in_float32_and_the_row_says_so(place, capsys):
    _, found = evaluated(place)
    assert {row["dtype"] for row in found.values()} == {"float32"}
    assert "Computed in float32." in capsys.readouterr().out
    small = found["run"]["kl"]
    assert 0 < small < 1e-3
    _, rounded = evaluated(place, "--dtype", "bfloat16")
    assert {row["dtype"] for row in rounded.values()} == {"bfloat16"}
    assert abs(rounded["run"]["kl"] / small - 1) > 0.05  # what float32 is for
    (place / "run" / "recipe.yaml").write_text("dtype: bfloat16\n")
    _, asked = evaluated(place)
    assert asked["run"] == rounded["run"]
    (place / "run" / "recipe.yaml").write_text("lora_target_modules: all-linear\n")


@torch.no_grad()
def kl_of(place, dtype):
    """Return the mean KL per response token of the run to its base, from logits in a type."""
    base, tuned = (make_model("llama", dtype=torch.bfloat16).to(dtype) for _ in range(2))
    tuned = PeftModel.from_pretrained(tuned, str(place / "run")).to(dtype).eval()
    tokenizer, found = make_tokenizer(), []
    for line in (place / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = [*tokenizer(row["prompt"] + row["completion"]).input_ids, tokenizer.eos_token_id]
        start = len(tokenizer(row["prompt"]).input_ids) - 1  # predicts the first of the response
        log_p, log_q = (
            model(input_ids=torch.tensor([ids])).logits[0, start:-1].double().log_softmax(-1)
            for model in (base.eval(), tuned)
        )
        found += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
    return sum(found) / len(found)


def test_the_kl_of_a_half_precision_checkpoint_is_that_of_float32_logits(place):
    expected = kl_of(place, torch.float64)
    assert evaluated(place)[1]["run"]["kl"] == pytest.approx(expected, rel=0.01)
    rounded = evaluated(place, "--dtype", "bfloat16")[1]["run"]["kl"]
    assert rounded == pytest.approx(kl_of(place, torch.bfloat16), rel=0.2)
    assert abs(rounded / expected - 1) > 0.05


@pytest.fixture
def recorder(monkeypatch):
    """What `from_pretrained` is told, by the model's name; the revisions are all one folder."""
    calls = []
    load = AutoModelForCausalLM.from_pretrained.__func__
    read = PreTrainedTokenizerFast.from_pretrained.__func__

    def of_model(cls, name, **arguments):
        calls.append(("model", name, arguments.get("revision"), arguments))
        return load(cls, name, **arguments)

    def of_tokenizer(cls, name, **arguments):
        calls.append(("tokenizer", name, arguments.get("revision"), arguments))
        return read(cls, name, **arguments)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", classmethod(of_model))
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", classmethod(of_tokenizer))
    return calls


def test_the_revision_of_the_recipe_is_the_one_that_is_measured(place, recorder, caplog):
    recipe = place / "run" / "recipe.yaml"
    base = place / "base"
    recipe.write_text(f"model_name_or_path: {base}\nmodel_revision: step1000\n")
    with caplog.at_level("INFO", "balora"):
        assert evaluated(place)[0] == 0
    models = [(name, revision) for kind, name, revision, _ in recorder if kind == "model"]
    assert models == [(str(base), "step1000")] * 2
    assert "revision step1000" in caplog.text
    recorder.clear()
    assert evaluated(place, "--revision", "main")[0] == 0
    assert {revision for *_, revision, _ in recorder} == {"main"}
    recorder.clear()
    recipe.write_text("model_name_or_path: another/name\nmodel_revision: step1000\n")
    assert evaluated(place)[0] == 0
    assert {revision for *_, revision, _ in recorder} == {"main"}
    recipe.write_text("lora_target_modules: all-linear\n")


BASES = {
    "fewer layers": {"num_hidden_layers": 1},
    "more layers": {"num_hidden_layers": 3},
    "another width": {"hidden_size": 64},
}


@pytest.mark.parametrize("kind", [*BASES, "the run", "an adapter", "nowhere"])
def test_a_base_that_is_not_the_runs_is_refused(kind, place, tmp_path, capsys):
    base = {"the run": place / "run", "an adapter": tmp_path / "base", "nowhere": "gone"}.get(kind)
    if kind in BASES:
        base = saved(tmp_path / "base", make_model("llama", **BASES[kind]))
    elif kind == "an adapter":
        saved(base, anchored_model("llama"))
    assert evaluated(place, base=base)[0] == 2
    assert "`--base` " in error_of(capsys)
