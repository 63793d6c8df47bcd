"""A model, an adapter or a tokenizer whose files are damaged: one sentence on setting and file."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.errors import ConfigError, DataError
from balora.models.reading import check_files, model_folder, reading_model
from support.models import make_model, make_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with a model, its tokenizer, and an adapter of it."""
    folder = tmp_path_factory.mktemp("whole")
    make_model("llama").save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    adapter = get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules="all-linear"))
    adapter.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def folders(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def load(folders):
    """Load all three, as the commands do."""
    base, adapter = folders / "base", folders / "adapter"
    with reading_model(str(base), "`--base`"):
        model = AutoModelForCausalLM.from_pretrained(base)
        AutoTokenizer.from_pretrained(base)
    with reading_model(str(adapter), "`OUT`"):
        PeftModel.from_pretrained(model, adapter)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def empty(path):
    path.write_bytes(b"")


def junk(path):
    path.write_bytes(b"\x01\x02 junk" * 20)


def a_list(path):
    path.write_text("[]")


JSON_FILES = [
    "base/config.json",
    "base/generation_config.json",
    "base/tokenizer_config.json",
    "base/tokenizer.json",
    "adapter/adapter_config.json",
]
WEIGHTS = ["base/model.safetensors", "adapter/adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in JSON_FILES for damage in (cut, empty, junk, a_list)]
    + [(name, damage) for name in WEIGHTS for damage in (cut, empty, junk)],
)
def test_a_damaged_file_is_named_with_its_setting(name, damage, folders):
    damage(folders / name)
    with pytest.raises(ConfigError) as caught:
        load(folders)
    folder = name.split("/")[0]
    setting = {"base": "`--base`", "adapter": "`OUT`"}[folder]
    said = str(caught.value)
    assert said.startswith(f"{setting} '{folders / folder}' cannot be loaded: `{folders / name}` ")
    assert said.endswith(". Save or download it again.")
    assert "\n" not in said


def test_whole_files_load(folders):
    load(folders)


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "fields", "setting"),
    [
        ("adapter/adapter_config.json", {"peft_type": "NOPE"}, "`peft_type` is 'NOPE'"),
        ("adapter/adapter_config.json", {"peft_type": 3}, "`peft_type` is no text"),
        ("adapter/adapter_config.json", {"r": 7}, "size mismatch"),
        ("adapter/adapter_config.json", {"r": "seven"}, "cannot be loaded"),
        ("base/config.json", {"model_type": "nope"}, "cannot be loaded"),
        ("base/config.json", {"hidden_size": "wide"}, "cannot be loaded"),
        ("base/config.json", {"hidden_size": 24}, "cannot be loaded"),
        ("base/tokenizer.json", {"model": {"type": "none"}}, "cannot be loaded"),
        ("base/tokenizer.json", {"model": []}, "`model` is no object"),
        ("base/tokenizer_config.json", {"tokenizer_class": 3}, "cannot be loaded"),
    ],
)
def test_a_file_of_another_shape_is_one_sentence(name, fields, setting, folders):
    change(folders / name, **fields)
    with pytest.raises(ConfigError, match=setting) as caught:
        load(folders)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_said(folders):
    (folders / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors` is missing"):
        load(folders)


class Payload:
    """Leaves a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_pickle_with_a_payload_does_not_run(is_new, folders, tmp_path):
    (folders / "base" / "model.safetensors").unlink()
    payload = {"x": Payload(tmp_path / "ran")}
    weights = folders / "base" / "pytorch_model.bin"
    torch.save(payload, weights, _use_new_zipfile_serialization=is_new)
    with pytest.raises(ConfigError, match=r"nothing in (it|them) was run") as caught:
        load(folders)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("is_new", [True, False])
def test_torch_weights_load_whole_and_are_refused_when_cut_short(is_new, folders):
    base = folders / "base"
    state = AutoModelForCausalLM.from_pretrained(base).state_dict()
    (base / "model.safetensors").unlink()
    weights = base / "pytorch_model.bin"
    torch.save(state, weights, _use_new_zipfile_serialization=is_new)
    load(folders)
    weights.write_bytes(weights.read_bytes()[:-500])
    with pytest.raises(ConfigError, match="`--base`"):
        load(folders)


def test_a_part_that_an_index_names_is_asked_for(folders):
    base = folders / "base"
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"model-00001-of-00002\.safetensors` is missing"):
        check_files(base)


def test_errors_of_another_kind_pass(folders):
    for error in (DataError("rows"), RuntimeError("CUDA error"), ZeroDivisionError()):
        with pytest.raises(type(error)), reading_model(str(folders / "base"), "`--base`"):
            raise error


def test_a_name_that_is_no_folder_has_no_files():
    assert model_folder("no-one/no-such-model") is None
    assert model_folder("../::/ not a name") is None
