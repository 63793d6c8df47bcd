"""Rows that are read while a run goes on: those of a run that reads them all, and no number."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from datasets import Dataset

from balora.config import DataConfig
from balora.data import load_examples
from balora.data.streaming import stream_examples
from balora.errors import ConfigError, DataError
from balora.recipes.load import check_recipe
from support.command_line import train_with
from support.models import make_model, make_tokenizer

TURNS = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
ROWS = {
    "pairs": [{"prompt": f"{i}+{i}=", "completion": f" {2 * i}"} for i in range(5)],
    "instructions": [{"query": f"{i}?", "response": f"{i}", "id": i} for i in range(5)],
    "chats": [{"messages": TURNS, "tools": "[]"}] * 3,
    "other chats": [
        {"conversations": [{"from": "human", "value": "ab"}, {"from": "gpt", "value": "cd"}]}
    ]
    * 3,
    "missing column": [{"instruction": "a", "output": "b", "input": "c"}]
    + [{"instruction": "a", "output": "b"}] * 2,
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_rows_are_those_of_a_run_that_reads_them_all(tmp_path, kind, ending):
    name = str(tmp_path / f"rows.{ending}")
    if ending == "jsonl":
        write(tmp_path / "rows.jsonl", ROWS[kind])
    else:
        Dataset.from_list(ROWS[kind]).to_parquet(name)
    config = DataConfig(dataset_name=name)
    whole, stream = load_examples(config, split="train"), stream_examples(config)
    assert list(stream.rows) == list(whole.dataset)
    assert stream.template == whole.template
    assert len(whole.dataset) == len(ROWS[kind])


def test_nothing_is_read_before_it_is_asked_for_and_a_bad_row_is_named_then(tmp_path):
    rows = [*ROWS["pairs"] * 60, {"prompt": "a", "completion": " "}]
    file = write(tmp_path / "rows.jsonl", rows)
    stream = stream_examples(DataConfig(dataset_name=file)).rows
    assert len(list(islice(stream, 300))) == 300
    with pytest.raises(DataError, match=r"rows\.jsonl, line 301: `completion` is empty\. Correct"):
        list(stream)


def test_files_of_a_folder_are_read_one_after_the_other(tmp_path):
    for number in (1, 2):
        write(tmp_path / f"part{number}.jsonl", ROWS["pairs"][number : number + 2])
    write(tmp_path / "test.jsonl", ROWS["pairs"])
    stream = stream_examples(DataConfig(dataset_name=str(tmp_path))).rows
    assert [row["prompt"] for row in stream] == ["1+1=", "2+2=", "2+2=", "3+3="]
    with pytest.raises(DataError, match="has no split `validation`, only "):
        stream_examples(DataConfig(dataset_name=str(tmp_path), dataset_train_split="validation"))


def test_what_cannot_be_opened_is_one_sentence(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
        stream_examples(DataConfig(dataset_name=str(tmp_path / "empty.jsonl")))
    file = write(tmp_path / "rows.jsonl", [{"a": 1}])
    with pytest.raises(DataError, match="has none of the usual columns"):
        stream_examples(DataConfig(dataset_name=file))
    with pytest.raises(DataError, match="is no file or folder here, and the hub does not give it"):
        stream_examples(DataConfig(dataset_name="no-such/data"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "a stream has no number of rows, so `max_steps` must say when to stop; set it"),
        ({"max_steps": -1}, "so `max_steps` must say when to stop"),
        (
            {"max_steps": 2, "dataset_num_proc": 2},
            "`dataset_num_proc` is 2, but with `streaming` one process reads",
        ),
        (
            {"max_steps": 2, "train_sampling_strategy": "group_by_length"},
            "`train_sampling_strategy` is group_by_length, but with `streaming` rows come in their",
        ),
        (
            {"max_steps": 2, "dataset_train_split": "train[:10]"},
            r"`dataset_train_split` is train\[:10\], but `streaming` reads a split from its start",
        ),
    ],
)
def test_what_cannot_work_on_a_stream_is_named(fields, message):
    recipe = {"model_name_or_path": "m", "dataset_name": "some/data", "output_dir": "out"}
    with pytest.raises(ConfigError, match=message):
        check_recipe({**recipe, "streaming": True, **fields})
    check_recipe({**recipe, "streaming": True, "max_steps": 2})
    check_recipe({**recipe, **fields})


def test_a_run_on_a_stream_is_the_run_on_all_rows_in_their_order(tmp_path):
    model = tmp_path / "model"
    make_model("llama").save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    fields = {
        "model_name_or_path": str(model),
        "dataset_name": write(tmp_path / "rows.jsonl", ROWS["pairs"]),
        "train_sampling_strategy": "sequential",
        "max_steps": "3",
        "per_device_train_batch_size": "2",
        "lora_r": "2",
        "lora_alpha": "2",
        "save_strategy": "no",
    }
    adapters = []
    for streaming in ("false", "true"):
        out = tmp_path / streaming
        assert train_with(fields, [f"--streaming={streaming}", f"--output_dir={out}"]) == 0
        adapters.append((out / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
    bad = write(tmp_path / "bad.jsonl", [*ROWS["pairs"], {"prompt": "a", "completion": ""}])
    options = ["--streaming=true", f"--dataset_name={bad}", f"--output_dir={tmp_path / 'bad'}"]
    assert train_with(fields, options) == 2
