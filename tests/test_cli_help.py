"""What the commands say of themselves: examples that run, defaults as in a recipe."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
import yaml

from balora.cli import build_parser, main, overrides
from balora.cli_help import EXAMPLES, compare_fields, lab_fields, train_fields
from balora.compare.config import CompareConfig
from balora.config import DataConfig
from balora.config.fields import field_hints
from balora.evaluation.bench.config import BenchConfig
from balora.recipes import CLASSIFICATION, GENERATION, known_fields

LINES = [
    (command, line)
    for command, text in EXAMPLES.items()
    for line in text.replace("\\\n", " ").splitlines()[1:]
]


@pytest.mark.parametrize(("command", "line"), LINES, ids=[" ".join(c) for c in LINES])
def test_every_example_is_a_line_that_runs(command, line):
    words = shlex.split(line.partition(" > ")[0])
    words = words[words.index("balora") + 1 :] if "balora" in words else []
    assert words, line
    options, rest = build_parser().parse_known_args(words)
    assert command in ("balora", options.command)
    if command == "predict":
        assert rest[0].startswith("outputs/")
        return  # what follows are texts
    fields = overrides([word for word in rest if not word.startswith("outputs/")] if rest else [])
    known = {*known_fields(GENERATION), *known_fields(CLASSIFICATION), *field_hints(CompareConfig)}
    known |= {
        "report_only",
        "worker",
        "study",
        "slurm",
        "noise_rate",
        "world_seed",
        *field_hints(BenchConfig),
    }
    assert {name.split(".")[0] for name in fields} <= known


def test_no_example_has_a_gap():
    for _, line in LINES:
        assert "    " not in line.strip().replace("       ", " "), line


def test_a_default_that_differs_by_task_shows_both():
    text = train_fields()
    assert "\nlora_r: 128  # a whole number, 1 or greater; in classification 8\n" in text
    assert "\ndiversity_coef: 0.0003  # a number, 0 or greater; in classification 0.0004\n" in text
    assert "\nlearning_rate: 0.0002  # a number, 0 or greater; in classification 0.0005\n" in text
    assert "\neval_strategy: no  # one of `no`, `steps`, `epoch`; in classification epoch\n" in text


def test_fields_are_spelled_as_in_a_recipe_with_their_ranges():
    texts = [train_fields(), compare_fields(), lab_fields()]
    lines = [line for text in texts for line in text.splitlines() if line[:1].isalpha()]
    assert len(lines) > 200
    for line in lines:
        name, spelled = next(iter(yaml.safe_load(line).items()))
        assert name.isidentifier()
        assert spelled is None or str(spelled) not in ("None", ""), line
    text = "\n".join(texts)
    assert "\noverwrite: false  # true or false\n" in text
    assert "\nentropy_top_k: null  # a whole number, 1 or greater, or null\n" in text
    assert "\nstereotype_rate: 0.9  # a number, from 0.5 to 1\n" in text
    assert "\nadam_beta1: 0.9  # a number, 0 or greater and less than 1\n" in text
    assert "\ndataset_name:  # text; required\n" in text


def test_one_and_all_singular_values_are_told_apart():
    assert "1 is the first, 1.0 is all of them" in train_fields()


def test_a_word_picks_the_fields_that_have_it(capsys):
    assert main(["train", "--help_fields", "Dropout"]) == 0
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"lora_dropout"} == {name for name in names if name.isidentifier()}
    assert main(["compare", "--help_fields", "zipf"]) == 0
    assert "\nzipf_exponent: 1.0  # a number, 0 or greater\n" in capsys.readouterr().out
    assert main(["lab", "--help_fields", "noise_rat"]) == 0
    assert "seeds:" not in capsys.readouterr().out
    assert main(["lab", "--help_fields", "peple"]) == 2
    assert (
        "`--help_fields` peple: no field has it (did you mean `num_people`"
        in capsys.readouterr().err
    )


def test_options_of_eval_take_the_data_fields_of_a_recipe():
    assert not set(field_hints(DataConfig)) & {"base", "num_rows", "batch_size", "json"}


def test_a_reader_that_has_enough_ends_the_output_without_a_word():
    line = f"{shlex.quote(sys.executable)} -m balora train --help_fields | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("# As in a recipe")
    assert done.stderr == ""
