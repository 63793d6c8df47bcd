"""HumanEval and MBPP: the answer is a program, which is run against tests in a sandbox."""

from __future__ import annotations

import ast
import logging
import os
import platform
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm.auto import tqdm

from balora.data.layouts import texts_problem
from balora.errors import BaloraError, ConfigError
from balora.evaluation.bench.benchmark import Problem, Verdict
from balora.evaluation.bench.config import BenchConfig, BenchmarkData
from balora.evaluation.bench.programs import pass_at_k, program_of
from balora.evaluation.bench.rows import missing_column, read_rows
from balora.sandbox import (
    Isolation,
    Limits,
    Result,
    SandboxError,
    Task,
    Unisolated,
    isolation,
    run_program,
)

_LOGGER = logging.getLogger(__name__)
_GIB = 1024**3
PASS_AT = (10, 100)
"""The k for which pass@k is reported beside pass@1, where there are as many samples."""


class Programs:
    """What HumanEval and MBPP share: programs are taken from answers, run, and counted."""

    name: str
    max_new_tokens = 1024
    cot_suffix = ""
    asks_a_server = False

    def __init__(self, config: BenchConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Refuse to go on where programs cannot be isolated, unless the user allows that.

        Raises:
            ConfigError: With what is missing and how to have it.
        """
        if self._isolation().name == "none":
            _LOGGER.warning(
                "%s: programs that the model writes run with your rights: nothing isolates them "
                "here. Every row says `sandbox: none`.",
                self.name,
            )

    def _isolation(self) -> Isolation:
        try:
            return isolation()
        except SandboxError as error:
            if self.config.allow_unsandboxed:
                return Unisolated()
            raise ConfigError(
                f"programs that a model writes cannot be isolated here ({error}), so {self.name} "
                "was not started. Install bubblewrap (`apt-get install bubblewrap`) and allow user "
                "namespaces (docker: `--security-opt seccomp=unconfined --security-opt "
                "apparmor=unconfined`); `balora sandbox` shows what is missing. On a machine that "
                "may be lost, set `allow_unsandboxed` to true."
            ) from error

    @property
    def limits(self) -> Limits:
        """What one program may use."""
        return Limits(
            seconds=self.config.sandbox_seconds, memory=int(self.config.sandbox_memory * _GIB)
        )

    def judge(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Run the program of every answer against the tests of its problem.

        Raises:
            BaloraError: If a sandbox did not start, which says nothing about a program.
        """
        where = self._isolation()
        programs = [self._program(one, text) for one, text in zip(problems, texts, strict=True)]

        def run(pair: tuple[Problem, str]) -> Result:
            return run_program(pair[1], _tests(pair[0]), where, self.limits)

        pairs = list(zip(problems, programs, strict=True))
        try:
            results = _in_threads(run, pairs, f"Running {self.name}")
        except SandboxError as error:
            raise BaloraError(
                f"{self.name}: a sandbox did not start ({error}). The answers are kept; the same "
                "command judges them anew."
            ) from error
        right = Counter(
            one.id for one, result in zip(problems, results, strict=True) if result.passed
        )
        asked = Counter(one.id for one in problems)
        return [
            Verdict(
                self._scores(result, asked[one.id], right[one.id]),
                {"program": program, **_shown(result), "sandbox": where.name},
            )
            for (one, program), result in zip(pairs, results, strict=True)
        ]

    def facts(self) -> Mapping[str, Any]:
        """Return what the programs ran in: isolation, limits, interpreter."""
        return {
            "sandbox": self._isolation().name,
            "sandbox_seconds": self.config.sandbox_seconds,
            "sandbox_memory": self.config.sandbox_memory,
            "python": platform.python_version(),
        }

    def _program(self, problem: Problem, text: str) -> str:
        """Return the program of an answer; what its prompt imports and defines is there."""
        row = problem.row
        program = program_of(text, row["names"][0], row.get("prompt", ""))
        prelude = row.get("prelude", "")
        if not prelude or program.startswith(row["prompt"].rstrip()) or "__future__" in program:
            return program
        return f"{prelude}\n\n{program}"

    def _scores(self, result: Result, num_samples: int, num_right: int) -> dict[str, float]:
        scores = {self.name: float(result.passed)}
        for k in PASS_AT:
            if num_samples >= k:
                scores[f"{self.name}_pass@{k}"] = pass_at_k(num_samples, num_right, k)
        return scores | {"programs_timed_out": float(result.outcome == "timed out")}


def _in_threads(
    run: Callable[[tuple[Problem, str]], Result], pairs: list[tuple[Problem, str]], title: str
) -> list[Result]:
    """Run one program for each processor at a time; the threads wait for them."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        done = pool.map(run, pairs)
        return list(tqdm(done, total=len(pairs), desc=title, leave=False))
    finally:
        pool.shutdown(cancel_futures=True)


def _tests(problem: Problem) -> Task:
    row = problem.row
    return Task(tuple(row["names"]), row["setup"], tuple(row["tests"]))


def _shown(result: Result) -> dict[str, Any]:
    return {
        "outcome": result.outcome,
        "detail": result.detail,
        "output": result.output,
        "seconds": round(result.seconds, 3),
    }


class HumanEval(Programs):
    """HumanEval, as published: ``prompt`` begins a function, ``test`` defines ``check``."""

    name = "humaneval"
    _published = BenchmarkData(dataset_name="openai/openai_humaneval", dataset_split="test")

    def problems(self) -> list[Problem]:
        """Return the problems. The tests may use what the prompt defines before the function."""
        rows = read_rows(
            self.config.data_of(self.name),
            self.name,
            published=self._published,
            columns=missing_column("task_id", "prompt", "entry_point", "test"),
            problem=_human_eval_problem,
        )
        return [
            Problem(
                str(row["task_id"]),
                f"Complete this Python function:\n\n```python\n{row['prompt'].rstrip()}\n```",
                {
                    "prompt": row["prompt"],
                    "names": [row["entry_point"]],
                    "prelude": _prelude(row),
                    "setup": f"{_prelude(row)}\n{row['test']}",
                    "tests": [f"check({row['entry_point']})"],
                },
            )
            for row in rows
        ]


def _human_eval_problem(row: Mapping[str, Any]) -> str | None:
    if problem := texts_problem({name: row[name] for name in ("prompt", "entry_point", "test")}):
        return problem
    try:
        _prelude(row)
        _parsed(row["test"])
    except SyntaxError as error:
        return f"`prompt` or `test` is no Python: {error.msg}"
    return None


def _parsed(text: str) -> ast.Module:
    """Return the tree of a text; published tests hold escapes that the parser warns of.

    Raises:
        SyntaxError: If it is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _prelude(row: Mapping[str, Any]) -> str:
    """Return what the prompt has beside the function that is asked for."""
    tree = _parsed(f"{row['prompt'].rstrip()}\n    pass\n")
    others = [one for one in tree.body if getattr(one, "name", None) != row["entry_point"]]
    return "\n".join(map(ast.unparse, others))


class Mbpp(Programs):
    """MBPP in both published spellings: the full set's ``text``, or the sanitized ``prompt``."""

    name = "mbpp"
    _published = BenchmarkData(dataset_name="google-research-datasets/mbpp", dataset_split="test")

    def problems(self) -> list[Problem]:
        """Return the problems, with one test in the instruction or with three."""
        rows = read_rows(
            self.config.data_of(self.name),
            self.name,
            published=self._published,
            configs=("full",),
            columns=_missing_of_mbpp,
            problem=_mbpp_problem,
        )
        return [
            Problem(
                str(row["task_id"]),
                self._instruction(_text_of(row), row["test_list"]),
                {"names": _names(row), "setup": _setup(row), "tests": list(row["test_list"])},
            )
            for row in rows
        ]

    def _instruction(self, text: str, tests: Sequence[str]) -> str:
        if self.config.mbpp_prompt == "three_tests":
            return (
                f"You are an expert Python programmer, and here is your task: {text} Your code "
                "should pass these tests:\n\n" + "\n".join(tests[:3])
            )
        return f"{text}\nYour code should pass this test:\n\n{tests[0]}"


def _missing_of_mbpp(columns: list[str]) -> str | None:
    missing = missing_column("task_id", "code", "test_list")(columns)
    return missing or (None if {"text", "prompt"} & set(columns) else "`text` or `prompt`")


def _text_of(row: Mapping[str, Any]) -> Any:
    return row["text"] if row.get("text") is not None else row.get("prompt")


def _mbpp_problem(row: Mapping[str, Any]) -> str | None:
    if problem := texts_problem({"text": _text_of(row), "code": row["code"]}):
        return problem
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(one, str) for one in tests):
        return "`test_list` is no list of tests"
    try:
        names = _names(row)
    except SyntaxError as error:
        return f"`code`, `test_list` or what goes before the tests is no Python: {error.msg}"
    return None if names else "`test_list` uses nothing that `code` defines"


def _before_tests(row: Mapping[str, Any]) -> str:
    return "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or ""])


def _setup(row: Mapping[str, Any]) -> str:
    """Return what runs before the tests: they may use what the reference solution imports."""
    imports = [
        ast.unparse(one)
        for one in _parsed(row["code"]).body
        if isinstance(one, ast.Import | ast.ImportFrom)
    ]
    return "\n".join([*imports, _before_tests(row)])


def _names(row: Mapping[str, Any]) -> list[str]:
    """Return what the tests use of the program, what the first test calls first.

    Only what the reference solution defines: what a generated program calls ``abs`` is no business
    of the tests.
    """
    defined = set(_defined(_parsed(row["code"])))
    used = [
        node.id
        for text in (*row["test_list"], _before_tests(row))
        for node in ast.walk(_parsed(text))
        if isinstance(node, ast.Name)
    ]
    return list(dict.fromkeys(name for name in used if name in defined))


def _defined(tree: ast.Module) -> Iterator[str]:
    for one in tree.body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield one.name
        elif isinstance(one, ast.Assign):
            yield from (target.id for target in one.targets if isinstance(target, ast.Name))
