"""The settings of `balora bench`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from balora.config.data import RunTemplate
from balora.config.fields import field_hints, field_problems, given_problems
from balora.config.parts import Count, Seed, refuse
from balora.config.rules import Checked, Form, Interval, Named, NotEmpty, OneOf, PathTo
from balora.errors import ConfigError

BENCHMARKS = ("gsm8k", "math", "humaneval", "mbpp", "mt_bench")

_DATA = Form("{dataset_name: test.jsonl}")
_OF_ONE = {
    "math_scorer": ("math",),
    "mbpp_prompt": ("mbpp",),
    "judge_model": ("mt_bench",),
    "judge_workers": ("mt_bench",),
    "judge_cache": ("mt_bench",),
    "sandbox_seconds": ("humaneval", "mbpp"),
    "sandbox_memory": ("humaneval", "mbpp"),
    "allow_unsandboxed": ("humaneval", "mbpp"),
    **{name: (name,) for name in BENCHMARKS},
}
"""Fields that act on some benchmarks only."""


def acts_on(field: str, benchmarks: Collection[str]) -> bool:
    """Say whether a field changes anything of some benchmarks."""
    return field not in _OF_ONE or any(one in benchmarks for one in _OF_ONE[field])


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkData:
    """Where the problems of one benchmark come from; null takes the published ones of the hub."""

    dataset_name: Annotated[str | None, PathTo("data")] = None
    """A hub id, a local .jsonl, .json or .parquet file, or a folder of them."""

    dataset_config: str | None = None
    """Configuration (subset) of the data set, where it is one on the hub."""

    dataset_split: str | None = None
    """Which rows; null takes a file whole, otherwise the split that the benchmark is scored on."""

    references: Annotated[str | None, PathTo("file")] = None
    """Of mt_bench, which needs it: the file of GPT-4's answers, FastChat's gpt-4.jsonl."""

    def __post_init__(self) -> None:
        refuse("", field_problems(self))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> BenchmarkData:
        """Return the settings that a recipe holds as a mapping.

        Raises:
            ConfigError: If a key is unknown, or a value cannot work.
        """
        refuse("", given_problems(mapping, field_hints(cls), of="a benchmark's data"))
        return cls(**mapping)


def _data_problem(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return None
    try:
        BenchmarkData.from_mapping(value)
    except ConfigError as error:
        return f"cannot be read: {str(error).strip(' :.')}"
    return None


Data = Annotated[dict[str, Any] | None, NotEmpty(), _DATA, Checked(_data_problem)]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """Which benchmarks are measured, how answers are written, and how they are judged.

    Raises:
        ConfigError: If a value has the wrong type or cannot act; all problems in one message.
    """

    benchmarks: Annotated[list[str], NotEmpty(), OneOf(BENCHMARKS)]
    """The benchmarks: gsm8k, math, humaneval, mbpp, mt_bench."""

    output_dir: Annotated[str, PathTo("folder")] = "outputs/bench"
    """Folder of the answers: MODEL/BENCHMARK.jsonl, one row a problem; half a file is gone on."""

    overwrite: bool = False
    """Replace answers that are there but were written with other settings."""

    backend: Literal["transformers", "vllm", "endpoint"] = "transformers"
    """What writes the answers; endpoint is any OpenAI-compatible server at OPENAI_BASE_URL."""

    vllm_python: Annotated[str | None, PathTo("file")] = None
    """Interpreter of the environment that vllm is installed in; null takes this one."""

    endpoint_model: str | None = None
    """Name of the model that the server of backend endpoint is asked for; null takes `base`."""

    num_rows: Count | None = None
    """At most this many problems of a benchmark, from the first on."""

    eval_batch_size: Count = 16
    """Answers at once; halved by itself where they do not fit in memory."""

    prompt_template: RunTemplate = None
    """Text with {instruction}, or alpaca, none or chat; null takes the one the run had."""

    cot_suffix: Annotated[str | None, Named(("none",))] = None
    """What answers to gsm8k and math begin with; null: Let's think step by step, none: nothing."""

    max_new_tokens: Count | None = None
    """Longest answer; null takes the benchmark's: 2048 for math, 1024 for the others."""

    temperature: Annotated[float, Interval(ge=0)] = 0.0
    """Of the answers; 0 takes the likeliest token every time."""

    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Answers are drawn from the likeliest tokens that have this much probability together."""

    num_samples: Count = 1
    """Answers to each problem; the score is the mean share that is right (pass@1)."""

    seed: Seed = 0
    """Draws the answers where `temperature` is above 0."""

    math_scorer: Literal["math_verify", "paper"] = "math_verify"
    """Judges math: math_verify with the authors' rule beside it, or the rule of the paper alone."""

    mbpp_prompt: Literal["paper", "three_tests"] = "paper"
    """What mbpp shows of its tests: one, as the paper, or three_tests."""

    judge_model: str | None = None
    """Model that rates mt_bench, by its name at OPENAI_BASE_URL; the key is OPENAI_API_KEY."""

    judge_workers: Count = 4
    """Requests to the judge at once."""

    judge_cache: Annotated[str | None, PathTo("folder")] = None
    """Folder of the judge's replies; null means judge in $BALORA_CACHE or ~/.cache/balora."""

    sandbox_seconds: Annotated[float, Interval(ge=1)] = 10.0
    """Seconds of computing that a generated program has, by the clock three times as much."""

    sandbox_memory: Annotated[float, Interval(ge=0.125)] = 1.0
    """GiB of memory that each process of a generated program has."""

    allow_unsandboxed: bool = False
    """Run generated programs with your rights where nothing isolates them: they can do anything."""

    gsm8k: Data = None
    """Where gsm8k comes from, such as {dataset_name: test.jsonl}; null takes openai/gsm8k."""

    math: Data = None
    """Where math comes from; null takes EleutherAI/hendrycks_math."""

    humaneval: Data = None
    """Where humaneval comes from; null takes openai/openai_humaneval."""

    mbpp: Data = None
    """Where mbpp comes from; null takes google-research-datasets/mbpp."""

    mt_bench: Data = None
    """Where mt_bench comes from; null takes HuggingFaceH4/mt_bench_prompts."""

    def __post_init__(self) -> None:
        refuse("bench", field_problems(self, self._sampling_problems, self._inert_problems))

    def data_of(self, benchmark: str) -> BenchmarkData:
        """Return where the problems of a benchmark come from."""
        return BenchmarkData.from_mapping(getattr(self, benchmark) or {})

    def _sampling_problems(self) -> list[str]:
        if self.temperature:
            return []
        given = {"top_p": self.top_p, "num_samples": self.num_samples, "seed": self.seed}
        defaults = {"top_p": 1.0, "num_samples": 1, "seed": 0}
        return [
            f"`{name}` is {value}, but `temperature` is 0, which draws nothing; set it above 0, or "
            f"leave `{name}` out"
            for name, value in given.items()
            if value != defaults[name]
        ]

    def _inert_problems(self) -> list[str]:
        problems = [
            f"`{name}` is set, but `benchmarks` has no {' or '.join(of)}; leave it out"
            for name, of in _OF_ONE.items()
            if self._is_set(name) and not acts_on(name, self.benchmarks)
        ]
        for name, backend in (("vllm_python", "vllm"), ("endpoint_model", "endpoint")):
            if self._is_set(name) and self.backend != backend:
                problems.append(
                    f"`{name}` is set, but `backend` is {self.backend}; set it to {backend}, or "
                    f"leave `{name}` out"
                )
        if self.judge_model is None and "mt_bench" in self.benchmarks:
            problems.append(
                "`judge_model` is missing, which rates the answers to mt_bench; name a model of "
                "the server at OPENAI_BASE_URL"
            )
        twice = [name for name in self.benchmarks if self.benchmarks.count(name) > 1]
        return problems + [f"`benchmarks` names {name} twice" for name in twice[:1]]

    def _is_set(self, name: str) -> bool:
        default = next(field.default for field in fields(self) if field.name == name)
        return bool(getattr(self, name) != default)
