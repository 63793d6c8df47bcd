"""Reading saved state: what is damaged, missing or of another kind is one sentence on its file."""

from __future__ import annotations

import contextlib
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from balora.errors import ConfigError
from balora.state import open_tensors, read_json, read_json_lines, read_tensors, read_torch

FIX = "Start anew."


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refusal(read, path, **options):
    """Return the one sentence with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        read(path, FIX, **options)
    said = str(caught.value)
    assert said.startswith(f"`{path}` ")
    assert said.endswith(f". {FIX}")
    assert "\n" not in said
    assert "weights_only" not in said
    return said.removeprefix(f"`{path}` ").removesuffix(f". {FIX}")


READERS = [read_json, read_json_lines, read_tensors, read_torch]


@pytest.mark.parametrize("read", READERS)
def test_what_is_not_there_is_said(read, tmp_path):
    assert refusal(read, tmp_path / "gone") == "is missing"
    assert refusal(read, tmp_path / "gone" / "file") == "is missing"
    assert refusal(read, tmp_path) == "cannot be read: it is a folder"


@pytest.mark.parametrize("read", [read_json, read_tensors, read_torch])
def test_an_empty_file_is_said(read, tmp_path):
    (tmp_path / "empty").touch()
    assert refusal(read, tmp_path / "empty") == "is empty"


@pytest.mark.parametrize(
    ("content", "problem"),
    {
        "cut short": (b'{"a": 1', "no JSON at line 1, column 8"),
        "words": (b"not json", "no JSON at line 1, column 1"),
        "bytes": (b"\xff\xfe{}", "no text"),
        "nested": (b"[" * 100_000, "its JSON cannot be read"),
        "digits": (b"9" * 5000, "its JSON cannot be read"),
        "list": (b"[1]", "it holds no object"),
        "null": (b"null", "it holds no object"),
        "field": (b"{}", "it has no `steps`"),
        "text": (b'{"steps": "3"}', "`steps` is no whole number"),
        "truth": (b'{"steps": true}', "`steps` is no whole number"),
    }.values(),
)
def test_damaged_json_is_refused(content, problem, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    assert problem in refusal(read_json, tmp_path / "a.json", fields={"steps": int})


def test_json_of_the_right_shape_is_returned(tmp_path):
    (tmp_path / "a.json").write_text('{"steps": 3, "loss": 1, "é": null}', encoding="utf-8")
    fields = {"steps": int, "loss": float, "é": object}
    assert read_json(tmp_path / "a.json", FIX, fields=fields) == {"steps": 3, "loss": 1, "é": None}
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", FIX, kind=list) == [1]


def test_lines_of_json_are_refused_by_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": "\u2028"}\n', encoding="utf-8")
    assert read_json_lines(path, FIX) == [{"a": 1}, {"a": "\u2028"}]
    for bad, problem in (('{"a"', "line 3 is no JSON"), ("3", "line 3 holds no object")):
        path.write_text(f'{{"a": 1}}\n\n{bad}\n')
        assert problem in refusal(read_json_lines, path)


@pytest.fixture
def tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(64.0), "y": torch.ones(3, 2)}, path, metadata={"key": "value"})
    return path


def test_tensors_are_read_with_their_metadata(tensors):
    read = read_tensors(tensors, FIX)
    assert {name: value.shape for name, value in read.items()} == {"x": (64,), "y": (3, 2)}
    with open_tensors(tensors, FIX) as file:
        assert file.metadata() == {"key": "value"}


def test_tensors_that_are_cut_short_or_changed_are_refused(tensors):
    whole = tensors.read_bytes()
    for size in range(1, len(whole), 7):
        tensors.write_bytes(whole[:size])
        assert "cut short" in refusal(read_tensors, tensors)
    for content in (b"\xff" * 8 + whole[8:], whole[:8] + b"[" + whole[9:], b"words" * 20):
        tensors.write_bytes(content)
        assert "no safetensors file" in refusal(read_tensors, tensors)


def test_a_tensor_that_is_not_there_is_said(tensors):
    with pytest.raises(ConfigError, match="is damaged"), open_tensors(tensors, FIX) as file:
        file.get_tensor("z")


def test_tensors_whose_file_begins_like_a_pickle_are_read(tmp_path):
    # the first byte is that of the header's length: 128 of 384 here
    path, found = tmp_path / "a.safetensors", set()
    for length in range(400):
        save_file({"x" * (length + 1): torch.ones(2)}, path)
        found.add(path.read_bytes()[0])
        assert len(read_tensors(path, FIX)) == 1
    assert 0x80 in found


@pytest.mark.parametrize(
    "write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_a_pickle_in_place_of_tensors_is_refused_and_does_not_run(write, tmp_path):
    path = tmp_path / "a.safetensors"
    write({"x": Payload(tmp_path / "ran")}, path)
    assert "is a pickle" in refusal(read_tensors, path)
    write({"x": Payload(tmp_path / "ran")}, tmp_path / "a.pt")
    assert "nothing in it was run" in refusal(read_torch, tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


STATE = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(5)}},
    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
    "numpy": ("MT19937", np.arange(5, dtype=np.uint32), 3, 0, 0.0),
}


def test_the_state_of_a_trainer_is_read(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    read = read_torch(tmp_path / "a.pt", FIX)
    assert torch.equal(read["state"][0]["exp_avg"], torch.ones(5))
    assert (read["numpy"][1] == np.arange(5)).all()
    torch.save(STATE["state"], tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    assert read_torch(tmp_path / "b.pt", FIX)[0]["step"] == 3


@pytest.mark.parametrize("is_new", [True, False])
def test_state_that_is_cut_short_or_changed_is_refused(is_new, tmp_path, rng):
    path = tmp_path / "a.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=is_new)
    whole = path.read_bytes()
    for size in [*range(1, 40), *range(40, len(whole), 101)]:
        path.write_bytes(whole[:size])
        assert refusal(read_torch, path)
    for place in torch.randint(len(whole), (60,), generator=rng).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with contextlib.suppress(ConfigError):  # a changed number is read as such
            read_torch(path, FIX)


def test_state_of_another_type_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "a.pt")
    assert "holds no dict" in refusal(read_torch, tmp_path / "a.pt")
    assert read_torch(tmp_path / "a.pt", FIX, kind=list) == [1, 2]


def test_no_advice_to_run_what_a_pickle_holds(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({}))
    assert "is damaged" in refusal(read_torch, tmp_path / "a.json")


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    lengths = {}
    for number in range(200):  # the header grows by 8 bytes at a time
        save_file({"x" * number: torch.ones(2)}, tmp_path / "a")
        lengths[(tmp_path / "a").read_bytes()[0]] = number
        if 0x80 in lengths:
            break
    assert read_tensors(tmp_path / "a", FIX)["x" * lengths[0x80]].tolist() == [1, 1]
