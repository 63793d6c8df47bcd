"""Answers by a server and by vLLM, whose process is here a stand-in for it."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest

from balora.cli import main
from balora.errors import ConfigError
from balora.evaluation.bench.vllm import VllmBackend
from balora.models.source import ModelSource
from support.adapters import adapted_model
from support.classification_runs import error_of
from support.fake_server import KEY, fake_server
from support.models import make_model, make_tokenizer

GSM8K = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(5)]
FAKE = {
    "vllm/__init__.py": """
        import os
        class SamplingParams:
            def __init__(self, **told): self.told = told
        class LLM:
            def __init__(self, **told):
                print("vllm prints this among its answers")
                self.told = told
            def generate(self, prompts, params, **request):
                if os.environ.get("FAKE_VLLM") == "dies": os._exit(7)
                import json
                class Text: pass
                found = []
                for prompt in prompts:
                    one = Text(); one.outputs = []
                    for i in range(params.told["n"]):
                        text = Text()
                        said = [self.told, params.told, sorted(request)]
                        text.text = json.dumps(said) + f" The answer is: {len(prompt)}"
                        one.outputs.append(text)
                    found.append(one)
                return found
    """,
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": """
        class LoRARequest:
            def __init__(self, name, number, folder): self.folder = folder
    """,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model("llama").save_pretrained("base")
    make_tokenizer().save_pretrained("base")
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    return tmp_path


@pytest.fixture
def fake_vllm(tmp_path, monkeypatch):
    for name, text in FAKE.items():
        file = tmp_path / "fake" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))


def bench(*words):
    fields = ["--benchmarks=gsm8k", "--gsm8k.dataset_name=gsm8k.jsonl", "--max_new_tokens=9"]
    return main(["bench", *(w for w in words if "=" not in w), "--base=base", *fields]
                + [word for word in words if "=" in word])  # fmt: skip


def rows(place, model="base"):
    file = place / "outputs" / "bench" / model / "gsm8k.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(found, key=lambda row: (row["id"], row["sample"]))


def test_a_server_is_asked_for_every_prompt_as_it_stands(place, monkeypatch):
    with fake_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        drawn = ("--temperature=0.5", "--num_samples=2", "--seed=3")
        assert bench("--backend=endpoint", "--endpoint_model=mine", *drawn) == 0
        found = rows(place)
        assert [(row["id"], row["sample"]) for row in found] == [
            (str(i), k) for i in range(5) for k in (0, 1)
        ]
        for row in found:
            assert row["text"] == f"<{row['prompt'][-20:]}>{row['sample']}### more"
        asked = server.requests[0]
        assert (asked["model"], asked["max_tokens"], asked["n"]) == ("mine", 9, 2)
        assert (asked["temperature"], asked["seed"]) == (0.5, 3)
        assert asked["stop"] == ["### Instruction:"]
        assert {request["prompt"] for request in server.requests} == {r["prompt"] for r in found}
        server.otherwise = "400"
        assert bench("--backend=endpoint", "--num_rows=1", "--output_dir=other") == 1


@pytest.mark.parametrize("words", [["a", "b", "--endpoint_model=x"], ["a"]])
def test_a_server_has_one_model_by_one_name(words, place, monkeypatch, capsys):
    for name in ("a", "b"):
        (place / name).mkdir()
        (place / name / "recipe.yaml").write_text("model_name_or_path: base\n")
    with fake_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert bench("--backend=endpoint", *words) == 2
    assert "name at most one run" in error_of(capsys)


def test_vllm_answers_in_a_process_of_its_own(place, fake_vllm):
    adapted_model("llama").save_pretrained("run")
    (place / "run" / "recipe.yaml").write_text("prompt_template: none\nmodel_name_or_path: base\n")
    assert bench("run", "--backend=vllm", f"--vllm_python={sys.executable}") == 0
    found = rows(place, "run")
    assert [row["answer"] for row in found] == [str(len(row["prompt"])) for row in found]
    started, sampling, request = json.loads(found[0]["text"].partition(" The")[0])
    assert started["model"] == "base"
    assert started["enable_lora"] is True
    assert started["max_lora_rank"] == 8
    assert request == ["lora_request"]
    assert (sampling["max_tokens"], sampling["temperature"]) == (9, 0.0)


def test_a_process_that_dies_is_one_sentence_and_what_was_answered_is_kept(
    place, fake_vllm, monkeypatch, capsys
):
    monkeypatch.setenv("FAKE_VLLM", "dies")
    assert bench("--backend=vllm") == 1
    assert "vLLM has ended with status 7" in error_of(capsys)
    monkeypatch.delenv("FAKE_VLLM")
    assert bench("--backend=vllm") == 0


def test_without_vllm_the_fix_is_named_before_anything_is_run(place, capsys):
    assert bench("--backend=vllm") == 2
    assert "has no vllm. Install it in an environment of its own" in error_of(capsys)
    assert bench("--backend=vllm", "--vllm_python=gsm8k.jsonl") == 2
    assert "`vllm_python` is gsm8k.jsonl, which cannot be started" in error_of(capsys)
    assert not (place / "outputs").exists()


def test_an_adapter_that_vllm_has_no_room_for_is_to_be_merged(place, fake_vllm):
    adapted_model("llama").save_pretrained("run")
    config = json.loads((place / "run" / "adapter_config.json").read_text())
    config["r"] = 1024
    (place / "run" / "adapter_config.json").write_text(json.dumps(config))
    backend = VllmBackend(ModelSource(name="base"), python=None, seed=0)
    with pytest.raises(ConfigError, match=r"512 at most, but that of `run` has 1024. Merge it"):
        backend.generator(place.relative_to(place) / "run")
