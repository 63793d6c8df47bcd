"""Every field of every command with wrong values: one sentence that names it, and status 2.

The inputs are derived from what the fields declare, so a field that is added is covered. What a
declaration refuses must be refused before anything is loaded. What it takes must be taken, or be
refused by name as well: no other exception may leave a command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from balora.cli import main
from balora.compare.config import CompareConfig
from balora.config import DataConfig
from balora.config.classification import ClassificationConfig
from balora.config.fields import field_hints
from balora.config.options import (
    BenchOptions,
    EvalOptions,
    ExportOptions,
    PredictOptions,
    ReplayOptions,
)
from balora.config.values import dump_mapping
from balora.evaluation.bench.config import BenchConfig
from balora.lab.config import LabConfig
from balora.recipes import CLASSIFICATION, GENERATION, known_fields, training_arguments
from support.bad_values import NEVER, Input, inputs, listing

GENERATES = {"model_name_or_path": "base", "dataset_name": "rows.jsonl", "output_dir": "out"}
CLASSIFIES = {**GENERATES, "task": "classification"}
LEAST_INPUTS = 400
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")


class Reached(Exception):
    """The settings were taken: what comes next would load a model."""


class Outcome(NamedTuple):
    status: int | None
    """None where the settings were taken."""
    error: str


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Iterator[Path]:
    """Work in a folder with runs of both kinds, whose weights are never read."""
    work = tmp_path / "work"
    for name, recipe in (("gen", GENERATES), ("cls", CLASSIFIES)):
        (work / name).mkdir(parents=True)
        recipe = {**recipe, **({} if name == "gen" else {"class_names": ["no", "yes"]})}
        (work / name / "recipe.yaml").write_text(dump_mapping(recipe))
        (work / name / "adapter_config.json").write_text("{}")
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def stopped(monkeypatch):
    """Stop every command where it has its settings and would load something."""

    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    def arguments(recipe: Any, *_: Any) -> None:
        training_arguments(recipe)
        raise Reached

    monkeypatch.setattr("balora.trainers.run.run_recipe", arguments)
    monkeypatch.setattr("balora.quickstart.run_recipe", arguments)
    monkeypatch.setattr("balora.quickstart.check_run", arguments)
    monkeypatch.setattr("balora.evaluation.run.evaluate_runs", reached)
    monkeypatch.setattr("balora.predict.command.read_asked", reached)
    monkeypatch.setattr("balora.evaluation.classification_run.load_evaluation_rows", reached)
    monkeypatch.setattr("balora.evaluation.bench.run.measure_benchmarks", reached)
    monkeypatch.setattr("balora.anchored.export.export_adapter", reached)
    monkeypatch.setattr("balora.anchored.export.export_merged", reached)
    monkeypatch.setattr("balora.replay.command.load_tokenizer", reached)
    monkeypatch.setattr("balora.compare.plan.Plan.check_files", reached)
    monkeypatch.setattr("balora.lab.command.build_lab", reached)


def outcome(words: list[str], capsys) -> Outcome:
    try:
        status = main(words)
    except Reached:
        return Outcome(None, "")
    return Outcome(status, capsys.readouterr().err)


class Verb(NamedTuple):
    """How a value gets into a command."""

    hints: Callable[[], Mapping[str, Any]]
    words: Callable[[Path, Input], list[str]]
    as_texts: bool = False
    few: bool = False
    """Only one value of each sort, where another command has the same fields with all."""

    def inputs(self, *, every: bool = False) -> Iterator[Input]:
        known = known_fields(GENERATION)
        for one in inputs(self.hints(), as_texts=self.as_texts):
            is_known = one.field in known and (self.few or known[one.field].part == "training")
            if every or one.is_typical or not is_known:
                yield one


def _by_recipe(command: str, base: Mapping[str, Any], section: str | None = None) -> Any:
    def words(file: Path, one: Input) -> list[str]:
        content = {**base}
        if section is None:
            content[one.field] = one.value
        else:
            content[section] = {**content.get(section, {}), one.field: one.value}
        file.write_text(dump_mapping(content))
        return [command, "--config", str(file)]

    return words


def _by_option(*command: str) -> Any:
    needed = {
        "eval": {"base": "b"},
        "bench": {"base": "b", "benchmarks": "gsm8k,math"},
        "export": {"base": "b"},
        "replay": {"model_name_or_path": "base", "output": "texts.jsonl"},
    }.get(command[0], {})

    def words(file: Path, one: Input) -> list[str]:
        given = {**needed, one.field: one.value}
        return [*command, *(f"--{name}={value}" for name, value in given.items())]

    return words


def _texts(options: type) -> Mapping[str, Any]:
    """Return the fields of options that take a value; `--merge` takes none."""
    return {name: hint for name, hint in field_hints(options).items() if hint is not bool}


def _recipe_fields(kind: Any, *, as_options: bool = False) -> Mapping[str, Any]:
    left_out = {"task", "dry_run"}  # they make another command of it
    if as_options:
        left_out |= {"debug"}  # `--debug` is the command's own
    return {n: entry.annotation for n, entry in known_fields(kind).items() if n not in left_out}


COMPARED = {
    **GENERATES,
    "eval_dataset_name": "rows.jsonl",
    "compare": {"methods": ["lora"], "seeds": [0]},
}
LAB = {"output_dir": "out", "lab": {}, "compare": {"methods": ["lora"], "seeds": [0]}}
VERBS = {
    "train, generation": Verb(lambda: _recipe_fields(GENERATION), _by_recipe("train", GENERATES)),
    "train, classification": Verb(
        lambda: _recipe_fields(CLASSIFICATION), _by_recipe("train", CLASSIFIES), few=True
    ),
    "quickstart": Verb(
        lambda: _recipe_fields(GENERATION, as_options=True),
        _by_option("quickstart"),
        True,
        few=True,
    ),
    "eval, options": Verb(lambda: _texts(EvalOptions), _by_option("eval", "gen"), True),
    "eval, generation": Verb(lambda: field_hints(DataConfig), _by_option("eval", "gen"), True),
    "eval, classification": Verb(
        lambda: {k: v for k, v in field_hints(ClassificationConfig).items() if k != "task"},
        _by_option("eval", "cls"),
        True,
    ),
    "predict": Verb(lambda: _texts(PredictOptions), _by_option("predict", "gen"), True),
    "bench, options": Verb(lambda: _texts(BenchOptions), _by_option("bench", "gen"), True),
    "bench": Verb(lambda: field_hints(BenchConfig), _by_option("bench", "gen"), True),
    "export": Verb(lambda: _texts(ExportOptions), _by_option("export", "gen"), True),
    "replay": Verb(lambda: _texts(ReplayOptions), _by_option("replay"), True),
    "compare": Verb(lambda: field_hints(CompareConfig), _by_recipe("compare", COMPARED, "compare")),
    "compare, the lab": Verb(lambda: field_hints(LabConfig), _by_recipe("compare", LAB, "lab")),
    "lab": Verb(lambda: field_hints(LabConfig), _by_recipe("lab", {}, "lab")),
}


@pytest.mark.parametrize("name", VERBS)
def test_a_value_is_taken_or_refused_by_name(name, stopped, workplace, tmp_path, capsys):
    verb, file = VERBS[name], tmp_path / "recipe.yaml"
    before, wrong, counts = listing(workplace), [], {"refused": 0, "taken": 0}
    for one in verb.inputs():
        try:
            found = outcome(verb.words(file, one), capsys)
        except Exception as error:  # noqa: BLE001  every one of them is what is looked for
            wrong.append(f"{one}: {type(error).__name__}: {error}")
            continue
        counts["taken" if found.status is None else "refused"] += 1
        if problem := _problem(one, found):
            wrong.append(f"{one} ({one.value!r}): {problem}")
    print(f"\n{name}: {counts['refused']} refused, {counts['taken']} taken, {len(wrong)} wrong")  # noqa: T201
    assert listing(workplace) == before
    assert not wrong, "\n".join(wrong)


def _problem(one: Input, found: Outcome) -> str | None:
    """Say what is wrong with how a value was dealt with."""
    if found.status is None:
        return "taken, though its declaration refuses it" if one.is_refused else None
    lines = [line for line in found.error.splitlines() if line.startswith("balora: ")]
    if found.status != 2 or len(lines) != 1:
        return f"status {found.status}, {lines}"
    if not re.search(rf"`(--)?(lab\.)?{one.field}`", lines[0]):
        return f"not named: {lines[0]}"
    return None


@pytest.mark.parametrize("name", VERBS)
def test_no_field_takes_what_no_field_can_take(name):
    lax = [
        str(one)
        for one in VERBS[name].inputs()
        if one.what in NEVER and not one.is_refused and not _is_free(one)
    ]
    assert not lax


def _is_free(one: Input) -> bool:
    """Say whether a field is text on a command line, or a list whose entries are its own matter."""
    return (isinstance(one.value, str) and bool(one.value.strip())) or "list" in one.what


def test_there_are_enough_inputs():
    numbers = {name: sum(1 for _ in verb.inputs()) for name, verb in VERBS.items()}
    print(f"\n{sum(numbers.values())} inputs: {numbers}")  # noqa: T201
    assert sum(numbers.values()) >= LEAST_INPUTS
