"""Results in a model card: an evaluation is added, or put in place of the one on the same data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from balora.card_results import Evaluation, add_to_card, is_hub_id, results_of
from balora.cli import main
from support.classification import save_body
from support.command_line import train_with
from support.models import make_model, make_tokenizer

OWN = "\n\n## What I found\n\nIt <!-- is --> good.\n"


def evaluation_on(data, value=0.5, **fields):
    return Evaluation(
        command="eval",
        data=data,
        heads=["after"],
        rows=[["accuracy", value]],
        how="in float32",
        results=results_of({"accuracy": value}, data=data, is_classifier=True),
        **fields,
    )


def section_of(card: Path, data: str) -> str:
    text = card.read_text(encoding="utf-8")
    return text.partition(f"eval: {data} -->\n")[2].partition("\n<!-- balora eval ends")[0]


def test_what_is_a_result():
    metrics = {"eval_loss": 1.0, "set: accuracy": 0.5, "set: num_rows": 8, "retention_loss": 2.0}
    metrics |= {"before: exact_match": 0.1, "kl": None, "accuracy of the majority class": 0.5}
    metrics |= {"is_good": True}
    found = results_of(metrics, data="a folder/my rows.csv", is_classifier=True)
    assert [(one.metric_name, one.metric_type) for one in found] == [
        ("set: accuracy", "accuracy"),
        ("retention_loss", "retention_loss"),
    ]
    assert {one.dataset_type for one in found} == {"my-rows.csv"}
    assert results_of({"f1": 1}, data="openai/gsm8k", is_classifier=False)[0].dataset_type == (
        "openai/gsm8k"
    )


def test_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("openai/gsm8k")
    Path("openai/gsm8k").mkdir(parents=True)
    assert not is_hub_id("openai/gsm8k")
    assert not is_hub_id("a b")
    assert not is_hub_id("../rows")


@pytest.mark.parametrize("text", ["# Mine\n", "---\nlicense: mit\n---\n# Mine\n" + OWN])
def test_any_card_keeps_what_it_says(text, tmp_path):
    card = tmp_path / "README.md"
    card.write_text(text, encoding="utf-8")
    for value in (0.25, 0.75):
        assert add_to_card(tmp_path, evaluation_on("a--b>.csv", value)) == str(card)
    read = ModelCard.load(card)
    assert [one.metric_value for one in read.data.eval_results] == [0.75]
    assert read.data.model_name == tmp_path.name
    assert read.text.count("## Evaluation on a--b>.csv") == 1
    assert "| accuracy | 0.75 |" in read.text
    assert read.text.lstrip().startswith(text.rpartition("---\n")[2])
    assert ("mit" in str(read.data.license)) == ("license" in text)


@pytest.mark.parametrize(
    "content", [b"---\na: [\n---\n# Broken\n", b"\xff\xfe", b"---\n- a list\n---\n# Broken\n"]
)
def test_a_card_that_is_none_stays_as_it_is(content, tmp_path, caplog):
    card = tmp_path / "README.md"
    card.write_bytes(content)
    assert add_to_card(tmp_path, evaluation_on("rows.csv")) is None
    assert card.read_bytes() == content
    assert "are not in the model card" in caplog.text


def test_what_was_measured_is_named():
    whole = evaluation_on("rows.csv")
    assert whole.section.startswith("## Evaluation on rows.csv\n\n|  | after |\n")
    assert whole.section.endswith("\n\nBy `balora eval`, in float32.")
    part = evaluation_on("rows.csv", part="test", num_rows=4)
    assert part.section.startswith("## Evaluation on rows.csv (test)\n")
    assert part.section.endswith("By `balora eval`, the first 4 rows of a data set, in float32.")


def test_each_command_and_part_of_the_data_has_a_section(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# Mine\n", encoding="utf-8")
    one = evaluation_on("rows.csv")
    for other in (one, replace(one, part="test"), replace(one, command="bench"), one):
        add_to_card(tmp_path, other)
    assert card.read_text(encoding="utf-8").count("## Evaluation on rows.csv") == 3


def test_a_run_without_a_card_gets_none(tmp_path):
    assert add_to_card(tmp_path, evaluation_on("rows.csv")) is None
    assert not list(tmp_path.iterdir())


QUICK = {"lora_r": "2", "lora_alpha": "2", "max_steps": "2", "save_strategy": "no"}


def test_eval_of_generation_adds_figures_before_and_after(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_model("llama").save_pretrained("base")
    make_tokenizer().save_pretrained("base")
    rows = [{"prompt": f"{i}+{i}=", "completion": f"#### {2 * i}"} for i in range(8)]
    for name in ("rows", "other"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("text.txt").write_text("some text to retain\n" * 20)
    given = {"model_name_or_path": "base", "dataset_name": "rows.jsonl", "output_dir": "out"}
    assert train_with({**given, "lora_target_modules": "all-linear", **QUICK}, []) == 0
    card = tmp_path / "out/README.md"
    before = card.read_text()
    words = ["eval", "out", "--base", "base", "--max_new_tokens", "2", "--retention_file"]
    words += ["text.txt", "--num_rows", "4", "--dataset_name"]
    assert main([*words, "rows.jsonl", "--card", "false"]) == 0
    assert card.read_text() == before
    assert "model card" not in capsys.readouterr().out
    for name in ("rows.jsonl", "other.jsonl", "rows.jsonl"):
        assert main([*words, name, "--json", "found.json"]) == 0
        assert "The metrics are in the model card: out/README.md." in capsys.readouterr().out
    found = json.loads(Path("found.json").read_text())["out"]
    read = ModelCard.load(card)
    index = {
        (one.dataset_name, one.metric_type): one.metric_value for one in read.data.eval_results
    }
    assert index["rows.jsonl", "retention_loss"] == pytest.approx(found["retention_loss"], rel=1e-5)
    assert index["other.jsonl", "exact_match"] == found["exact_match"]
    section = section_of(card, "rows.jsonl")
    assert section.startswith("## Evaluation on rows.jsonl\n\n|  | before | after |\n")
    assert "| loss on retained text (nats/token) |" in section
    assert "the first 4 rows of a data set, in float32; the text is text.txt." in section
    assert read.text.count("## Evaluation on") == 2
    assert read.text.index("## Evaluation on") < read.text.index("## How to load it")
    assert before.partition("## How to load it")[2] in card.read_text()


def test_eval_of_a_classifier_replaces_the_figures_of_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "bert"
    base.mkdir()
    save_body(base, "bert")
    make_tokenizer().save_pretrained(base)
    lines = [f"text {i},{'pos' if i % 2 else 'neg'}" for i in range(12)]
    Path("rows.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    given = {"model_name_or_path": "bert", "dataset_name": "rows.csv", "task": "classification"}
    given |= {"eval_dataset_name": "rows.csv", "output_dir": "out", "max_length": "16", **QUICK}
    assert train_with(given, []) == 0
    card = tmp_path / "out/README.md"
    trained = ModelCard.load(card).data.eval_results
    assert main(["eval", "out", "--base", "bert", "--num_rows", "3", "--json", "found.json"]) == 0
    evaluated = ModelCard.load(card).data.eval_results
    assert {one.metric_name for one in trained} <= {one.metric_name for one in evaluated}
    assert len({(one.dataset_name, one.metric_name) for one in evaluated}) == len(evaluated)
    found = json.loads(Path("found.json").read_text())["out"]["evaluation"]["validation"]
    [accuracy] = [one for one in evaluated if one.metric_type == "accuracy"]
    assert accuracy.metric_value == pytest.approx(found["accuracy"], rel=1e-5)
    section = section_of(card, "rows.csv")
    assert "| accuracy |" in section
    assert "| rows | 3 |" in section
    assert "the first 3 rows of a data set" in section
