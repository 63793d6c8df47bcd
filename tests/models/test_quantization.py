"""Quantised bases: refused where they cannot be, else the same base for every command."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from balora.anchored import (
    get_balora_model,
    initialise,
    lora_layers,
    reference_mode,
)
from balora.anchored.layer import dequantised_weight
from balora.cli import main
from balora.config import BALoraConfig
from balora.config.quantization import Quantization
from balora.errors import ConfigError
from balora.evaluation.updates import update_sizes
from balora.models.classifier import load_classifier
from balora.models.load import load_model
from balora.models.quantization import is_quantised, quantised_by
from balora.models.run_folder import load_run
from balora.models.source import ModelSource, base_of_runs
from balora.trainers import BALoraSFTTrainer
from balora.trainers.checks import check_is_trainable
from support.adapters import logits_of, lora_config, make_batch
from support.command_line import train_with
from support.models import make_model, make_tokenizer
from support.training import make_rows, sft_config

scale = pytest.mark.scale
NF4 = {"load_in_4bit": True}
NESTED = {**NF4, "bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True}
INT8 = {"load_in_8bit": True}
TORCHAO = {"torchao": "int8_weight_only"}
SCHEMES = {"nf4": NF4, "nested": NESTED, "int8": INT8, "torchao": TORCHAO}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def tiny(name: str):
    """Return a model whose rows are whole blocks of 64, as bitsandbytes' kernels for CPUs ask."""
    sizes = {"n_embd": 64} if name == "gpt2" else {"hidden_size": 64, "intermediate_size": 128}
    return make_model(name, **sizes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with two models, `llama` and `roberta`, and rows for each."""
    place = tmp_path_factory.mktemp("quantised")
    for name in ("llama", "gpt2", "roberta"):
        model = tiny(name)
        model.save_pretrained(place / name)
        make_tokenizer().save_pretrained(place / name)
    lines = [json.dumps({"prompt": f"{i}+{i}=", "completion": str(2 * i)}) for i in range(16)]
    (place / "rows.jsonl").write_text("\n".join(lines))
    rows = [f"text {i},{('neg', 'pos')[i % 2]}" for i in range(16)]
    (place / "rows.csv").write_text("\n".join(["text,label", *rows]))
    return place


def source_of(folder: Path, name: str, **scheme) -> ModelSource:
    return ModelSource(name=str(folder / name), quantization=Quantization(**scheme))


# refused, with or without the libraries


def test_a_missing_library_is_one_sentence(folder, monkeypatch):
    monkeypatch.setattr("balora.models.quantization.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"`load_in_4bit` is true, which needs bitsandbytes, .*: `pip install 'balora\[quant",
    ):
        load_model(source_of(folder, "llama", **NF4))
    with pytest.raises(ConfigError, match="`torchao` is int8_weight_only, which needs torchao, "):
        load_classifier(source_of(folder, "roberta", **TORCHAO), class_names=["a", "b", "c"])


@pytest.mark.parametrize(("field", "dry_run"), [("load_in_4bit", False), ("load_in_8bit", True)])
def test_a_quantised_checkpoint_is_not_quantised_again(folder, tmp_path, field, dry_run, capsys):
    place = tmp_path / "model"
    make_model("llama").save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    path = place / "config.json"
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantised}))
    fields = train_fields(folder, tmp_path / "out", model=place)
    options = [f"--{field}", "true", *(["--dry_run"] if dry_run else [])]
    assert train_with(fields, options) == 2
    error = capsys.readouterr().err
    assert f"`{field}` is true, but `model_name_or_path`" in error
    assert f"is quantised already (bitsandbytes). Leave `{field}` out" in error
    assert not (tmp_path / "out").exists()


def train_fields(folder: Path, out: Path, *, model: Path | None = None) -> dict[str, str]:
    return {
        "model_name_or_path": str(model or folder / "llama"),
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(out),
        "lora_r": "2",
        "lora_alpha": "4",
        "max_steps": "4",
        "per_device_train_batch_size": "4",
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
        "save_strategy": "no",
    }


# with the libraries


@scale
@every_scheme
def test_the_start_and_adapters_off_are_the_quantised_base_bit_for_bit(folder, scheme, rng):
    base = load_model(source_of(folder, "llama", **scheme))
    assert quantised_by(base) == Quantization(**scheme).scheme
    batch = make_batch("llama", rng)
    expected = logits_of(base, batch)  # also a forward before the start is computed
    whole = logits_of(tiny("llama"), batch)
    assert float((expected - whole).abs().max()) > 1e-4
    model = get_balora_model(base, lora_config("llama"))
    assert torch.equal(logits_of(model, batch), expected)
    for _, layer in lora_layers(model):
        assert layer.lora_A["default"].weight.dtype == torch.float32
        assert float(layer.lora_B["default"].weight.detach().abs().max()) > 0
        layer.lora_B["default"].weight.data += 0.1
    assert not torch.equal(logits_of(model, batch), expected)
    with reference_mode(model):
        assert torch.equal(logits_of(model, batch), expected)
    assert len(update_sizes(model, load_model(source_of(folder, "llama", **scheme)))) == 14


@scale
@pytest.mark.parametrize("scheme", [NF4, INT8], ids=["nf4", "int8"])  # which trl casts
def test_every_number_of_the_adapter_moves_at_the_rate_of_the_recipe(folder, scheme, tmp_path):
    model = load_model(source_of(folder, "llama", **scheme))
    args = sft_config(tmp_path, learning_rate=2e-5, max_steps=6)
    trainer = BALoraSFTTrainer(
        model,
        args,
        peft_config=lora_config("llama"),
        processing_class=make_tokenizer(),
        train_dataset=make_rows(),
    )
    factors = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in factors.values()} == {torch.float32}
    initialise(trainer.model)
    before = {name: p.detach().clone() for name, p in factors.items()}
    trainer.train()
    moved = [(p.detach() != before[name]) for name, p in factors.items()]
    # a step back may land on the very number that a step away came from
    assert float(torch.cat([m.flatten() for m in moved]).float().mean()) > 0.999


def trained_run(folder: Path, out: Path, scheme: dict, **fields) -> Path:
    options = [f"--{name}={str(value).lower()}" for name, value in (scheme | fields).items()]
    assert train_with(train_fields(folder, out), ["--learning_rate", "0.01", *options]) == 0
    return out


@pytest.fixture(scope="module")
def run_of(folder):
    """Return the run of a scheme, with what its command printed; trained once."""

    @cache
    def train(name: str) -> tuple[Path, str]:
        printed = StringIO()
        with redirect_stdout(printed):
            saved = {"save_strategy": "steps", "save_steps": 2}
            run = trained_run(folder, folder / f"run-{name}", SCHEMES[name], **saved)
        return run, printed.getvalue()

    return train


trained_schemes = pytest.mark.parametrize("name", ["nf4", "int8", "torchao"])


def run_printed(text: str):
    """Return the model of the lines that a command has printed."""
    found: dict = {}
    exec(text.rpartition("These lines load it:\n\n")[2], found)
    return found["model"].eval()


@scale
@trained_schemes
def test_a_run_loads_on_the_same_quantised_base_everywhere(folder, name, run_of, rng):
    (run, printed), scheme = run_of(name), SCHEMES[name]
    batch, base = make_batch("llama", rng), str(folder / "llama")
    source = base_of_runs([run], base)
    assert source.quantization == Quantization(**scheme)
    quantised = logits_of(load_model(source), batch)
    ours = logits_of(load_run(run, source).model, batch)
    assert float((ours - quantised).abs().max()) > 1e-3
    # for a pass without gradients on a CPU bitsandbytes rounds the scales to bfloat16
    away = 0.1 if "load_in_4bit" in scheme else 0.0
    assert float((logits_of(run_printed(printed), batch) - ours).abs().max()) <= away
    plain = load_model(source_of(folder, "llama", **scheme))
    assert torch.equal(logits_of(PeftModel.from_pretrained(plain, str(run)).eval(), batch), ours)
    # as training itself computed: the anchored model, resumed
    anchored = get_balora_model(load_model(source), lora_config("llama", r=2, lora_alpha=4))
    anchored.load_adapter(str(run), "default")
    torch.testing.assert_close(logits_of(anchored, batch), ours, rtol=0, atol=1e-5)


@scale
@trained_schemes
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(folder, name, run_of, tmp_path, capsys):
    run, scheme = tmp_path / "run", SCHEMES[name]
    shutil.copytree(run_of(name)[0], run)
    expected = load_file(run / "anchor.safetensors")
    for file in ("adapter_model.safetensors", "anchor.safetensors", "environment.json"):
        (run / file).unlink()
    shutil.rmtree(run / "checkpoint-4")
    resumed = {"save_strategy": "steps", "save_steps": 2, "resume_from_checkpoint": True}
    trained_run(folder, run, scheme, **resumed)
    found = load_file(run / "anchor.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    shutil.rmtree(run / "checkpoint-4")
    options = ["--learning_rate", "0.01", *(f"--{n}={v}" for n, v in resumed.items())]
    assert train_with(train_fields(folder, run), options) == 2
    assert "belongs to another run: " in capsys.readouterr().err


@scale
@trained_schemes
def test_an_adapter_is_merged_into_the_weights_that_it_was_trained_on(
    folder, name, run_of, tmp_path, capsys, rng
):
    run, scheme = run_of(name)[0], SCHEMES[name]
    batch, base = make_batch("llama", rng), str(folder / "llama")
    trained = logits_of(load_run(run, base_of_runs([run], base)).model, batch)
    given = ["--merge", "--to", str(tmp_path / "merged")]
    assert main(["export", str(run), "--base", base, *given]) == 0
    printed = capsys.readouterr().out
    assert f"Merged into the dequantised weights of the base ({next(iter(scheme))}: " in printed
    merged = run_printed(printed)
    assert quantised_by(merged) is None
    off = float((logits_of(merged, batch) - trained).abs().max())
    whole = tmp_path / "whole"
    given = ["--merge", "--load_in_4bit", "false", "--to", str(whole)]
    assert main(["export", str(run), "--base", base, *given]) == 0
    printed = capsys.readouterr().out
    assert "dequantised" not in printed
    other = float((logits_of(run_printed(printed), batch) - trained).abs().max())
    # what is left is how the kernels of a quantised layer round their input
    assert off < (0.5 if scheme == INT8 else 1e-4)
    if scheme != INT8:
        assert off < other


@scale
def test_eval_measures_on_the_quantised_base(folder, run_of, tmp_path, caplog):
    run = run_of("nf4")[0]
    command = ["eval", str(run), "--base", str(folder / "llama"), "--num_rows", "2"]
    command += ["--max_new_tokens", "2"]
    results = {}
    for name, options in {"own": [], "whole": ["--load_in_4bit", "false"]}.items():
        file = tmp_path / f"{name}.json"
        caplog.clear()
        with caplog.at_level("INFO", logger="balora"):
            assert main([*command, *options, "--json", str(file)]) == 0
        results[name] = json.loads(file.read_text())["base"]
        sentence = "was trained on load_in_4bit: true, bnb_4bit_quant_type: nf4, "
        assert (sentence in caplog.text) == (name == "whole")
    assert results["own"] != results["whole"]


@scale
@pytest.mark.parametrize("scheme", [NF4, TORCHAO], ids=["nf4", "torchao"])
def test_a_classifier_keeps_its_head_and_pooler_whole(folder, scheme, tmp_path, capsys, rng):
    names = ["neg", "pos", "so so"]
    loaded = load_classifier(source_of(folder, "roberta", **scheme), class_names=names)
    found = {n for n, p in loaded.model.named_parameters() if is_quantised(p)}
    assert len(found) == 12
    assert all(".layer." in name for name in found)
    batch = make_batch("roberta", rng)
    expected = logits_of(loaded.model, batch)
    model = get_balora_model(loaded, lora_config("roberta"))
    assert torch.equal(logits_of(model, batch), expected)
    out = tmp_path / "out"
    fields = train_fields(folder, out, model=folder / "roberta")
    fields |= {"task": "classification", "dataset_name": str(folder / "rows.csv")}
    fields |= {"dataset_test_split": "train", "max_length": "32"}
    scheme = {**scheme, "ignore_mismatched_sizes": True}
    options = [f"--{name}={str(value).lower()}" for name, value in scheme.items()]
    capsys.readouterr()
    assert train_with(fields, ["--learning_rate", "0.01", *options]) == 0
    model = run_printed(capsys.readouterr().out)
    own = load_run(out, base_of_runs([out], str(folder / "roberta"))).model
    away = 0.1 if "load_in_4bit" in scheme else 0.0
    assert float((logits_of(model, batch) - logits_of(own, batch)).abs().max()) <= away


@scale
def test_what_a_scheme_cannot_quantise_is_refused(folder):
    with pytest.raises(ConfigError, match=r"`torchao` is .* has no layer that it quantises"):
        load_model(source_of(folder, "gpt2", **TORCHAO))
    assert quantised_by(load_model(source_of(folder, "gpt2", **NF4))) == "load_in_4bit"


@scale
@every_scheme
def test_a_weight_that_is_not_finite_is_found_in_its_scales(folder, scheme, tmp_path):
    place = tmp_path / "model"
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = torch.inf
    model.save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    with pytest.raises(ConfigError, match=r"NaN or infinite, in `model\.layers\.1\.mlp\.up_proj"):
        load_model(source_of(tmp_path, "model", **scheme))


@scale
@every_scheme
def test_quantised_weights_are_not_trained_themselves(folder, scheme, tmp_path):
    model = load_model(source_of(folder, "llama", **scheme))
    with pytest.raises(ConfigError, match=r"are quantised \(`\w+`\), and cannot be trained"):
        BALoraSFTTrainer(
            model,
            sft_config(tmp_path),
            balora_config=BALoraConfig(consistency_coef=0.0),
            processing_class=make_tokenizer(),
            train_dataset=make_rows(),
        )


@scale
def test_a_reference_pass_leaves_4_bit_weights_and_gradients_as_they_are(folder, rng):
    model = get_balora_model(load_model(source_of(folder, "llama", **NF4)), lora_config("llama"))
    batch = make_batch("llama", rng)

    def gradients(passes: int):
        model.zero_grad()
        loss = model.train()(**batch).loss
        for _ in range(passes):
            with reference_mode(model):
                model(**batch)
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    expected, found = gradients(0), gradients(1)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    packed = AutoModelForCausalLM.from_pretrained(
        folder / "llama", quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    with torch.no_grad():
        packed.eval()(input_ids=batch["input_ids"])
    layer = packed.model.layers[0].self_attn.q_proj
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        with pytest.raises(ConfigError, match="is in a form that cannot be trained"):
            check_is_trainable(packed, has_adapter=True)


@scale
def test_an_8_bit_layer_is_as_it_was_after_its_weight_was_read(folder, rng):
    model = load_model(source_of(folder, "llama", **INT8))
    layer, batch = model.model.layers[0].self_attn.q_proj, make_batch("llama", rng)
    before, expected = dequantised_weight(layer), logits_of(model, batch)
    assert torch.equal(dequantised_weight(layer), before)
    assert torch.equal(logits_of(model, batch), expected)
    own = tiny("llama").model.layers[0].self_attn.q_proj.weight
    assert float((before - own).detach().norm() / own.detach().norm()) < 0.02
