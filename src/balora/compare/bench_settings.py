"""The benchmarks of a comparison as its recipe asks for them: `bench`, and that of a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from balora.config.fields import field_hints, given_problems
from balora.config.values import parse_text, parse_texts
from balora.errors import ConfigError
from balora.evaluation.bench.config import BENCHMARKS, BenchConfig, BenchmarkData, acts_on

BENCH = "bench"
WITHOUT_EFFECT = ("judge_workers", "judge_cache", "vllm_python")
"""Settings that leave every score as it is."""

ELSEWHERE = {
    "output_dir": "the answers of a cell lie in the cell's folder",
    "overwrite": "a comparison starts again with `--overwrite` on the command line",
    "endpoint_model": "a server has one model, and a comparison trains its own",
}
"""Fields of `balora bench` that a comparison does not take, and why."""
NO_BACKEND = "endpoint"
"""What writes no answers of a comparison, for the reason of its own field."""


def parse_bench(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of fields of the command line; ``gsm8k.FIELD`` is one of a benchmark."""
    nested: dict[str, Any] = {}
    plain: dict[str, str] = {}
    for name, text in texts.items():
        benchmark, dot, field = name.partition(".")
        if dot and benchmark in BENCHMARKS:
            hint = field_hints(BenchmarkData).get(field, str)
            nested.setdefault(benchmark, {})[field] = parse_text(text, hint)
        else:
            plain[name] = text
    return parse_texts(plain, field_hints(BenchConfig)) | nested


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings of a place, the later parts over the earlier; nothing without benchmarks.

    What an earlier part says of benchmarks that this place does not measure is left out.
    """
    settings = {name: value for part in parts for name, value in part.items()}
    benchmarks = settings.get("benchmarks")
    if not isinstance(benchmarks, list):
        return {}
    own = parts[-1].keys()
    return {n: v for n, v in settings.items() if n in own or acts_on(n, benchmarks)}


def part_problems(where: str, part: Any) -> list[str]:
    """Say what is wrong with one mapping `bench`, whatever the others say."""
    if not isinstance(part, Mapping):
        return [f"{where} must be a mapping of fields of `balora bench`, got {part!r}"]
    problems = [
        f"{where}: `{name}` is set, but {ELSEWHERE[name]}" for name in ELSEWHERE if name in part
    ]
    if part.get("backend") == NO_BACKEND:
        problems.append(
            f"{where}: `backend` is {NO_BACKEND}, but {ELSEWHERE['endpoint_model']}; set it to "
            "transformers or vllm"
        )
    hints = field_hints(BenchConfig)
    return problems + [f"{where}: {one}" for one in given_problems(part, hints, of="`bench`")]


def settings_problem(settings: Mapping[str, Any]) -> str | None:
    """Return what keeps the settings of a place from working, None where nothing does."""
    try:
        BenchConfig(**settings)
    except ConfigError as error:
        return str(error).removeprefix("bench: ").rstrip(".")
    return None
