"""The command line: what it prints, what it refuses and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import balora
from balora.cli import build_parser, main, overrides
from balora.errors import ConfigError
from support.command_line import train_with
from support.models import make_model, make_tokenizer

COMMANDS = ["train", "quickstart", "eval", "compare", "lab", "export", "sandbox", "env"]
ROWS = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(8)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, object]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trains_in(folder: Path, model_folder: Path) -> Callable[..., int]:
    """Return what runs a two-step `balora train` with some fields changed: its exit status."""

    def run(*options: str, rows: Sequence[dict[str, object]] = ROWS) -> int:
        fields = {
            "model_name_or_path": str(model_folder),
            "dataset_name": str(write_rows(folder / "rows.jsonl", rows)),
            "output_dir": str(folder / "out"),
            "max_steps": "2",
            "lora_r": "2",
            "lora_alpha": "2",
            "save_strategy": "no",
        }
        return train_with(fields, options)

    return run


@pytest.fixture
def train(model_folder: Path, tmp_path: Path) -> Callable[..., int]:
    return trains_in(tmp_path, model_folder)


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, for the tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    assert trains_in(folder, model_folder)() == 0
    return folder / "out"


def test_help_answers_at_once_and_does_not_import_torch():
    code = "import sys, balora.cli as c; c.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    start = os.times()
    result = subprocess.run(
        [sys.executable, "-m", "balora", "--help"], capture_output=True, text=True, check=True
    )
    assert "train" in result.stdout
    # processor time, which other work does not change; half a second is the promise, an import of
    # torch takes 2
    end = os.times()
    used = end.children_user + end.children_system - start.children_user - start.children_system
    assert used < 1.0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_three_examples_and_the_exit_status(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "exit status" in text
    assert sum(f"balora {command}" in line for line in text.splitlines()[1:]) >= 3


def test_overrides_read_values_equal_signs_flags_and_negative_numbers():
    words = ["--seed", "1", "--lr=2e-4", "--overwrite", "--logging_steps", "-1", "--last"]
    expected = {
        "seed": "1",
        "lr": "2e-4",
        "overwrite": "true",
        "logging_steps": "-1",
        "last": "true",
    }
    assert overrides(words) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["value"], "`value` belongs to no option"),
        (["--a", "1", "--a", "2"], "`--a` is given twice"),
        (["--a="], "`--a` is empty; give it a value, or `null`"),
        (["--a", " "], "`--a` is empty; give it a value, or `null`"),
    ],
)
def test_overrides_refuse(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        overrides(words)


@pytest.mark.parametrize("method", ["full", "lora", "pissa", "balora"])
def test_train_every_method(method, train, tmp_path, capsys):
    rank = () if method != "full" else ("--lora_r", "-", "--lora_alpha", "-")
    assert train("--method", method, *rank) == 0
    printed = capsys.readouterr().out
    base = "base, " if method != "full" else ""
    assert f"from_pretrained({base}'{tmp_path / 'out'}')" in printed
    saved = {path.name for path in (tmp_path / "out").iterdir()}
    weights = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert {weights, "recipe.yaml", "environment.json", "tokenizer.json"} <= saved
    assert ("anchor.safetensors" in saved) == (method in ("pissa", "balora"))


def test_dry_run_prints_a_recipe_that_loads_and_writes_nothing(train, tmp_path, capsys):
    assert train("--dry_run") == 0
    printed = tmp_path / "again.yaml"
    printed.write_text(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert main(["train", "--config", str(printed), "--dry_run", "false"]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_tensorboard_gets_every_term(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    assert train("--report_to", "tensorboard") == 0
    (events,) = (tmp_path / "events").iterdir()
    written = events.read_bytes()
    for term in ("loss", "task_loss", "consistency_loss", "diversity_loss", "svd_loss"):
        assert f"train/{term}".encode() in written


def test_checkpoint_carries_the_recipe_and_the_environment(train, tmp_path):
    assert train("--save_strategy", "steps", "--save_steps", "1") == 0
    checkpoint = tmp_path / "out" / "checkpoint-1"
    assert "method: balora" in (checkpoint / "recipe.yaml").read_text()
    assert "torch" in json.loads((checkpoint / "environment.json").read_text())


def test_output_that_is_not_empty_is_refused_kept_and_overwritten_on_request(
    train, tmp_path, capsys
):
    assert train("--save_strategy", "steps", "--save_steps", "1") == 0
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    capsys.readouterr()
    assert train("--learning_rate", "0.1") == 2
    assert "is not empty. Name another folder, pass `--overwrite`" in capsys.readouterr().err
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
    assert train("--learning_rate", "0.1", "--overwrite") == 0
    assert main(["train", "--config", str(tmp_path / "out" / "recipe.yaml")]) == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() != before
    # an old checkpoint must not be taken for one of the new run
    assert train("--resume_from_checkpoint", "true") == 2


def test_resume_goes_on_from_the_last_complete_checkpoint(train, tmp_path, capsys):
    saving = ("--save_strategy", "steps", "--save_steps", "1")
    assert train(*saving) == 0
    whole = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    # the second checkpoint was cut off while it was written
    (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").unlink()
    assert train(*saving, "--resume_from_checkpoint", "true") == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == whole


BAD_SETTINGS = {
    "unknown key": (["--learning_rat", "1"], "did you mean `learning_rate`"),
    "abbreviation": (["--learning", "1"], "`--learning` is no field"),
    "wrong type": (["--lora_r", "12.5"], "`--lora_r` must be a whole number, got 12.5"),
    "bool for a number": (["--learning_rate", "true"], "`--learning_rate` must be a number"),
    "wrong choice": (["--method", "lroa"], "did you mean `lora`"),
    "missing recipe": (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    "missing data": (["--dataset_name", "./no.jsonl"], "no.jsonl, which does not exist"),
    "missing model": (["--model_name_or_path", "./no-model"], "`model_name_or_path` './no-model'"),
    "missing template": (["--chat_template_path", "./no.jinja"], "'./no.jinja' does not exist"),
    "missing column": (
        ["--prompt_column", "question", "--response_column", "completion"],
        "has no column `question`; the columns are `prompt`, `completion`",
    ),
    "rank": (["--lora_r", "33"], "`lora_r` is 33, but `model.layers.0"),
    "dropout": (["--lora_dropout", "0.1"], "`lora_dropout` is 0.1"),
    "no targets": (["--lora_target_modules", "nothing"], "match no linear layer"),
    "adapted head": (["--lora_target_modules", "lm_head"], "lm_head"),
    "full with consistency": (
        ["--method", "full", "--lora_r", "-", "--lora_alpha", "-", "--consistency_coef", "0.1"],
        "`consistency_coef` is 0.1, but full fine-tuning would need",
    ),
    "dft": (["--loss_type", "dft"], "replaces the task loss"),
    "label smoothing": (["--label_smoothing_factor", "0.1"], "changes the task loss"),
    "liger": (["--use_liger_kernel", "true"], "replaces the model's loss"),
    "evaluation without data": (["--eval_strategy", "steps"], "nothing to evaluate on"),
    "no checkpoint": (["--resume_from_checkpoint", "true"], "holds no complete checkpoint"),
    "wrong checkpoint": (["--resume_from_checkpoint", "nowhere"], "is no complete checkpoint"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_setting_is_one_sentence_and_status_2(case, train, tmp_path, capsys):
    options, sentence = BAD_SETTINGS[case]
    assert train(*options) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("balora: ")]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert "Traceback" not in error
    out = tmp_path / "out"
    assert not out.exists() or not any(out.iterdir())


BAD_ROWS = {
    "empty": ([], "rows.jsonl is empty"),
    "empty response": (
        [*ROWS, {"prompt": "1+1=", "completion": " "}],
        "rows.jsonl, line 9: ",
    ),
    "cut off": (
        [*ROWS, {"prompt": "1" * 30, "completion": "2"}],
        "rows.jsonl, line 9: `max_length` 20 cuts the whole response off",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_name_file_and_line(case, train, capsys):
    rows, sentence = BAD_ROWS[case]
    assert train("--max_length", "20", rows=rows) == 2
    assert sentence in capsys.readouterr().err


CHAT = [
    [{"role": "user", "content": f"{i}+{i}="}, {"role": "assistant", "content": f"{2 * i}"}]
    for i in range(8)
]
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template. Set `chat_template_path`"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "does not mark the assistant's turns",
        ),
    ],
)
def test_chats_need_a_template_with_marks(template, sentence, train, tmp_path, capsys):
    folder = tmp_path / "model"
    make_model("llama").save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    rows = [{"messages": turns} for turns in CHAT]
    assert train("--model_name_or_path", str(folder), rows=rows) == 2
    assert sentence in capsys.readouterr().err


def test_chat_run_with_its_own_template_is_trained_and_evaluated(train, tmp_path, capsys):
    folder, template = tmp_path / "model", tmp_path / "chat.jinja"
    make_model("llama").save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    template.write_text(MARKED)
    rows = [{"messages": turns} for turns in CHAT]
    words = ("--model_name_or_path", str(folder), "--chat_template_path", str(template))
    assert train(*words, rows=rows) == 0
    evaluate = ["eval", str(tmp_path / "out"), "--base", str(folder), "--max_new_tokens", "2"]
    assert main(evaluate) == 0
    printed = capsys.readouterr().out
    assert "KL to the pre-trained model" in printed
    assert "No exact match" in printed


def test_cut_off_rows_are_dropped_on_request(train):
    rows, _ = BAD_ROWS["cut off"]
    assert train("--max_length", "20", "--overlong_rows", "drop", rows=rows) == 0


def test_a_run_that_is_done_is_not_resumed(train, capsys):
    saving = ("--save_strategy", "steps", "--save_steps", "1")
    assert train(*saving) == 0
    assert train(*saving, "--resume_from_checkpoint", "true") == 2
    assert "has done 2 steps and `max_steps` is 2, so nothing is left" in capsys.readouterr().err


def test_the_version_alone(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"balora {balora.__version__}\n"


def test_unknown_options_of_other_commands_are_refused(capsys):
    assert main(["env", "--nonsense"]) == 2
    assert "unknown option `--nonsense`; see `balora env --help`" in capsys.readouterr().err
    assert main(["export"]) == 2
    assert "the following arguments are required" in capsys.readouterr().err


def test_unforeseen_error_is_one_line_and_status_1(tmp_path):
    code = (
        "import sys, balora.cli as c; sys.argv = ['balora', 'env']\n"
        "c._env = lambda *_: 1 / 0\n"
        "c.entry_point()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.strip().startswith("balora: ZeroDivisionError: division by zero")
    assert "Traceback" not in result.stderr


def test_export_refuses_a_base_that_is_not_there(finished, capsys):
    assert main(["export", str(finished), "--base", "./nowhere"]) == 2
    assert "`--base` './nowhere' cannot be loaded: there is no such folder" in (
        capsys.readouterr().err
    )


def test_a_run_stops_early_where_nothing_improves(train, tmp_path, capsys):
    words = ("--eval_dataset_name", str(write_rows(tmp_path / "held_out.jsonl")))
    words += ("--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps")
    words += ("--save_steps", "1", "--load_best_model_at_end", "--max_steps", "6")
    words += ("--early_stopping_patience", "1", "--learning_rate", "0")
    assert train(*words) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert "early_stopping_patience: 1" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_a_recipe_is_named_once_and_an_option_is_not_empty(capsys):
    for words, sentence in (
        (["train", "--config", "a", "--config", "b"], "`--config` is given twice; keep one."),
        (["train", "--config="], "`--config` is empty"),
        (["train", "--learning_rate="], "`--learning_rate` is empty"),
        (["eval", "x", "--base", "y", "--max_new_tokens", "0"], "`--max_new_tokens` must be 1 or"),
        (["eval", "x", "--base", "y", "--num_rows", "-1"], "`--num_rows` must be 1 or greater"),
        (["eval", "x", "--base", "y", "--batch_size", "0"], "`--batch_size` must be 1 or greater"),
        (["export", "x", "--base", "y", "--rank", "2", "--merge"], "`--rank` is 2 and `--merge`"),
    ):
        assert main(words) == 2
        assert sentence in capsys.readouterr().err


def test_debug_shows_the_traceback(train):
    with pytest.raises(ConfigError):
        main(["train", "--debug", "--config", "nowhere.yaml"])


def test_env_names_the_versions(capsys):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("balora", "torch", "peft", "trl", "python"))


def test_export_plain_truncated_and_merged(finished, model_folder, tmp_path, capsys):
    out, base = str(finished), ("--base", str(model_folder))
    assert main(["export", out, *base]) == 0
    assert main(["export", out, *base, "--rank", "1"]) == 0
    assert "of the update" in capsys.readouterr().out
    assert main(["export", out, *base, "--merge", "--to", str(tmp_path / "whole")]) == 0
    assert (finished.parent / "out-export" / "adapter_config.json").is_file()
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    assert main(["export", out, *base]) == 2
    assert "exists. Name another folder, or pass `--overwrite`" in capsys.readouterr().err


def test_eval_takes_the_data_of_the_run_and_compares_several(
    finished, train, model_folder, tmp_path, capsys
):
    assert train("--method", "lora", "--output_dir", str(tmp_path / "lora")) == 0
    text = tmp_path / "text.txt"
    text.write_text("1+1=2\n" * 20)
    figures = tmp_path / "figures.json"
    words = ["eval", str(finished), str(tmp_path / "lora"), "--base", str(model_folder)]
    words += ["--retention_file", str(text), "--max_new_tokens", "4", "--json", str(figures)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("base", "out", "lora", "retained text"))
    rows = json.loads(figures.read_text())
    assert rows["base"]["kl"] == 0.0 < rows["out"]["kl"]
    assert rows["out"]["num_examples"] == len(ROWS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--base", "./nowhere"], "`--base` './nowhere' cannot be loaded"),
        (["--dataset_nam", "x"], "did you mean `dataset_name`"),
        (
            ["--retention_file", "nowhere.txt"],
            "`--retention_file` is 'nowhere.txt', which does not exist",
        ),
        (["--dataset_name", "./nowhere.jsonl"], "nowhere.jsonl, which does not exist"),
    ],
)
def test_eval_refuses(options, sentence, finished, model_folder, capsys):
    words = ["eval", str(finished)]
    if "--base" not in options:
        words += ["--base", str(model_folder)]
    assert main([*words, *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_base_with_other_weights_of_the_same_sizes_is_refused(finished, tmp_path, capsys):
    make_model("llama", seed=1).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    for words in (["eval"], ["export", "--merge", "--to", str(tmp_path / "merged")]):
        verb, *options = words
        base = str(tmp_path / "other")
        assert main([verb, str(finished), "--base", base, *options]) == 2
        assert f"other weights than `--base` '{base}': `model.layers.0." in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_eval_refuses_a_folder_without_a_run(model_folder, tmp_path, capsys):
    data = str(write_rows(tmp_path / "rows.jsonl"))
    words = ["eval", str(tmp_path), "--base", str(model_folder), "--dataset_name", data]
    assert main([*words, "--max_new_tokens", "2"]) == 2
    assert "holds neither an adapter nor a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "field", "parts"),
    [
        ("train", "lora_r", ["# The method by name", "SFTConfig", "\nseed: 42"]),
        ("compare", "noise_rate", ["# Under `compare:`", "\nmethods:", "\nsweep:", "--lab.FIELD"]),
        ("lab", "noise_rate", ["# Under `lab:`", "\nworld_seed: 0"]),
    ],
)
def test_the_fields_of_a_command_are_listed(command, field, parts, capsys):
    assert main([command, "--help_fields"]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in [f"\n{field}: ", *parts])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["compare", "--methods", "lroa"],
            "`lroa` is no method (did you mean `lora`?); there are base, full,",
        ),
        (["compare", "--seeds", "0,1,0"], "`seeds` has 0 twice"),
        (["compare", "--metric", "exactmatch"], "`exactmatch` is no metric"),
        (["lab", "--noise_rat", "0.1"], "`noise_rat` is no field of the lab"),
        (["lab", "--noise_rate", "2"], "`noise_rate` must be 0 or greater and less than 1, got 2"),
        (["lab", "nowhere", "--num_people", "2"], "`num_people` must be from 4 to 9600, got 2"),
        (["lab", "nowhere"], "`nowhere` does not exist"),
    ],
)
def test_compare_and_lab_refuse(words, sentence, capsys):
    recipe = Path(__file__).parents[1] / "recipes" / "lab.yaml"
    assert main([*words, "--config", str(recipe)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("balora: ")
    assert sentence in line
