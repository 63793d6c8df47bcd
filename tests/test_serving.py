"""What servers are told of an adapter, and what they compute of one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from balora.anchored import get_balora_model, lora_layers
from balora.anchored.export import export_adapter
from balora.cli import main
from balora.serving import VLLM_RANKS, how_to_serve, room_for
from support.adapters import logits_of, lora_config, make_batch
from support.command_line import train_with
from support.models import make_model, make_tokenizer


def adapter_folder(place: Path, **settings) -> Path:
    place.mkdir(exist_ok=True)
    config = {"r": 16, "base_model_name_or_path": "some/model", **settings}
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    ("rank", "room"),
    [(1, 1), (2, 8), (8, 8), (16, 16), (96, 128), (256, 256), (257, 320), (512, 512), (513, None)],
)
def test_the_flag_is_the_smallest_that_has_room(rank, room, tmp_path):
    assert room_for(rank) == room
    assert sorted(VLLM_RANKS) == [1, 8, 16, 32, 64, 128, 256, 320, 512]
    sentence = how_to_serve(adapter_folder(tmp_path / "a run", r=rank), lost=0.0123)
    if room is None:
        assert f"Its rank is {rank}, and no server has room for more than 512" in sentence
        assert "--base some/model --rank 512` writes, which loses 1.23% of the upd" in sentence
        return
    words = shlex.split(sentence.split("`")[1])
    assert words[:3] == ["vllm", "serve", "some/model"]
    assert words[words.index("--max-lora-rank") + 1] == str(room)
    assert words[-1] == f"a run={(tmp_path / 'a run').resolve()}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"modules_to_save": ["classifier"]},
            "no adapter with a trained head; `balora export",
        ),
        ({"rank_pattern": {"q_proj": 2}}, "one rank and one scale for all layers"),
        ({"alpha_pattern": {"q_proj": 2}}, "one rank and one scale for all layers"),
        ({"use_rslora": True}, "another rule: serve what `balora export"),
    ],
)
def test_what_servers_would_read_wrongly_is_said(settings, words, tmp_path):
    assert words in how_to_serve(adapter_folder(tmp_path / "run", **settings))
    assert how_to_serve(tmp_path) == ""
    assert how_to_serve(adapter_folder(tmp_path / "x", base_model_name_or_path=None)) == ""


def served_logits(model, folder: Path, batch, *, rank_of):
    """Return the logits of a base with the adapter of a folder by the rule of a server.

    Args:
        model: The base; its weights are changed.
        folder: With the adapter.
        batch: The tokens.
        rank_of: From the config and a layer's A to what the one alpha is divided by.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            up = tensors[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            scale = config["lora_alpha"] / rank_of(config, down)
            model.get_submodule(name).weight.data += scale * up @ down
    return logits_of(model, batch)


SERVERS = {
    "vLLM: alpha over the r of the config": lambda config, _: config["r"],
    "llama.cpp: alpha over the rank of the tensor": lambda _, down: len(down),
}


@pytest.mark.parametrize("rank", [None, 6], ids=["whole", "truncated"])
def test_servers_compute_what_peft_computes(rank, tmp_path, rng):
    base, batch = tmp_path / "base", make_batch("llama", rng)
    make_model("llama").save_pretrained(base)
    config = lora_config(
        "llama",
        rank_pattern={"q_proj": 2},
        alpha_pattern={"up_proj": 40},
        use_rslora=True,
    )
    model = get_balora_model(make_model("llama"), config)
    for _, layer in lora_layers(model):
        for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
            factor.data += 0.05 * torch.randn(factor.shape, generator=rng)
    expected = logits_of(model, batch)
    model.save_pretrained(str(tmp_path / "run"))
    folder = tmp_path / "run"
    if rank is not None:
        folder = tmp_path / "exported"
        export_adapter(tmp_path / "run", str(base), folder, rank=rank)
        expected = logits_of(PeftModel.from_pretrained(make_model("llama"), folder).eval(), batch)
    written = json.loads((folder / "adapter_config.json").read_text())
    assert not written["rank_pattern"]
    assert not written["alpha_pattern"]
    assert not written["use_rslora"]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {len(a) for key, a in tensors.items() if "lora_A" in key} == {written["r"]}
    for rank_of in SERVERS.values():
        found = served_logits(make_model("llama"), folder, batch, rank_of=rank_of)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float((expected - logits_of(make_model("llama"), batch)).abs().max()) > 0.1


def test_the_command_and_the_card_say_the_flag(tmp_path, capsys):
    base = tmp_path / "base"
    make_model("llama").save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    fields = {
        **{"model_name_or_path": str(base), "dataset_name": str(tmp_path / "rows.jsonl")},
        **{"output_dir": str(run), "lora_r": "6", "max_steps": "1", "use_cpu": "true"},
        **{"bf16": "false", "report_to": "none", "save_strategy": "no"},
    }
    assert train_with(fields, []) == 0
    line = f"`vllm serve {base} --enable-lora --max-lora-rank 16 --lora-modules run={run}`"
    assert line in capsys.readouterr().out
    assert line in (run / "README.md").read_text()
    assert main(["export", str(run), "--base", str(base), "--rank", "1"]) == 0
    line = f"{base} --enable-lora --max-lora-rank 1 --lora-modules run-rank1={run}-rank1`"
    assert line in capsys.readouterr().out
