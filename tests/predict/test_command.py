"""`balora predict`: what a run says of new texts, as table, JSON Lines and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from balora.cli import main
from balora.config.options import PredictOptions
from balora.config.values import dump_mapping
from balora.data.provenance import LocatedRows
from balora.errors import DataError
from balora.evaluation.bench.prompts import Prompter, prompter_of
from balora.models.run_folder import load_run_alone
from balora.predict.rows import prompts_of
from support.classification import save_body
from support.command_line import train_with
from support.models import make_model, make_tokenizer
from support.usage import rows_read_by

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with runs of each kind, trained for two steps."""
    place = tmp_path_factory.mktemp("predict")
    for name in ("llama", "bert"):
        base = place / name
        base.mkdir()
        make_model(name).save_pretrained(base) if name == "llama" else save_body(base, name)
        make_tokenizer().save_pretrained(base)
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(8)]
    (place / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["neg", "pos", "so so"]
    lines = [f"text {i},{names[i % 3]},{i}" for i in range(12)]
    (place / "kinds.csv").write_text("\n".join(["text,label,number", *lines]) + "\n")
    quick = {"max_steps": "2", "lora_r": "2", "lora_alpha": "2", "save_strategy": "no"}
    quick |= {"learning_rate": "0.05"}

    def train(out: str, base: str, data: str, **more: str) -> None:
        given = {"model_name_or_path": str(place / base), "dataset_name": str(place / data)}
        given |= {"output_dir": str(place / out), **quick, **more}
        assert train_with(given, []) == 0

    train("gen", "llama", "sums.jsonl", lora_target_modules="all-linear")
    train("cls", "bert", "kinds.csv", task="classification", max_length="16")
    train("reg", "bert", "kinds.csv", task="regression", max_length="16", label_column="number")
    return place


def written(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected(run: Path, texts: list[str]) -> list[list[float]]:
    """Return the probabilities of each text, computed one by one."""
    loaded = load_run_alone(run)
    found = []
    for text in texts:
        with torch.no_grad():
            logits = loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits[0]
        found.append(logits.softmax(-1).tolist() if len(logits) > 1 else logits.tolist())
    return found


def test_classes_with_their_probabilities_beside_the_columns_of_the_input(place, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    words = ["predict", str(place / "cls"), "--input", str(place / "kinds.csv"), "--batch_size=5"]
    assert main([*words, "--output", str(out)]) == 0
    rows = written(out)
    assert [(row["text"], row["number"]) for row in rows] == [
        (f"text {i}", str(i)) for i in range(12)
    ]
    for row, one in zip(rows, expected(place / "cls", [row["text"] for row in rows]), strict=True):
        assert list(row["probabilities"]) == ["neg", "pos", "so so"]
        assert list(row["probabilities"].values()) == pytest.approx(one, abs=1e-5)
        assert row["predicted_label"] == ["neg", "pos", "so so"][one.index(max(one))]
        assert row["predicted_probability"] == pytest.approx(max(one), abs=1e-5)
    assert rows_read_by(capsys.readouterr().out) == rows
    table = tmp_path / "found.csv"
    assert main([*words, "--output", str(table)]) == 0
    found = rows_read_by(capsys.readouterr().out)
    with table.open(newline="") as file:
        assert found == list(csv.DictReader(file))
    for cells, row in zip(found, rows, strict=True):
        assert cells["predicted_label"] == row["predicted_label"]
        assert float(cells["probability of so so"]) == row["probabilities"]["so so"]


def test_texts_of_the_command_line_are_shown_as_a_table(place, capsys):
    assert main(["predict", str(place / "cls"), "text 1", "-5 degrees", "--batch_size", "1"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["text", "label", "probability"]
    assert lines[0].startswith("text 1 ")
    assert lines[1].startswith("-5 degrees ")
    assert lines[1].endswith("%")


def test_numbers_of_a_regression_and_a_file_of_lines(place, tmp_path, capsys):
    file = tmp_path / "lines.txt"
    file.write_text("text 1\ntext 2\n")
    assert main(["predict", str(place / "reg"), "--input", str(file)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    values = [one[0] for one in expected(place / "reg", ["text 1", "text 2"])]
    assert [row["predicted_value"] for row in rows] == pytest.approx(values, abs=1e-5)
    assert main(["predict", str(place / "reg"), "text 1"]) == 0
    assert f"{values[0]:.4f}" in capsys.readouterr().out


def test_generated_texts_are_those_of_the_model(place, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    words = ["predict", str(place / "gen"), "--input", str(place / "sums.jsonl")]
    assert main([*words, "--output", str(out), "--max_new_tokens", "6", "--batch_size", "3"]) == 0
    rows = written(out)
    loaded = load_run_alone(place / "gen")
    for row in rows[:3]:
        given = loaded.tokenizer(row["prompt"], return_tensors="pt")
        tokens = loaded.model.generate(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
        )[0, given.input_ids.shape[1] :]
        assert row["generated_text"] == loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    capsys.readouterr()
    drawn = ["predict", str(place / "gen"), "1+1=", "--max_new_tokens=6", "--temperature=5"]
    texts = []
    for seed in ("0", "0", "1"):
        assert main([*drawn, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("> 1+1=\n")
    assert texts[0] == texts[1] != texts[2]


def test_a_base_that_has_moved_is_named(place, tmp_path, capsys):
    config = json.loads((place / "cls/adapter_config.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in (place / "cls").iterdir():
        (moved / file.name).write_bytes(file.read_bytes()) if file.is_file() else None
    config["base_model_name_or_path"] = str(place / "gone")
    (moved / "adapter_config.json").write_text(json.dumps(config))
    assert main(["predict", str(moved), "text 1"]) == 2
    assert "which is not there; name its place with `--base`" in capsys.readouterr().err
    assert main(["predict", str(moved), "text 1", "--base", str(place / "bert")]) == 0
    assert "text 1" in capsys.readouterr().out


def test_a_merged_model_needs_no_base(place, tmp_path, capsys):
    merged = tmp_path / "merged"
    words = ["export", str(place / "cls"), "--base", str(place / "bert"), "--merge"]
    assert main([*words, "--to", str(merged)]) == 0
    capsys.readouterr()
    assert main(["predict", str(merged), "text 1"]) == 0
    own = capsys.readouterr().out
    assert main(["predict", str(place / "cls"), "text 1"]) == 0
    assert own == capsys.readouterr().out
    assert main(["predict", str(merged), "text 1", "--base", str(place / "bert")]) == 2
    assert "is a whole model" in capsys.readouterr().err


BAD = {
    "neither": ([], "texts stand after the run or in a file, and neither is given"),
    "both": (["a", "--input", "kinds.csv"], "both are given"),
    "missing file": (["--input", "nope.csv"], "`--input` is 'nope.csv', which does not exist"),
    "odd ending": (["--input", "odd.xyz"], "`--input` is odd.xyz, which ends in `.xyz`"),
    "no text": (["--input", "odd.csv"], "has none of the usual columns of text"),
    "no column": (["--input", "odd.csv", "--text_column", "c"], "`text_column` is c, but odd.csv"),
    "empty text": (["--input", "empty.csv"], "empty.csv, line 3: `text` is empty"),
    "empty line": (["--input", "empty.txt"], "`text` is empty"),
    "empty file": (["--input", "nothing.txt"], "nothing.txt is empty"),
    "a pair": (
        ["--input", "odd.csv", "--text_column", "a", "--text_pair_column", "b"],
        "the training data have one text",
    ),
    "output's ending": (["a", "--output", "x.parquet"], "ends in .jsonl or .csv"),
    "output is there": (["a", "--output", "there.csv"], "`--output` 'there.csv' exists"),
    "output is the input": (
        ["--input", "kinds.csv", "--output", "kinds.csv", "--overwrite"],
        "the file of `--input`",
    ),
    "overwrites nothing": (["a", "--overwrite"], "there is no `--output`"),
    "of generation": (["a", "--temperature", "1"], "`--temperature` acts on text generation only"),
    "unknown": (["a", "--topk", "1"], "unknown option `--topk`"),
    "base": (["a", "--base", "llama"], "`--base` 'llama'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    Path("odd.xyz").write_text("a")
    Path("odd.csv").write_text("a,b\n1,2\n")
    Path("empty.csv").write_text("text,n\nx,1\n,2\n")
    Path("empty.txt").write_text("x\n\ny\n")
    Path("nothing.txt").write_text("")
    Path("there.csv").write_text("mine")
    words, said = BAD[name]
    assert main(["predict", "cls", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("balora: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert Path("there.csv").read_text() == "mine"


def test_a_run_that_is_none_is_refused(tmp_path, capsys):
    assert main(["predict", str(tmp_path / "nope"), "a"]) == 2
    assert "does not exist; name the folder of a finished run" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "a"]) == 2
    assert "holds neither an adapter nor a model" in capsys.readouterr().err
    assert main(["predict"]) == 2
    assert "no run is named" in capsys.readouterr().err


def rows_of(*rows: dict) -> LocatedRows:
    return LocatedRows(Dataset.from_list(list(rows)), "rows.jsonl", "train")


def prompts(tmp_path, rows, recipe, tokenizer=None, **options):
    (tmp_path / "recipe.yaml").write_text(dump_mapping(recipe))
    template = recipe.get("prompt_template", "alpaca")
    prompter = Prompter(template, tokenizer)
    return prompts_of(tmp_path, rows, prompter, PredictOptions(**options))


def test_prompts_are_laid_out_as_in_training(tmp_path):
    rows = rows_of(
        {"instruction": "Add.", "input": "1 and 2"}, {"instruction": "Say.", "input": ""}
    )
    first, second = prompts(tmp_path, rows, {})
    assert "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:" in first
    assert second.endswith("### Instruction:\nSay.\n\n### Response:")
    rows = rows_of({"q": "a", "prompt": "b"})
    recipe = {"prompt_column": "q", "prompt_template": "<{instruction}>"}
    assert prompts(tmp_path, rows, recipe) == ["<a>"]
    assert prompts(tmp_path, rows, recipe, text_column="prompt") == ["<b>"]


def test_the_last_answer_of_a_chat_is_left_to_the_run(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    asked = {"role": "user", "content": "a"}
    rows = rows_of({"messages": [asked, {"role": "assistant", "content": "b"}]})
    recipe = {"prompt_template": "chat"}
    assert prompts(tmp_path, rows, recipe, tokenizer) == ["<user>a<assistant>"]
    with pytest.raises(DataError, match="has the turns of a chat, but `prompt_template` of the"):
        prompts(tmp_path, rows, {})
    with pytest.raises(DataError, match="turn 1: it has no role"):
        prompts(tmp_path, rows_of({"messages": [{"content": "a"}]}), recipe, tokenizer)
    with pytest.raises(DataError, match="none of the usual columns of a prompt"):
        prompts(tmp_path, rows_of({"x": "a"}), recipe, tokenizer)


def test_without_a_recipe_the_template_is_asked_for(place, tmp_path, capsys):
    exported = tmp_path / "exported"
    words = ["export", str(place / "gen"), "--base", str(place / "llama"), "--to", str(exported)]
    assert main(words) == 0
    assert main(["predict", str(exported), "1+1="]) == 2
    assert "Set `prompt_template`" in capsys.readouterr().err
    words = ["predict", str(exported), "1+1=", "--prompt_template=none", "--max_new_tokens=4"]
    assert main(words) == 0
    assert prompter_of(place / "gen", None, make_tokenizer).template == "none"
