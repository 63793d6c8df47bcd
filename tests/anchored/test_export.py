"""Export: the copy, the truncation with its error, the merged model, and what is refused."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import balora.anchored.export as export
from balora.anchored import ADAPTER_FILE, ANCHOR_FILE
from balora.anchored.export import export_adapter, export_merged
from balora.anchored.truncate import truncate
from balora.errors import BaloraError, ConfigError
from support.adapters import (
    anchored_model,
    dense_updates,
    logits_of,
    make_batch,
    relative_error,
    train,
)
from support.models import make_model, make_tokenizer

PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}
SETTINGS = {
    "plain": ("llama", {}),
    "gpt2": ("gpt2", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "patterns": ("llama", PATTERNS),
    "rslora patterns": ("llama", {"use_rslora": True, **PATTERNS}),
}


class Run:
    """A base folder, a run folder and what the trained model knows."""

    def __init__(self, folder, architecture, settings, dtype=torch.float32):
        self.base, self.source = str(folder / "base"), folder / "run"
        base = make_model(architecture, dtype=dtype)
        base.save_pretrained(self.base)
        make_tokenizer().save_pretrained(self.base)
        self.batch = make_batch(architecture, torch.Generator().manual_seed(0))
        model = anchored_model(architecture, dtype=dtype, **settings)
        train(model, self.batch)
        model.save_pretrained(self.source)
        make_tokenizer().save_pretrained(self.source)
        (self.source / "recipe.yaml").write_text("lora_target_modules: all-linear\n")
        self.updates, self.logits = dense_updates(model), logits_of(model, self.batch)

    def reload(self, folder):
        base = AutoModelForCausalLM.from_pretrained(self.base)
        return PeftModel.from_pretrained(base, folder).eval()

    def update_of(self, folder):
        """The updates s B A that the exported file describes, through plain PEFT."""
        modules = self.reload(folder).get_base_model().named_modules()
        deltas = {n: m.get_delta_weight("default") for n, m in modules if hasattr(m, "lora_A")}
        is_transposed = "transformer.h.0.attn.c_attn" in deltas
        return {n: (d.mT if is_transposed else d).double() for n, d in deltas.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"), "llama", {})


@pytest.fixture(scope="module", params=SETTINGS)
def any_run(request, tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"), *SETTINGS[request.param])


def test_whole_adapter_is_a_plain_lora_and_loads_on_the_base(any_run, tmp_path):
    assert export_adapter(any_run.source, any_run.base, tmp_path / "out") is None
    assert not (tmp_path / "out" / ANCHOR_FILE).exists()
    saved, exported = (load_file(f / ADAPTER_FILE) for f in (any_run.source, tmp_path / "out"))
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[key], exported[key]) for key in saved)
    plain = any_run.reload(tmp_path / "out")
    assert relative_error(logits_of(plain, any_run.batch), any_run.logits) < 1e-5
    assert plain.peft_config["default"].base_model_name_or_path == any_run.base
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(make_tokenizer())


def dense_truncation(updates, rank):
    """Truncate every dense update by its SVD; return them and the squared errors and norms."""
    truncated, lost, whole = {}, {}, {}
    for name, update in updates.items():
        u, s, vh = torch.linalg.svd(update, full_matrices=False)
        truncated[name] = (u[:, :rank] * s[:rank]) @ vh[:rank]
        lost[name], whole[name] = float(s[rank:].square().sum()), float(s.square().sum())
    return truncated, lost, whole


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_truncation_is_the_optimum_and_says_its_error(any_run, rank, tmp_path):
    out = tmp_path / "out"
    truncation = export_adapter(any_run.source, any_run.base, out, rank=rank)
    expected, lost, whole = dense_truncation(any_run.updates, rank)
    actual = any_run.update_of(out)
    for name, update in expected.items():
        scale = float(any_run.updates[name].abs().max())
        torch.testing.assert_close(actual[name], update, rtol=0, atol=1e-5 * scale)
    errors = {name: (lost[name] / whole[name]) ** 0.5 for name in lost}
    overall = (sum(lost.values()) / sum(whole.values())) ** 0.5
    assert truncation.rank == rank
    assert truncation.relative_error == pytest.approx(overall, rel=1e-3, abs=1e-6)
    assert truncation.worst_error == pytest.approx(max(errors.values()), rel=1e-3, abs=1e-6)
    assert errors[truncation.worst_layer] == pytest.approx(max(errors.values()), rel=1e-3)
    ranks = {len(t) for k, t in load_file(out / ADAPTER_FILE).items() if "lora_A" in k}
    assert max(ranks) == rank
    config = LoraConfig.from_pretrained(out)
    assert (config.r, config.lora_alpha, config.use_rslora) == (rank, rank, False)


def test_worst_layer_is_the_one_that_loses_most(run, tmp_path):
    truncation = export_adapter(run.source, run.base, tmp_path / "out", rank=2)
    assert 0 < truncation.relative_error < truncation.worst_error < 1


def test_truncation_of_an_update_of_low_rank_loses_nothing(rng):
    # rank 4 written with 6 columns, of which two are zero
    a, b = torch.randn(4, 9, generator=rng), torch.randn(7, 4, generator=rng)
    down, up = (f"base_model.model.x.lora_{factor}.weight" for factor in "AB")
    tensors = {
        down: torch.cat([a, torch.zeros(2, 9)]),
        up: torch.cat([b, torch.ones(7, 2)], dim=1),
    }
    _, truncated, truncation = truncate(LoraConfig(r=6, lora_alpha=3), tensors, 4)
    product = truncated[up] @ truncated[down]
    torch.testing.assert_close(product, 0.5 * b @ a, rtol=1e-4, atol=1e-5)
    assert truncation.relative_error < 1e-6


def test_truncation_of_nothing_loses_nothing(tmp_path):
    run = Run.__new__(Run)
    model = anchored_model("llama")
    model.save_pretrained(tmp_path / "run")
    make_model("llama").save_pretrained(tmp_path / "base")
    run.base = str(tmp_path / "base")
    truncation = export_adapter(tmp_path / "run", run.base, tmp_path / "out", rank=2)
    assert truncation.relative_error == truncation.worst_error == 0
    assert not any(update.any() for update in run.update_of(tmp_path / "out").values())


@pytest.mark.parametrize("rank", [-1, 0, 8, 9])
def test_rank_that_truncates_nothing_is_refused(run, rank, tmp_path):
    sentence = f"`--rank` is {rank}, but the adapter has rank 8. Give a rank from 1 to 7"
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        export_adapter(run.source, run.base, tmp_path / "out", rank=rank)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merged_model_has_the_trained_logits(architecture, tmp_path):
    run = Run(tmp_path, architecture, {"use_rslora": True})
    export_merged(run.source, run.base, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert relative_error(logits_of(merged, run.batch), run.logits) < 1e-5
    assert not (tmp_path / "out" / ADAPTER_FILE).exists()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(make_tokenizer())


def test_merging_into_bf16_rounds_once(tmp_path):
    run = Run(tmp_path, "llama", {}, dtype=torch.bfloat16)
    for path in run.source.glob("tokenizer*"):
        path.unlink()  # then it comes from the base
    export_merged(run.source, run.base, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    base = AutoModelForCausalLM.from_pretrained(run.base, dtype="auto")
    assert merged.dtype == base.dtype == torch.bfloat16
    for name, update in run.updates.items():
        weight = base.get_parameter(f"{name}.weight")
        expected = (weight.double() + update).to(torch.bfloat16)
        actual = merged.get_parameter(f"{name}.weight")
        # all but sums that lie on the edge between two bf16 numbers
        assert (actual != expected).float().mean() < 0.002
    assert torch.equal(merged.model.norm.weight, base.model.norm.weight)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(make_tokenizer())


OTHER_BASES = {
    "fewer layers": ({"num_hidden_layers": 1}, r"does not fit `--base` .*no such layer"),
    "more layers": ({"num_hidden_layers": 3}, r"does not fit `--base` .*layers\.2"),
    "another width": ({"intermediate_size": 40}, r"down_proj` has shape \(32, 48\).*\(32, 40\)"),
    "other heads": ({"num_key_value_heads": 4}, r"does not fit `--base` .*\(16, 32\).*\(32, 32\)"),
}


@pytest.mark.parametrize("export_to", [export_adapter, export_merged])
@pytest.mark.parametrize("other", OTHER_BASES)
def test_base_that_does_not_fit_is_refused(run, other, export_to, tmp_path):
    overrides, sentence = OTHER_BASES[other]
    make_model("llama", **overrides).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match=sentence):
        export_to(run.source, str(tmp_path / "base"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export_to", [export_adapter, export_merged])
def test_the_run_and_another_adapter_are_no_base(run, export_to, tmp_path):
    anchored_model("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"`--base` .* is the run itself"):
        export_to(run.source, str(run.source), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"`--base` .* is an adapter, not a pre-trained model"):
        export_to(run.source, str(tmp_path / "other"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_base_that_does_not_exist_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="`--base` 'no-such/model' cannot be loaded: "):
        export_adapter(run.source, "no-such/model", tmp_path / "out")


def test_source_that_is_no_adapter_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=f"`{tmp_path}` holds no adapter"):
        export_adapter(tmp_path, run.base, tmp_path / "out")


@pytest.mark.parametrize("export_to", [export_adapter, export_merged])
def test_destination_that_exists_is_kept_without_overwrite(run, export_to, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("precious")
    (out / "model.safetensors").write_text("precious")
    with pytest.raises(ConfigError, match=f"`--to` '{out}' exists. Name another folder, or pass"):
        export_to(run.source, run.base, out)
    assert (out / "config.json").read_text() == "precious"
    export_to(run.source, run.base, out, overwrite=True)
    assert {path.read_bytes() for path in out.iterdir()} & {b"precious"} == set()
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("export_to", [export_adapter, export_merged])
def test_a_folder_of_something_else_is_never_replaced(run, export_to, tmp_path):
    files = [tmp_path / "thesis" / "chapter1.tex", tmp_path / ".tmp-thesis" / "notes"]
    for file in files:
        file.parent.mkdir()
        file.write_text("precious")
    with pytest.raises(ConfigError, match=r"holds `chapter1\.tex`, which no export has written"):
        export_to(run.source, run.base, tmp_path / "thesis", overwrite=True)
    export_to(run.source, run.base, tmp_path / "new")
    assert [file.read_text() for file in files] == ["precious", "precious"]
    assert {path.name for path in tmp_path.iterdir()} == {"thesis", ".tmp-thesis", "new"}


@pytest.mark.parametrize("export_to", [export_adapter, export_merged])
@pytest.mark.parametrize("overwrite", [False, True])
def test_crash_on_the_way_leaves_what_was_there(run, export_to, overwrite, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if overwrite:
        out.mkdir()
        (out / "config.json").write_text("precious")

    def crash(_source, destination):
        assert len(list(destination.iterdir())) >= 2  # half is written
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_copy_tokenizer", crash)
    with pytest.raises(BaloraError, match=f"`--to` '{out}' cannot be written: no space left"):
        export_to(run.source, run.base, out, overwrite=overwrite)
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))]
    assert names == (["out", "out/config.json"] if overwrite else [])


def test_export_over_its_own_input_is_refused(run):
    wrong = {"is": run.source, "holds": run.source.parent, "lies in": Path(run.base) / "export"}
    for relation, destination in wrong.items():
        with pytest.raises(ConfigError, match=f"`--to` '{destination}' {relation} .*Name another"):
            export_adapter(run.source, run.base, destination, rank=2, overwrite=True)
    export_adapter(run.source, run.base, run.source / "export")
    shutil.rmtree(run.source / "export")
    assert (run.source / ANCHOR_FILE).exists()


def test_exported_adapter_does_not_resume(run, tmp_path):
    export_adapter(run.source, run.base, tmp_path / "out")
    model = anchored_model("llama")
    with pytest.raises(ConfigError, match="it is an exported adapter"):
        model.load_adapter(str(tmp_path / "out"), "default")


def test_export_of_a_checkpoint_folder_with_a_head(tmp_path):
    # a saved lm_head travels with the adapter
    model = anchored_model("llama", modules_to_save=["lm_head"])
    batch = make_batch("llama", torch.Generator().manual_seed(0))
    train(model, batch)
    model.save_pretrained(tmp_path / "run")
    make_model("llama").save_pretrained(tmp_path / "base")
    export_adapter(tmp_path / "run", str(tmp_path / "base"), tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    assert relative_error(logits_of(plain, batch), logits_of(model, batch)) < 1e-5
