"""An adapter and a base: what belongs together passes, everything else names the base."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from balora.errors import ConfigError
from balora.models.adapter import CONFIG_FILE, WEIGHTS_FILE
from balora.models.fits import check_adapter_fits
from balora.models.record import base_record, check_recorded_weights, write_base
from balora.models.source import ModelSource
from support.adapters import anchored_model
from support.models import ARCHITECTURES, CAUSAL, CLASSIFIERS, make_model

DEPTH = {"gpt2": "n_layer"}
WIDTH = {"gpt2": "n_embd"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folder of a tiny model, or of an adapter of one, by what it is."""
    root, made = tmp_path_factory.mktemp("folders"), {}

    def folder(kind, architecture, make):
        key = f"{kind}-{architecture}"
        if key not in made:
            made[key] = root / key
            make().save_pretrained(made[key])
            if kind.startswith("run"):
                (made[key] / "recipe.yaml").write_text("lora_target_modules: all-linear\n")
        return made[key]

    return folder


def base_of(folders, kind, architecture, **changes):
    make = partial(make_model, architecture, **changes)
    return ModelSource(name=str(folders(kind, architecture, make)), setting="`--base`")


def run_of(folders, architecture, **settings):
    kind = f"run{sorted(settings)}"
    return folders(kind, architecture, partial(anchored_model, architecture, **settings))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_its_own_base_fits(architecture, folders):
    check_adapter_fits(run_of(folders, architecture), base_of(folders, "own", architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("number", "sentence"), [(1, "and the model has no such layer"), (3, "the adapter has nothing")]
)
def test_fewer_and_more_layers_are_refused(number, sentence, architecture, folders):
    changes = {DEPTH.get(architecture, "num_hidden_layers"): number}
    base = base_of(folders, f"depth{number}", architecture, **changes)
    with pytest.raises(ConfigError, match=rf"does not fit `--base` .*{sentence}"):
        check_adapter_fits(run_of(folders, architecture), base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_width_is_refused(architecture, folders):
    changes = {WIDTH.get(architecture, "hidden_size"): 64}
    base = base_of(folders, "width", architecture, **changes)
    with pytest.raises(
        ConfigError, match=r"does not fit `--base` .* has shape \(.*the model has \("
    ):
        check_adapter_fits(run_of(folders, architecture), base)


@pytest.mark.parametrize("targets", [["q_proj"], r".*\.(q|v)_proj", "all-linear"], ids=str)
def test_more_layers_are_found_whatever_names_the_targets(targets, folders, tmp_path):
    anchored_model("llama", target_modules=targets).save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text(f"lora_target_modules: {json.dumps(targets)}\n")
    check_adapter_fits(tmp_path, base_of(folders, "own", "llama"))
    more = base_of(folders, "depth3", "llama", num_hidden_layers=3)
    with pytest.raises(ConfigError, match=r"the model has `model.layers.2.*adapter has nothing"):
        check_adapter_fits(tmp_path, more)


def test_layers_that_were_left_out_on_purpose_fit(folders, tmp_path):
    settings = {"target_modules": ["q_proj"], "layers_to_transform": [0]}
    anchored_model("llama", **settings).save_pretrained(tmp_path)
    check_adapter_fits(tmp_path, base_of(folders, "own", "llama"))


def test_another_architecture_is_refused(folders):
    run = run_of(folders, "llama")
    for architecture in set(CAUSAL) - {"llama", "mistral", "qwen2", "gemma"}:
        with pytest.raises(ConfigError, match=r"does not fit `--base`"):
            check_adapter_fits(run, base_of(folders, "own", architecture))
    for architecture in CLASSIFIERS:
        with pytest.raises(ConfigError, match=r"`--base` .* is no causal language model"):
            check_adapter_fits(run, base_of(folders, "own", architecture))


def test_another_number_of_classes_is_refused(folders):
    base, run = base_of(folders, "own", "bert"), run_of(folders, "bert")
    check_adapter_fits(run, base, num_labels=3)
    with pytest.raises(ConfigError, match=r"has 3 outputs, but its recipe .* has 2 classes"):
        check_adapter_fits(run, base, num_labels=2)


def test_the_run_itself_and_another_adapter_are_no_base(folders):
    run, other = run_of(folders, "llama"), run_of(folders, "gpt2")
    with pytest.raises(ConfigError, match=rf"`--base` '{re.escape(str(run))}' is the run itself"):
        check_adapter_fits(run, ModelSource(name=str(run), setting="`--base`"))
    with pytest.raises(ConfigError, match=r"`--base` .* is an adapter, not a pre-trained model"):
        check_adapter_fits(run, ModelSource(name=str(other), setting="`--base`"))


def test_the_base_that_the_recipe_knows_is_named(tmp_path, folders):
    anchored_model("llama").save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: some/llama\n")
    base = base_of(folders, "depth1", "llama", num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"Name the model it was trained on, 'some/llama'"):
        check_adapter_fits(tmp_path, base)


def test_a_config_of_another_rank_is_blamed_on_the_folder(tmp_path, folders):
    anchored_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"r": 5}))
    with pytest.raises(
        ConfigError, match=r"contradicts itself: .* the rank 5, and its tensors have 8"
    ):
        check_adapter_fits(tmp_path, base_of(folders, "own", "llama"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (CONFIG_FILE, "", "is empty"),
        (CONFIG_FILE, "[1]", "holds no object"),
        (CONFIG_FILE, '{"peft_type": "NOPE"}', "`peft_type` is 'NOPE'"),
        (WEIGHTS_FILE, "", "is empty"),
        (WEIGHTS_FILE, "x" * 99, "is damaged"),
        (WEIGHTS_FILE, None, "holds no adapter"),
    ],
)
def test_a_damaged_adapter_is_named(name, content, sentence, tmp_path, folders):
    anchored_model("llama").save_pretrained(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path))}.*({sentence})"):
        check_adapter_fits(tmp_path, base_of(folders, "own", "llama"))


