"""Export of what is no language model with a plain LoRA on linear layers: right, or refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from balora.anchored import ADAPTER_FILE
from balora.anchored.export import export_adapter, export_merged
from balora.cli import main
from balora.errors import ConfigError
from balora.models.classifier import load_classifier
from support.adapters import (
    adapted_model,
    logits_of,
    lora_config,
    make_batch,
    relative_error,
    train,
)
from support.classification import ARCHITECTURES, make_trainer, save_body
from support.models import make_model, make_tokenizer

NAMES = ("no", "yes", "perhaps")
BATCH = {"input_ids": torch.tensor([[9, 8, 7, 6], [5, 4, 5, 6]])}


def train_classifier(folder, architecture, class_names=NAMES):
    """Leave a base without a head and a run with one; return the logits of the run."""
    base, run = save_body(folder / "base", architecture), folder / "run"
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(base)
    loaded = load_classifier(str(base), class_names=class_names, tokenizer=tokenizer)
    trainer = make_trainer(run, model=loaded)
    trainer.train()
    trainer.save_model()
    kind = "regression" if class_names is None else "classification"
    (run / "recipe.yaml").write_text(
        f"task: {kind}\nmodel_name_or_path: {base}\ndataset_name: rows.csv\noutput_dir: out\n"
        + (f"class_names: {json.dumps(class_names)}\n" if class_names else "")
    )
    return logits_of(trainer.model.eval(), BATCH)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def classifier(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, train_classifier(folder, request.param)


def export(folder, *options):
    """Run `balora export` on the run of a folder; return where it went."""
    to = folder / f"out{''.join(options)}"
    base = ["--base", str(folder / "base"), "--to", str(to)]
    assert main(["export", str(folder / "run"), *base, "--overwrite", *options]) == 0
    return to


def classifier_on_base(folder, adapter, num_labels=3):
    base = AutoModelForSequenceClassification.from_pretrained(
        folder / "base", num_labels=num_labels
    )
    base.config.pad_token_id = make_tokenizer().pad_token_id
    return PeftModel.from_pretrained(base, adapter).eval()


def test_a_merged_classifier_has_the_head_the_names_and_the_logits_of_the_run(classifier):
    folder, logits = classifier
    merged = AutoModelForSequenceClassification.from_pretrained(export(folder, "--merge")).eval()
    torch.testing.assert_close(logits_of(merged, BATCH), logits, rtol=0, atol=1e-5)
    assert merged.config.id2label == dict(enumerate(NAMES))
    assert merged.config.architectures[0].endswith("ForSequenceClassification")
    assert len(AutoTokenizer.from_pretrained(folder / "out--merge")) == len(make_tokenizer())


def test_an_exported_classifier_gives_the_logits_of_the_run(classifier):
    folder, logits = classifier
    model = classifier_on_base(folder, export(folder))
    torch.testing.assert_close(logits_of(model, BATCH), logits, rtol=0, atol=1e-5)


def test_a_truncated_classifier_keeps_its_head(classifier):
    folder, _ = classifier
    model = classifier_on_base(folder, export(folder, "--rank", "1"))
    assert model.peft_config["default"].r == 1
    tensors = [load_file(path / ADAPTER_FILE) for path in (folder / "run", folder / "out--rank1")]
    heads = [key for key in tensors[0] if ".lora_" not in key]
    assert heads
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in heads)
    assert logits_of(model, BATCH).isfinite().all()


def test_a_merged_regression_has_one_output(tmp_path):
    logits = train_classifier(tmp_path, "bert", None)
    merged = AutoModelForSequenceClassification.from_pretrained(export(tmp_path, "--merge")).eval()
    torch.testing.assert_close(logits_of(merged, BATCH), logits, rtol=0, atol=1e-5)
    assert merged.config.num_labels == 1
    assert merged.config.problem_type == "regression"


class Lora:
    """A base and the run of a plain LoRA on it, without anything of balora's."""

    def __init__(self, folder, architecture="llama", **settings):
        self.base, self.run, self.out = str(folder / "base"), folder / "run", folder / "out"
        make_model(architecture).save_pretrained(self.base)
        make_tokenizer().save_pretrained(self.base)
        self.model = adapted_model(architecture, **settings)
        self.batch = make_batch(architecture, torch.Generator().manual_seed(0))
        train(self.model, self.batch)
        self.model.save_pretrained(self.run)
        self.logits = logits_of(self.model, self.batch)

    def error_of_export(self):
        model = AutoModelForCausalLM.from_pretrained(self.base)
        plain = PeftModel.from_pretrained(model, self.out).eval()
        return relative_error(logits_of(plain, self.batch), self.logits)

    def error_of_merge(self):
        export_merged(self.run, self.base, self.out, overwrite=True)
        merged = AutoModelForCausalLM.from_pretrained(self.out).eval()
        return relative_error(logits_of(merged, self.batch), self.logits)


