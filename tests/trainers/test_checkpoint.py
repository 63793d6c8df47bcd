"""Checkpoints that are not whole, or belong to another run: refused in one sentence, status 2."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from balora.cli import overrides
from balora.errors import ConfigError
from balora.trainers.checkpoint import find_checkpoint, sizes_of
from support.classification_runs import write
from support.command_line import train_with
from support.models import make_model, make_tokenizer
from support.training import make_rows, make_trainer, run

ROWS = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(8)]


def save_base(folder):
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a finished run of the command line with checkpoints 1 to 4."""
    root = tmp_path_factory.mktemp("finished")
    save_base(root / "base")
    write(root / "rows.jsonl", ROWS)
    assert call(root, "out") == 0
    return root


def call(root, out, *options):
    """Run `balora train` for four steps with some fields changed; return its exit status."""
    fields = {
        "model_name_or_path": str(root / "base"),
        "dataset_name": str(root / "rows.jsonl"),
        "output_dir": str(root / out),
        "max_steps": "4",
        "lora_r": "2",
        "lora_alpha": "2",
        "save_strategy": "steps",
        "save_steps": "1",
    }
    return train_with(fields, options)


@pytest.fixture
def copied(finished, tmp_path):
    """Return a copy of the finished run in which something may be broken."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def resume(root, *options):
    given = {"resume_from_checkpoint": "true", "max_steps": "5"} | overrides(options)
    return call(root, "out", *(f"--{name}={value}" for name, value in given.items()))


def error_of(capsys):
    text = capsys.readouterr().err
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("balora: ")]
    return line


# files

NEEDED = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "loop_state.pth", "anchor.safetensors")
NEEDED = (*NEEDED, "adapter_model.safetensors", "trainer_state.json", "run.json")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("payload-ran"),)


def payload(path):
    """Put a pickle that would run something in the place of a file, of the same length."""
    size = path.stat().st_size
    content = pickle.dumps(Payload())
    path.write_bytes(content + b"\0" * max(size - len(content), 0))


DAMAGE = {"removed": Path.unlink, "cut": cut, "empty": empty, "payload": payload}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", NEEDED)
def test_a_damaged_checkpoint_names_the_file_and_the_newest_whole_one(name, damage, copied, capsys):
    newest = copied / "out" / "checkpoint-4"
    DAMAGE[damage](newest / name)
    cut(copied / "out" / "checkpoint-3" / "optimizer.pt")
    is_half_written = (name, damage) == ("trainer_state.json", "removed")
    wishes = [str(newest)] if is_half_written else ["true", str(newest)]
    for wish in wishes:
        capsys.readouterr()
        with pytest.raises(ConfigError) as caught:
            find_checkpoint(wish, copied / "out")
        said = str(caught.value)
        assert name in said
        assert "The newest whole checkpoint is" in said
        assert str(copied / "out" / "checkpoint-2") in said
        assert "\n" not in said
        assert "weights_only" not in said
    assert not Path("payload-ran").exists()


def test_the_command_line_says_it_with_status_2_and_trains_nothing(copied, capsys):
    cut(copied / "out" / "checkpoint-4" / "rng_state.pth")
    before = {path: path.stat().st_mtime_ns for path in (copied / "out").rglob("*")}
    assert resume(copied) == 2
    said = error_of(capsys)
    assert "rng_state.pth` is damaged: it has " in said
    assert f"The newest whole checkpoint is '{copied / 'out' / 'checkpoint-3'}'" in said
    assert {path: path.stat().st_mtime_ns for path in (copied / "out").rglob("*")} == before


def test_one_that_was_cut_off_while_it_was_written_is_passed_over(copied, caplog):
    (copied / "out" / "checkpoint-4" / "trainer_state.json").unlink()
    found = find_checkpoint("true", copied / "out")
    assert found.folder.name == "checkpoint-3"
    assert "checkpoint-4` was cut off while it was written and is passed over" in caplog.text


def test_without_any_other_the_sentence_says_to_start_anew(copied):
    for number in (1, 2, 3):
        shutil.rmtree(copied / "out" / f"checkpoint-{number}")
    cut(copied / "out" / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(ConfigError, match="There is no other whole one beside it: start from"):
        find_checkpoint(True, copied / "out")


def test_what_nobody_reads_may_be_gone(copied):
    for name in ("README.md", "tokenizer.json", "training_args.bin", "recipe.yaml"):
        (copied / "out" / "checkpoint-4" / name).unlink()
    assert find_checkpoint("true", copied / "out").folder.name == "checkpoint-4"


def test_a_checkpoint_without_optimizer_state_is_refused(finished, tmp_path, capsys):
    root = tmp_path / "run"
    shutil.copytree(finished, root, ignore=shutil.ignore_patterns("out"))
    assert call(root, "out", "--save_only_model", "true") == 0
    capsys.readouterr()
    assert resume(root, "--save_only_model", "true") == 2
    said = error_of(capsys)
    assert "has no optimizer.pt (`save_only_model` left it out)" in said
    assert "start from the beginning" in said


def test_nothing_is_wished_for():
    assert find_checkpoint(None, Path("nowhere")) is None
    assert find_checkpoint("false", Path("nowhere")) is None
    with pytest.raises(ConfigError, match="holds no complete checkpoint"):
        find_checkpoint(True, Path("nowhere"))
    with pytest.raises(ConfigError, match="'nowhere' is no complete checkpoint: it has no"):
        find_checkpoint("nowhere", Path("elsewhere"))


def test_every_needed_file_is_recorded(finished):
    folder = finished / "out" / "checkpoint-4"
    record = json.loads((folder / "run.json").read_text())
    assert set(NEEDED) - {"trainer_state.json", "run.json"} <= set(record["files"])
    assert record["files"] == sizes_of(folder)
    assert "training_args.bin" not in record["files"]


# settings

CHANGED = {
    "seed": "7",
    "data_seed": "7",
    "max_length": "30",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "2",
    "dataset_train_split": "train[:7]",
    "prompt_template": "{instruction} =",
    "learning_rate": "0.01",
    "lr_scheduler_type": "cosine",
    "weight_decay": "0.1",
    "consistency_coef": "0.5",
    "svd_k": "1",
    "schedule": "iclr2026",
    "pissa_seed": "1",
    "lora_r": "3",
    "lora_target_modules": "q_proj",
    "method": "lora",
    "dtype": "bfloat16",
    "attn_implementation": "eager",
    "packing": "true",
    "train_sampling_strategy": "sequential",
    "load_best_model_at_end": "true",
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_setting_is_named_with_both_values(name, finished, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("balora.trainers.run_generation.prepare_generation", refuse)
    also = ("--prompt_column", "prompt", "--response_column", "completion")
    options = [f"--{name}", CHANGED[name], *(also if name == "prompt_template" else ())]
    if name == "load_best_model_at_end":
        options += ["--eval_strategy", "steps", "--dataset_test_split", "train"]
    assert resume(finished, *options) == 2
    said = error_of(capsys)
    assert "belongs to another run: " in said
    assert f"`{name}` was " in said
    value = {"0.5": "0.5", "{instruction} =": "{instruction} ="}.get(CHANGED[name], CHANGED[name])
    assert f"and is {value}" in said


def test_all_changed_settings_are_named_at_once(finished, capsys):
    assert resume(finished, "--seed", "7", "--max_length", "30") == 2
    said = error_of(capsys)
    assert "`seed` was 42 and is 7" in said
    assert "`max_length` was 1024 and is 30" in said


def test_other_rows_under_another_or_the_same_name_are_refused(copied, capsys):
    other = write(copied / "other.jsonl", [*ROWS[:7], {"prompt": "1+1=", "completion": "3"}])
    assert resume(copied, "--dataset_name", other) == 2
    said = error_of(capsys)
    assert "the training rows are others (`dataset_name` was " in said
    assert "other.jsonl)" in said  # a long path is cut in its middle
    write(copied / "rows.jsonl", [*ROWS[:7], {"prompt": "1+1=", "completion": "3"}])
    capsys.readouterr()
    assert resume(copied, "--dataset_name", str(copied / "rows.jsonl")) == 2
    assert "the training rows are others" in error_of(capsys)


def test_the_same_rows_and_weights_elsewhere_are_the_same_run(copied, capsys):
    shutil.move(copied / "rows.jsonl", copied / "moved.jsonl")
    shutil.move(copied / "base", copied / "moved")
    moved = ("--dataset_name", str(copied / "moved.jsonl"))
    assert resume(copied, *moved, "--model_name_or_path", str(copied / "moved")) == 0


def change_base(folder, part, **settings):
    """Write a base of the same sizes in which something else than its first layer differs."""
    model = make_model("llama", **settings)
    part(model.model).weight.data *= 1.5
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def first_layer(model):
    return model.layers[0].mlp.up_proj


def embedding(model):
    return model.embed_tokens


def test_another_base_is_refused(copied, capsys):
    change_base(copied / "other", first_layer)
    assert resume(copied, "--model_name_or_path", str(copied / "other")) == 2
    said = error_of(capsys)
    other, base = (str(copied / name) for name in ("other", "base"))
    assert f"other weights than `model_name_or_path` {other!r}: `model.layers.0." in said
    assert "Name the model it was trained on, " in said
    change_base(copied / "base", first_layer)
    assert resume(copied, "--model_name_or_path", base) == 2
    assert f"than `model_name_or_path` {base!r}: `model.layers.0." in error_of(capsys)
    # of what the record of the base has no sample, the digest has
    change_base(copied / "base", embedding)
    assert resume(copied) == 2
    said = error_of(capsys)
    assert "the weights of the pre-trained model are others (`model_name_or_path` was " in said


def test_another_base_of_full_fine_tuning_is_refused(tmp_path, capsys):
    save_base(tmp_path / "base")
    write(tmp_path / "rows.jsonl", ROWS)
    full = ("--method", "full", "--lora_r", "null", "--lora_alpha", "null")
    assert call(tmp_path, "out", *full) == 0
    change_base(tmp_path / "base", first_layer)
    capsys.readouterr()
    assert resume(tmp_path, *full) == 2
    said = error_of(capsys)
    assert f"other weights than `model_name_or_path` {str(tmp_path / 'base')!r}: `model.lay" in said
    assert "It has changed since; restore it." in said


def test_what_training_does_not_depend_on_may_differ(copied, capsys, caplog):
    free = ("--logging_steps", "2", "--save_steps", "5", "--report_to", "none")
    free += ("--eval_strategy", "no", "--save_total_limit", "3", "--seed", "42")
    assert resume(copied, *free) == 0
    assert "`max_steps` was 4 and is 5: from here on the learning rate" in caplog.text
    out = copied / "out"
    state = json.loads((out / "trainer_state.json").read_text())
    # the intervals are those of this call
    assert [row["step"] for row in state["log_history"]] == [1, 2, 3, 4, 5]
    assert (state["logging_steps"], state["save_steps"]) == (2, 5)
    assert not (out / "checkpoint-1").exists()


def test_a_foreign_output_folder_is_not_written_into(copied, capsys):
    (copied / "thesis").mkdir()
    (copied / "thesis" / "chapter1.tex").write_text("words")
    checkpoint = str(copied / "out" / "checkpoint-2")
    options = ("--resume_from_checkpoint", checkpoint, "--max_steps", "4")
    assert resume(copied, *options, "--output_dir", str(copied / "thesis")) == 2
    assert "is not empty" in error_of(capsys)
    assert resume(copied, *options, "--output_dir", str(copied / "new")) == 0
    for name in ("adapter_model.safetensors", "anchor.safetensors"):
        assert (copied / "new" / name).read_bytes() == (copied / "out" / name).read_bytes()


# the end of a run


@pytest.mark.parametrize("length", [("--max_steps=4",), ("--max_steps=-", "--num_train_epochs=4")])
@pytest.mark.parametrize("options", [(), ("--method", "full", "--lora_r=-", "--lora_alpha=-")])
def test_a_run_killed_in_its_last_save_is_completed(length, options, finished, tmp_path, capsys):
    root = tmp_path / "run"
    shutil.copytree(finished, root, ignore=shutil.ignore_patterns("out"))
    words = (*length, *options)
    assert call(root, "out", *words) == 0
    out = root / "out"
    whole = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    whole.pop("README.md")  # written with every checkpoint
    # over and saved: there is nothing to do, and that is said
    capsys.readouterr()
    assert resume(root, *words) == 2
    assert "so nothing is left. Raise `" in error_of(capsys)
    for name in whole:
        (out / name).unlink()
    assert resume(root, *words) == 0
    again = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    again.pop("README.md")
    assert again.keys() == whole.keys()
    for name in whole.keys() - {"trainer_state.json", "training_args.bin"}:
        assert again[name] == whole[name], name


def test_fewer_steps_than_are_done_are_refused(finished, capsys):
    assert resume(finished, "--max_steps", "3") == 2
    assert "has done 4 steps and `max_steps` is 3, so nothing is left" in error_of(capsys)


# the Python API


def test_a_trainer_without_a_recipe_compares_files_settings_and_content(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    run(make_trainer(tmp_path, **settings))

    def refused(sentence, **changes):
        trainer = make_trainer(tmp_path, **(settings | changes))
        with pytest.raises(ConfigError, match=sentence):
            trainer.train(resume_from_checkpoint=True)

    refused("`per_device_train_batch_size` was 4 and is 2", per_device_train_batch_size=2)
    refused("`svd_coef` was 0.0001 and is 0.3", objective={"svd_coef": 0.3})
    refused("the training rows are others", rows=make_rows(9))
    other = make_model("llama", seed=1)
    other.name_or_path = "another"
    refused("the weights of the pre-trained model are others", model=make_model("llama", seed=1))
    refused(r"are others \(`model_name_or_path` was null and is another\)", model=other)
    trainer = make_trainer(tmp_path, **settings)
    trainer.data_collator.pad_to_multiple_of = 8
    with pytest.raises(ConfigError, match="the batches that the data collator makes"):
        trainer.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-2" / "scheduler.pt").unlink()
    refused(r"scheduler\.pt` is missing")


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    run(make_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1))
    (tmp_path / "checkpoint-1" / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"has no run\.json: an earlier version or another"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_resumed_run_without_its_anchor_is_refused(tmp_path, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    run(make_trainer(tmp_path, **settings))
    trainer = make_trainer(tmp_path, **settings)
    # what a framework does that loads the state of its own past the model's `load_adapter`
    monkeypatch.setattr(type(trainer), "_load_from_checkpoint", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=r"the checkpoint's anchor has not reached `.*q_proj`"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_the_best_checkpoint_must_be_there(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, **best}
    settings |= {"greater_is_better": True, "options": {"eval_dataset": make_rows(3)}}
    run(make_trainer(tmp_path, **settings))
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    name = Path(state["best_model_checkpoint"]).name
    assert name == "checkpoint-1"
    shutil.rmtree(tmp_path / name)
    with pytest.raises(ConfigError, match="as the best checkpoint so far, which is missing"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)


# a quantised base


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("given", ["config", "model"])
def test_the_adapter_of_a_quantised_base_stays_float32(bits, given, tmp_path):
    """The cast to bfloat16 that trl makes is undone; the flag is enough for it."""
    from peft import get_peft_model

    from support.training import lora_config

    model = make_model("llama")
    setattr(model, f"is_loaded_in_{bits}bit", True)
    options = {}
    if given == "model":
        model = get_peft_model(model, lora_config())
        setattr(model, f"is_loaded_in_{bits}bit", True)
        options["peft_config"] = None
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
    trainer = make_trainer(tmp_path, model=model, options=options)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    for name, value in before.items():
        assert torch.equal(trained[name], value), name
