"""What the commands say of themselves: examples that run, defaults as in a recipe."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from balora.cli import build_parser, overrides
from balora.cli_help import EXAMPLES, compare_fields, lab_fields, train_fields
from balora.compare.config import CompareConfig
from balora.config import DataConfig
from balora.field_types import field_hints
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
    fields = overrides([word for word in rest if not word.startswith("outputs/")] if rest else [])
    known = {*known_fields(GENERATION), *known_fields(CLASSIFICATION), *field_hints(CompareConfig)}
    known |= {"report_only", "noise_rate", "world_seed"}
    assert set(fields) <= known


def test_no_example_has_a_gap():
    for _, line in LINES:
        assert "    " not in line.strip().replace("       ", " "), line


def test_a_default_that_differs_by_task_shows_both():
    text = train_fields()
    assert "--lora_r (a whole number, 1 or greater; 128, in classification 8)" in text
    assert "--diversity_coef (a number, 0 or greater; 0.0003, in classification 0.0004)" in text
    assert "--learning_rate (a number, 0 or greater; 0.0002, in classification 0.0005" in text


def test_defaults_are_spelled_as_in_a_recipe_and_ranges_are_shown():
    text = "\n".join([train_fields(), compare_fields(), lab_fields()])
    assert not any(word in text for word in ("None", "False", "True"))
    assert "--overwrite (true or false; false)" in text
    assert "--entropy_top_k (a whole number, 1 or greater, or null; null)" in text
    assert "--stereotype_rate (a number, from 0.5 to 1; 0.9)" in text
    assert "--adam_beta1 (0 or greater and less than 1)" in text


def test_one_and_all_singular_values_are_told_apart():
    assert "1 is the first, 1.0 is all of them" in train_fields()


def test_the_fields_are_listed_without_torch():
    code = (
        "import sys; from balora.cli_help import train_fields as t; t(); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'trl')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_of_eval_take_the_data_fields_of_a_recipe():
    assert not set(field_hints(DataConfig)) & {"base", "num_rows", "batch_size", "json"}
