"""`balora bench`: the whole path on tiny models, gone on with, and refused before it starts."""

from __future__ import annotations

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard

from balora.cli import main
from balora.config.values import dump_mapping
from balora.evaluation.bench.suite import Score
from balora.evaluation.generation import TransformersGenerator
from balora.models.load import load_model
from balora.models.source import ModelSource
from support.adapters import anchored_model, make_batch, train
from support.classification_runs import error_of
from support.models import make_model, make_tokenizer
from support.usage import rows_read_by

GSM8K = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(7)]
MATH = [{"problem": f"{i} / 7?", "answer": f"\\frac{{{i}}}{{7}}"} for i in range(3)]
CHAT = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def save(folder, model, *, chat_template=None):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat_template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, two adapters of it with their recipes, a whole model, and problems."""
    folder = tmp_path_factory.mktemp("bench")
    save(folder / "base", make_model("llama"))
    save(folder / "whole", make_model("llama", seed=3))
    (folder / "gsm8k.jsonl").write_text(lines(GSM8K))
    (folder / "math.jsonl").write_text(lines(MATH))
    (folder / "rows.jsonl").write_text(lines({"query": "a", "response": "b"} for _ in range(3)))
    (folder / "chat.jsonl").write_text(
        lines([{"messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]}])
    )
    for number, name in enumerate(("one", "two")):
        model = anchored_model("llama")
        batch = make_batch("llama", torch.Generator().manual_seed(number))
        train(model, batch, num_steps=3, learning_rate=3e-2)
        save(folder / name, model, chat_template=CHAT)
        recipe = {
            "model_name_or_path": str(folder / "base"),
            "dataset_name": str(folder / ("rows.jsonl" if name == "one" else "chat.jsonl")),
        }
        (folder / name / "recipe.yaml").write_text(dump_mapping(recipe))
    (folder / "whole" / "recipe.yaml").write_text("prompt_template: '{instruction} ='\n")
    return folder


@pytest.fixture
def bench(place, tmp_path, monkeypatch):
    """Run the command in a folder of its own and return its status and figures."""
    monkeypatch.chdir(tmp_path)

    def call(*words, benchmarks="gsm8k"):
        fields = {
            "--base": str(place / "base"),
            "--benchmarks": benchmarks,
            "--max_new_tokens": "6",
            "--json": str(tmp_path / "figures.json"),
            **{
                f"--{name}.dataset_name": str(place / f"{name}.jsonl")
                for name in benchmarks.split(",")
                if (place / f"{name}.jsonl").exists()
            },
        }
        runs = [str(place / word) for word in words if not word.startswith("-") and "=" not in word]
        fields |= dict(word.split("=", 1) for word in words if word.startswith("-"))
        (tmp_path / "figures.json").unlink(missing_ok=True)
        status = main(["bench", *runs, *(f"{name}={value}" for name, value in fields.items())])
        return status, json.loads((tmp_path / "figures.json").read_text()) if not status else None

    return call


def rows_of(tmp_path, model, name="gsm8k"):
    file = tmp_path / "outputs" / "bench" / model / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def loads(monkeypatch):
    """The models that were loaded."""
    found = []

    def recorded(source, **arguments):
        found.append(source.name)
        return load_model(source, **arguments)

    monkeypatch.setattr("balora.evaluation.bench.backends.load_model", recorded)
    return found


def check_card(path, scores, rows, printed):
    """The card reads on the hub, and has every score in its index and its sections."""
    assert str(path) in printed.partition("The metrics are in the model card: ")[2]
    card = ModelCard.load(path)
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    index = {one.metric_name: one for one in card.data.eval_results}
    assert {name: one.metric_value for name, one in index.items()} == pytest.approx(
        {name: score["value"] for name, score in scores.items()}, rel=1e-5
    )
    assert (index["gsm8k"].dataset_name, index["gsm8k"].dataset_type) == (str(rows), rows.name)
    assert f"## Evaluation on gsm8k ({rows})\n\n|  | score | problems |\n" in card.text
    assert "| GSM8K | 0.0% +- 0.0% | 7 |" in card.text
    for name in ("gsm8k is judged with balora", "math is judged with math_verify"):
        assert f"By `balora bench`, in float32. {name}" in card.text


def test_runs_are_asked_as_they_were_trained_on_a_base_that_is_loaded_once(
    bench, place, tmp_path, loads, monkeypatch, capsys
):
    status, figures = bench("one", "two", "--eval_batch_size=3", benchmarks="gsm8k,math")
    assert status == 0
    assert loads == [str(place / "base")]
    assert list(figures) == ["one", "two"]
    assert figures["one"]["figures"]["gsm8k"]["n"] == 7
    assert figures["one"]["figures"]["math/unanswered"]["n"] == 3
    assert "math_verify" in figures["one"]["facts"]["math"]
    one, other = rows_of(tmp_path, "one"), rows_of(tmp_path, "two")
    assert [row["id"] for row in one] == [str(i) for i in range(7)]
    assert one[0]["prompt"].endswith("0 + 0?\n\n### Response: Let's think step by step.")
    assert other[0]["prompt"] == "<s><user>0 + 0?<a> Let's think step by step."
    assert {row["gold"] for row in one} == {str(2 * i) for i in range(7)}
    assert all({"text", "answer", "status", "scores"} <= row.keys() for row in one)
    assert [row["text"] for row in one] != [row["text"] for row in other]
    table = capsys.readouterr().out
    assert "GSM8K, n = 7" in table
    assert "+-" in table
    monkeypatch.chdir(tmp_path / "outputs")  # what is printed reads them from anywhere
    assert rows_read_by(table) == one
    monkeypatch.chdir(tmp_path)
    two = place / "two" / "README.md"
    check_card(two, figures["two"]["figures"], place / "gsm8k.jsonl", table)
    before = two.read_bytes()
    # the second adapter stood on the base alone: what it says is what it says by itself
    alone = tmp_path / "alone"
    bench("two", "--card=false", f"--output_dir={alone}")
    assert two.read_bytes() == before
    assert "model card" not in capsys.readouterr().out
    found = [json.loads(line) for line in (alone / "two" / "gsm8k.jsonl").read_text().splitlines()]
    assert [row["text"] for row in found] == [row["text"] for row in other]


def test_the_base_alone_and_a_whole_model_are_asked_too(bench, tmp_path):
    assert bench()[0] == 0
    assert rows_of(tmp_path, "base")[0]["prompt"].startswith("Below is an instruction")
    assert bench("whole", "--cot_suffix=none")[0] == 0
    whole = rows_of(tmp_path, "whole")
    assert whole[0]["prompt"] == "0 + 0? ="
    assert [row["text"] for row in whole] != [row["text"] for row in rows_of(tmp_path, "base")]


def test_an_interrupted_run_goes_on_with_the_missing_answers(
    bench, place, tmp_path, monkeypatch, loads
):
    bench("--eval_batch_size=2", f"--output_dir={tmp_path / 'whole'}")
    generate = TransformersGenerator.generate
    asked = []

    def interrupted(self, prompts, sampling):
        for number, pair in enumerate(generate(self, prompts, sampling)):
            if number == 3:
                raise KeyboardInterrupt
            yield pair

    def counted(self, prompts, sampling):
        asked.extend(prompts)
        return generate(self, prompts, sampling)

    monkeypatch.setattr(TransformersGenerator, "generate", interrupted)
    assert bench("--eval_batch_size=2")[0] == 1
    file = tmp_path / "outputs" / "bench" / "base" / "gsm8k.jsonl"
    assert len(file.read_text().splitlines()) == 3
    with file.open("a") as rows:
        rows.write('{"id": "9", "sam')  # the row that was being written
    monkeypatch.setattr(TransformersGenerator, "generate", counted)
    status, figures = bench("--eval_batch_size=2")
    assert status == 0
    assert len(asked) == 4
    expected = (tmp_path / "whole" / "base" / "gsm8k.jsonl").read_text().splitlines()
    assert sorted(file.read_text().splitlines()) == sorted(expected)
    # nothing is missing now: no model is loaded, and the figures are the same
    loads.clear()
    assert bench("--eval_batch_size=2") == (0, figures)
    assert loads == []
    # and fewer or more problems are gone on with
    assert bench("--eval_batch_size=2", "--num_rows=2")[1]["base"]["figures"]["gsm8k"]["n"] == 2
    assert len(rows_of(tmp_path, "base")) == 7


def test_answers_written_otherwise_are_refused_until_they_are_to_be_replaced(
    bench, place, tmp_path, capsys, loads
):
    bench("--num_rows=2")
    loads.clear()
    assert bench("--num_rows=2", "--max_new_tokens=5")[0] == 2
    assert "`max_new_tokens` was 6 and is 5" in error_of(capsys)
    other = tmp_path / "other.jsonl"
    other.write_text(lines([{**GSM8K[0], "question": "Another?"}, *GSM8K[1:]]))
    assert bench("--num_rows=2", f"--gsm8k.dataset_name={other}")[0] == 2
    assert "answers to other prompts, that of problem 0 first" in error_of(capsys)
    assert loads == []
    replaced = ("--num_rows=2", "--max_new_tokens=5", "--overwrite=true")
    assert bench(*replaced)[0] == 0
    assert bench(*replaced[:2])[0] == 0


WRONG = {
    "unknown benchmark": (["--benchmarks=gsm9k"], "did you mean `gsm8k`?"),
    "unknown field": (["--num_row=3"], "`--num_row` is no field of a benchmark run"),
    "missing file": (["--gsm8k.dataset_name=none.jsonl"], "none.jsonl, which does not exist"),
    "missing column": (["--gsm8k.dataset_name={math}"], "it has no column `question`"),
    "wrong split": (["--gsm8k.dataset_split=test"], "has no split `test`, only train"),
    "unknown key": (["--gsm8k.dataset=x"], "`dataset` is no field"),
    "no template": (["--prompt_template=chat"], "has no chat template"),
    "other base": (["one", "--base={wide}"], "`--base`"),
    "no run": (["nothing"], "does not exist"),
    "nothing drawn": (["--num_samples=4"], "`temperature` is 0"),
    "no judge": (["--benchmarks=mt_bench"], "`judge_model` is missing"),
    "inert": (["--judge_model=x"], "`benchmarks` has no mt_bench"),
    "no template, no recipe": (["bare"], "which prompt .* was trained with is not known"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_one_sentence_before_a_model_is_loaded(
    name, bench, place, tmp_path, capsys, loads
):
    words, error = WRONG[name]
    if name == "other base" and not (place / "wide").exists():
        save(place / "wide", make_model("llama", hidden_size=48))
    if name == "no template, no recipe" and not (place / "bare").exists():
        save(place / "bare", make_model("llama", seed=4))
    names = {"math": place / "math.jsonl", "wide": place / "wide"}
    assert bench(*(word.format(**names) for word in words))[0] == 2
    found = error_of(capsys)
    assert re.search(error, found), found
    assert loads == []
    assert not (tmp_path / "outputs").exists()


def test_a_classifier_is_refused(bench, place, tmp_path, capsys):
    folder = place / "classifier"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]})
    )
    (folder / "recipe.yaml").write_text("task: cola\n")
    assert bench("classifier")[0] == 2
    assert "is a classifier, which writes no answers" in error_of(capsys)


def test_figures_have_the_standard_error_of_their_mean():
    share = Score.of([1.0] * 3 + [0.0] * 7)
    assert share.value == pytest.approx(0.3)
    assert share.standard_error == pytest.approx((0.3 * 0.7 / 10) ** 0.5)
    assert Score.of([]) == Score(None, None, 0)


def test_the_pages_of_help_come_without_a_base(capsys):
    assert main(["bench", "--help_fields"]) == 0
    assert "max_new_tokens:" in capsys.readouterr().out


def test_the_base_of_another_dtype_is_another_model(bench, place, tmp_path, capsys):
    bench("--num_rows=1")
    assert bench("--num_rows=1", "--dtype=bfloat16")[0] == 2
    assert "`dtype` was the text `float32` and is the text `bfloat16`" in error_of(capsys)
    assert ModelSource(name="x").dtype == "float32"
