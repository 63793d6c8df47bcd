"""``balora bench``: skills on fixed problems, of finished runs or of the pre-trained model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.config.fields import field_hints, given_problems
from balora.config.values import parse_text, parse_texts
from balora.errors import ConfigError
from balora.evaluation.bench.backends import make_backend
from balora.evaluation.bench.benchmark import Benchmark, Problem
from balora.evaluation.bench.code import HumanEval, Mbpp
from balora.evaluation.bench.config import BENCHMARKS, BenchConfig
from balora.evaluation.bench.gsm8k import Gsm8k
from balora.evaluation.bench.math_problems import Math
from balora.evaluation.bench.mt_bench import MtBench
from balora.evaluation.bench.prompts import prompter_of
from balora.evaluation.bench.suite import Measured, Score, Sheet, judge_of, make_sheet
from balora.evaluation.generation import Generator
from balora.evaluation.run import check_runs
from balora.models.digests import digest_of_weight_files
from balora.models.load import load_config, load_tokenizer
from balora.models.run_folder import check_base, is_classifier
from balora.models.source import ModelSource

MADE_BY: dict[str, Callable[[BenchConfig], Benchmark]] = {
    "gsm8k": Gsm8k,
    "math": Math,
    "humaneval": HumanEval,
    "mbpp": Mbpp,
    "mt_bench": MtBench,
}
"""What makes each benchmark from the settings."""


def bench_config(given: Mapping[str, str]) -> BenchConfig:
    """Return the settings that fields of the command line stand for; ``gsm8k.FIELD`` is one.

    Raises:
        ConfigError: If a field is unknown, missing or wrong.
    """
    hints = field_hints(BenchConfig)
    nested: dict[str, dict[str, Any]] = {}
    plain: dict[str, str] = {}
    for name, text in given.items():
        benchmark, dot, field = name.partition(".")
        if dot and benchmark in BENCHMARKS:
            nested.setdefault(benchmark, {})[field] = parse_text(text, str)
        else:
            plain[name] = text
    twice = [name for name in nested if name in plain]
    values = parse_texts(plain, hints) | nested
    problems = given_problems(values, hints, of="a benchmark run", label="--{}".format)
    problems += [f"`--{name}` is given both whole and by its fields; keep one" for name in twice]
    if "benchmarks" not in values:
        problems.append(f"`--benchmarks` is missing; name some of {', '.join(BENCHMARKS)}")
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return BenchConfig(**values)


def measure_benchmarks(
    runs: Sequence[Path], base: ModelSource, config: BenchConfig
) -> dict[str, Measured]:
    """Ask every run, or without one the pre-trained model, and judge the answers.

    All answers are written before the first is judged: what judging needs may fail, and then they
    are there. What is refused is refused before a model is loaded.

    Args:
        runs: Folders with an adapter, or with a whole model.
        base: The pre-trained model, and how all of them are loaded.
        config: What is asked, and how.

    Returns:
        By the folder's name, or ``base``.

    Raises:
        ConfigError: If a setting, a run or the base cannot work, or answers are there already that
            were written otherwise.
        DataError: If the problems of a benchmark cannot be read.
        BaloraError: If answering or judging failed; what was answered is kept.
    """
    backend = make_backend(base, config)
    backend.check()
    benchmarks = checked_benchmarks(config)
    _check_models(runs, base, config)
    problems = {one.name: problems_of(one, config) for one in benchmarks}
    models: Sequence[Path | None] = runs or [None]
    folder = Path(config.output_dir)
    sheets = {
        run: make_sheets(run, base, config, problems, benchmarks, folder=folder / _name(run))
        for run in models
    }
    try:
        for run, of_run in sheets.items():
            # loaded once, and only if an answer is missing
            write_answers(of_run, functools.partial(backend.generator, run))
    finally:
        backend.close()
    return {_name(run): judge_sheets(of_run) for run, of_run in sheets.items()}


def checked_benchmarks(config: BenchConfig) -> list[Benchmark]:
    """Return the benchmarks that are asked, each with what judges it at hand.

    Raises:
        ConfigError: If one cannot be judged here.
    """
    benchmarks = [MADE_BY[name](config) for name in config.benchmarks]
    for benchmark in benchmarks:
        benchmark.check()
    return benchmarks


def problems_of(benchmark: Benchmark, config: BenchConfig) -> list[Problem]:
    """Return the problems of a benchmark that are asked.

    Raises:
        DataError: If they cannot be read.
    """
    return benchmark.problems()[: config.num_rows]


def _name(run: Path | None) -> str:
    return "base" if run is None else run.name


def _check_models(runs: Sequence[Path], base: ModelSource, config: BenchConfig) -> None:
    check_runs(runs)
    if config.backend == "endpoint":
        _check_is_served(runs, config)
        return
    for run in runs:
        check_base(run, base)
        if is_classifier(run):
            raise ConfigError(
                f"`{run}` is a classifier, which writes no answers; `balora eval` measures it."
            )
    load_config(base)


def _check_is_served(runs: Sequence[Path], config: BenchConfig) -> None:
    """Refuse runs that one server cannot have: it has one model by one name."""
    if len(runs) > 1 or (runs and config.endpoint_model is None):
        raise ConfigError(
            "`backend` is endpoint, whose server has the model: name at most one run, which says "
            "the prompt, and with `--endpoint_model` how the server calls it."
        )


def make_sheets(
    run: Path | None,
    base: ModelSource,
    config: BenchConfig,
    problems: Mapping[str, Sequence[Problem]],
    benchmarks: Sequence[Benchmark],
    *,
    folder: Path,
) -> list[Sheet]:
    """Return the benchmarks laid out for one model.

    Args:
        run: Its folder; None for the pre-trained model.
        base: The pre-trained model.
        config: How answers are written.
        problems: By benchmark.
        benchmarks: What is asked.
        folder: Of the model's answers.

    Raises:
        ConfigError: If answers are there that were written otherwise, or the prompt is not known.
    """
    prompter = prompter_of(run, config.prompt_template, lambda: load_tokenizer(base, run))
    model = {
        "base": _identity(base.name),
        "revision": base.revision,
        "run": None if run is None else _identity(str(run)),
        "dtype": str(base.dtype).removeprefix("torch."),
        "attn_implementation": base.attn_implementation,
        "endpoint_model": config.endpoint_model,
    }
    return [
        make_sheet(one, problems[one.name], prompter, config, folder=folder, model=model)
        for one in benchmarks
    ]


def _identity(model: str) -> str:
    """Return what tells a model from others: of a folder its weights, else its name on the hub."""
    path = Path(model).expanduser()
    return digest_of_weight_files(path) if path.is_dir() else model


def write_answers(sheets: Sequence[Sheet], generator: Callable[[], Generator]) -> None:
    """Have the missing answers of one model written.

    Args:
        sheets: Of the model.
        generator: Returns what writes them; called once, and only if one is missing.
    """
    known = functools.cache(generator)
    for sheet in sheets:
        sheet.answer(known)


def judge_sheets(sheets: Sequence[Sheet]) -> Measured:
    """Judge the answers of one model.

    Raises:
        BaloraError: If judging failed; the answers are kept.
    """
    scores: dict[str, Score] = {}
    for sheet in sheets:
        scores |= sheet.judge()
    return Measured(scores, {one.benchmark.name: judge_of(one.benchmark) for one in sheets})