def test_weights_of_another_adapter_beside_the_config_are_refused(tmp_path, folders):
    anchored_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    kept = {key: value for key, value in tensors.items() if "layers.1" not in key}
    save_file(kept, tmp_path / WEIGHTS_FILE)
    (tmp_path / "recipe.yaml").write_text("lora_target_modules: all-linear\n")
    with pytest.raises(ConfigError, match=r"model has `model.layers.1.*adapter has nothing for it"):
        check_adapter_fits(tmp_path, base_of(folders, "own", "llama"))


def test_a_vocabulary_that_no_layer_shows_is_known_from_the_record(tmp_path, folders):
    anchored_model("llama").save_pretrained(tmp_path)
    write_base(tmp_path, base_record(make_model("llama")))
    check_adapter_fits(tmp_path, base_of(folders, "own", "llama"))
    other = base_of(folders, "vocabulary", "llama", vocab_size=200)
    with pytest.raises(ConfigError, match=r"`vocab_size` 128, but `--base` .* has 200"):
        check_adapter_fits(tmp_path, other)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_weights_of_the_same_sizes_are_known_from_the_record(architecture, tmp_path):
    write_base(tmp_path, base_record(anchored_model(architecture)))  # as a run records it
    base = ModelSource(name="some/base", setting="`--base`")
    check_recorded_weights(tmp_path, base, make_model(architecture))
    for dtype in (torch.bfloat16, torch.float16):
        check_recorded_weights(tmp_path, base, make_model(architecture, dtype=dtype))
    other = make_model(architecture)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ConfigError, match=r"other weights than `--base` 'some/base': `.*Name"):
            check_recorded_weights(tmp_path, base, other.to(dtype))


def test_another_revision_is_refused_with_the_one_it_was_trained_on(tmp_path):
    write_base(tmp_path, base_record(anchored_model("llama")))
    other = make_model("llama", seed=1)
    asked = ModelSource(name="some/base", setting="`--base`", revision="main")
    recipe = "model_name_or_path: some/base\n"
    for fields in ("model_revision: early", "model_init_kwargs: {revision: early}"):
        (tmp_path / "recipe.yaml").write_text(f"{recipe}{fields}\n")
        with pytest.raises(ConfigError, match=r"Name .* on, 'some/base' at revision 'early'\.$"):
            check_recorded_weights(tmp_path, asked, other)
    (tmp_path / "recipe.yaml").write_text(recipe)  # it names the very one
    with pytest.raises(ConfigError, match=r"It has changed since; restore it\.$"):
        check_recorded_weights(tmp_path, asked, other)