PATTERNS = {
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    "rslora patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 2, "k_proj": 6}},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_an_export_has_no_pattern(name, tmp_path):
    lora = Lora(tmp_path, **PATTERNS[name])
    export_adapter(lora.run, lora.base, lora.out)
    config = LoraConfig.from_pretrained(lora.out)
    assert config.rank_pattern == config.alpha_pattern == {}
    assert not config.use_rslora
    assert lora.error_of_export() < 1e-5
    assert lora.error_of_merge() < 1e-5


def test_layers_with_fewer_singular_values_are_filled_up(tmp_path):
    lora = Lora(tmp_path, rank_pattern={"down_proj": 20}, alpha_pattern={"down_proj": 30}, r=2)
    export_adapter(lora.run, lora.base, lora.out, rank=19)
    config = LoraConfig.from_pretrained(lora.out)
    assert (config.r, config.lora_alpha, config.rank_pattern) == (19, 19, {})
    ranks = {len(t) for key, t in load_file(lora.out / ADAPTER_FILE).items() if "lora_A" in key}
    assert ranks == {19}
    assert lora.error_of_export() < 0.05


EMBEDDINGS = {"with a layer": ["q_proj", "embed_tokens"], "alone": ["embed_tokens"]}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("targets", EMBEDDINGS)
def test_an_adapted_embedding_is_truncated_like_a_layer(targets, tmp_path):
    lora = Lora(tmp_path, target_modules=EMBEDDINGS[targets])
    truncation = export_adapter(lora.run, lora.base, lora.out, rank=2)
    assert 0 < truncation.relative_error < 1
    base = AutoModelForCausalLM.from_pretrained(lora.base)
    plain = PeftModel.from_pretrained(base, lora.out)
    own = dict(lora.model.get_base_model().named_modules())
    for name, layer in plain.get_base_model().named_modules():
        if hasattr(layer, "get_delta_weight"):
            whole = own[name].get_delta_weight("default").detach().double()
            u, s, vh = torch.linalg.svd(whole, full_matrices=False)
            delta = layer.get_delta_weight("default").detach().double()
            torch.testing.assert_close(
                delta, (u[:, :2] * s[:2]) @ vh[:2], rtol=0, atol=1e-5 * float(whole.abs().max())
            )
    export_adapter(lora.run, lora.base, lora.out, overwrite=True)
    assert lora.error_of_export() < 1e-5
    assert lora.error_of_merge() < 1e-5


def test_another_method_is_refused(tmp_path):
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    )
    get_peft_model(make_model("llama"), config).save_pretrained(tmp_path / "run")
    make_model("llama").save_pretrained(tmp_path / "base")
    sentence = re.escape(f"`{tmp_path / 'run' / 'adapter_config.json'}` has `peft_type` 'IA3'")
    for call in (export_adapter, export_merged):
        with pytest.raises(ConfigError, match=sentence):
            call(tmp_path / "run", str(tmp_path / "base"), tmp_path / "out")
    with pytest.raises(ConfigError, match=sentence):
        export_adapter(tmp_path / "run", str(tmp_path / "base"), tmp_path / "out", rank=1)
    assert not (tmp_path / "out").exists()


OTHERS = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True, "target_modules": ["c_attn", "c_fc"]},
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes a bias for half a matrix
@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_lora_is_copied_and_merged_but_not_truncated(name, tmp_path):
    lora = Lora(tmp_path, "gpt2" if name == "lora_bias" else "llama", **OTHERS[name])
    with pytest.raises(ConfigError, match=rf"`--rank` is 2, .*`{name}` is True\. Leave `--rank`"):
        export_adapter(lora.run, lora.base, lora.out, rank=2)
    export_adapter(lora.run, lora.base, lora.out)
    assert lora.error_of_export() < 1e-5
    assert lora.error_of_merge() < 1e-5


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_what_is_trained_in_full_travels_with_every_export(settings, tmp_path):
    lora = Lora(tmp_path, "gpt2" if "bias" in settings else "llama", **settings)
    export_adapter(lora.run, lora.base, lora.out)
    assert lora.error_of_export() < 1e-5
    assert lora.error_of_merge() < 1e-5
    export_adapter(lora.run, lora.base, lora.out, rank=3, overwrite=True)
    saved, exported = (load_file(f / ADAPTER_FILE) for f in (lora.run, lora.out))
    rest = [key for key in saved if ".lora_" not in key]
    assert rest
    assert all(torch.equal(saved[key], exported[key]) for key in rest)
    assert lora.error_of_export() < 0.2


def test_a_start_that_changes_the_base_is_neither_truncated_nor_merged(tmp_path):
    lora = Lora(tmp_path, init_lora_weights="pissa")
    sentence = r"`init_lora_weights` is 'pissa'"
    with pytest.raises(ConfigError, match=f"`--rank` is 2, .*{sentence}"):
        export_adapter(lora.run, lora.base, lora.out, rank=2)
    with pytest.raises(ConfigError, match=f"`--merge` is set, .*{sentence}"):
        export_merged(lora.run, lora.base, lora.out)
    export_adapter(lora.run, lora.base, lora.out)
    assert lora.error_of_export() < 1e-4


def test_a_rank_that_the_tensors_do_not_have_is_refused(tmp_path):
    lora = Lora(tmp_path)
    path = lora.run / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))
    for call in (export_adapter, export_merged):
        with pytest.raises(ConfigError, match=r"adapter_config\.json gives .* the rank 2.* have 4"):
            call(lora.run, lora.base, lora.out)
    assert not lora.out.exists()


def test_a_quantised_base_is_not_merged_into(tmp_path):
    lora = Lora(tmp_path)
    path = tmp_path / "base" / "config.json"
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config = json.loads(path.read_text()) | {"quantization_config": quantised}
    path.write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match=r"`--base` .* is quantised \(bitsandbytes\), and merging"
    ):
        export_merged(lora.run, lora.base, lora.out)
    export_adapter(lora.run, lora.base, lora.out)
    assert LoraConfig.from_pretrained(lora.out).r == lora_config("llama").r
