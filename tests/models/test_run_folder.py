"""The model of a finished run: what it is loaded from, and with what it computes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from balora.errors import ConfigError
from balora.models.run_folder import classes_of, is_classifier, load_run
from balora.models.source import ModelSource, base_of_runs
from support.adapters import anchored_model, logits_of, make_batch, train
from support.classification import ARCHITECTURES as CLASSIFIERS
from support.classification import save_body
from support.models import CAUSAL, make_model, make_tokenizer


def trained_run(folder, architecture):
    model = anchored_model(architecture)
    batch = make_batch(architecture, torch.Generator().manual_seed(0))
    train(model, batch)
    model.save_pretrained(folder / "run")
    make_model(architecture).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    return batch, logits_of(model, batch)


@pytest.mark.parametrize("architecture", [*CAUSAL, "bert", "roberta", "deberta-v3"])
def test_an_adapter_gives_the_logits_that_it_had(architecture, tmp_path):
    batch, logits = trained_run(tmp_path, architecture)
    base = ModelSource(name=str(tmp_path / "base"), setting="`--base`")
    loaded = load_run(tmp_path / "run", base)
    torch.testing.assert_close(logits_of(loaded.model, batch), logits, rtol=0, atol=1e-5)
    assert not loaded.model.training
    is_causal = architecture in CAUSAL
    assert is_classifier(tmp_path / "run") != is_causal
    assert loaded.class_names == (None if is_causal else ("LABEL_0", "LABEL_1", "LABEL_2"))


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_classifier_brings_its_own_head_and_names(architecture, train_classifier, tmp_path):
    logits, batch = train_classifier(architecture)
    base = base_of_runs([tmp_path / "run"], str(tmp_path / "base"))
    loaded = load_run(tmp_path / "run", base)
    assert loaded.class_names == classes_of(tmp_path / "run") == ("no", "yes", "perhaps")
    assert loaded.model.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    torch.testing.assert_close(logits_of(loaded.model, batch), logits, rtol=0, atol=1e-5)


@pytest.fixture
def train_classifier(tmp_path):
    """Save a classifier's run with its recipe, on a body without a head."""
    from support.classification import make_trainer

    def run(architecture):
        from balora.models.classifier import load_classifier

        base = save_body(tmp_path / "base", architecture)
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(base)
        names = ("no", "yes", "perhaps")
        loaded = load_classifier(base, class_names=names, tokenizer=tokenizer)
        trainer = make_trainer(tmp_path / "run", model=loaded)
        trainer.train()
        trainer.save_model()
        (tmp_path / "run" / "recipe.yaml").write_text(
            "task: classification\nclass_names: ['no', 'yes', perhaps]\n"
            f"model_name_or_path: {base}\ndataset_name: rows.csv\noutput_dir: out\n"
        )
        batch = {"input_ids": torch.tensor([[9, 8, 7, 6], [5, 4, 5, 6]])}
        return logits_of(trainer.model.eval(), batch), batch

    return run


def test_a_whole_model_is_loaded_as_it_is_and_is_not_its_own_base(tmp_path):
    for name in ("run", "base"):
        make_model("llama", seed=len(name)).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    base = base_of_runs([tmp_path / "run"], str(tmp_path / "base"))
    loaded = load_run(tmp_path / "run", base).model
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(ConfigError, match=r"`--base` .* is the run itself"):
        load_run(tmp_path / "run", base_of_runs([tmp_path / "run"], str(tmp_path / "run")))


def test_a_folder_without_either_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds neither an adapter nor a model"):
        load_run(tmp_path, ModelSource(name="no-such/model"))


def test_an_adapter_with_a_weight_that_is_not_finite_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    trained_run(tmp_path, "llama")
    path = tmp_path / "run" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(value for key, value in tensors.items() if "layers.1.mlp.up_proj.lora_B" in key)[0] = (
        float("nan")
    )
    save_file(tensors, path)
    base = ModelSource(name=str(tmp_path / "base"))
    with pytest.raises(ConfigError, match=r"the adapter in .*run.* NaN or infinite, in .*up_proj"):
        load_run(tmp_path / "run", base)


RECIPE = "model_name_or_path: some/model\nmodel_revision: step1000\ndtype: bfloat16\n"


@pytest.mark.parametrize(
    ("base", "given", "revision", "dtype"),
    [
        ("some/model", {}, "step1000", "bfloat16"),
        ("other/model", {}, "main", "bfloat16"),
        ("some/model", {"revision": "main"}, "main", "bfloat16"),
        ("other/model", {"revision": "v2", "dtype": "auto"}, "v2", "auto"),
    ],
)
def test_the_base_of_a_run_is_loaded_as_the_recipe_says(base, given, revision, dtype, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE + "attn_implementation: eager\n")
    source = base_of_runs([tmp_path], base, **given)
    assert (source.revision, source.dtype) == (revision, dtype)
    assert source.attn_implementation == "eager"
    assert not source.trust_remote_code


def test_a_run_without_a_recipe_is_loaded_in_float32(tmp_path):
    source = base_of_runs([tmp_path], "some/model")
    assert (source.revision, source.dtype, source.attn_implementation) == ("main", "float32", None)


def test_a_recipe_does_not_switch_remote_code_on_for_those_who_evaluate(tmp_path):
    text = RECIPE + "trust_remote_code: true\nmodel_init_kwargs: {trust_remote_code: true}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert "trust_remote_code" not in base_of_runs([tmp_path], "some/model").options
    assert not base_of_runs([tmp_path], "some/model").where()["trust_remote_code"]
