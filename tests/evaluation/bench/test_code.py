"""HumanEval and MBPP: prompts, the program in an answer, pass@k, rows, and refusals."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction
from itertools import combinations

import pytest

from balora import sandbox
from balora.cli import main
from balora.errors import ConfigError, DataError
from balora.evaluation.bench.code import HumanEval, Mbpp
from balora.evaluation.bench.config import BenchConfig
from balora.evaluation.bench.programs import compiles, pass_at_k, program_of
from balora.sandbox import SandboxError
from support.classification_runs import error_of
from support.models import make_model, make_tokenizer
from support.sandbox import require_sandbox

PROMPT = 'from typing import List\n\n\ndef total(x: List[int]) -> int:\n    """Add up.\n    """\n'
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": "import math\n\ndef half(x):\n    return x / 2\n\n" + PROMPT,
    "entry_point": "total",
    "canonical_solution": "    return sum(x)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert half(4) == 2\n",
}
FULL = {
    "task_id": 11,
    "text": "Write a function to double.",
    "code": "import sys\nNAME = 1\ndef double(x):\n  return helper(x)\ndef helper(x): return 2 * x",
    "test_list": [
        "assert double(2) == 4",
        "assert double(3) < sys.maxsize",
        "assert double(0) == 0",
    ],
    "test_setup_code": "limit = 3",
}
SANITIZED = {
    "task_id": 2,
    "prompt": "Write a function to double.",
    "code": "def double(x): return 2 * x",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(double(2), 4)", "assert double(1) == 2"],
}
RIGHT = "Sure:\n```python\ndef double(x):\n    return x + x\n```\nIt adds."

BODY = "    return sum(x)\n"
WHOLE = f"{PROMPT}{BODY}"
DEFINED = "def total(x):\n    return sum(x)"


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (f"```python\n{DEFINED}\n```", DEFINED),
        (f"```\n{DEFINED}\n```", DEFINED),
        (f"Here it is:\n\n```python\n{DEFINED}\n```\nDone. def x", DEFINED),
        (f"```python\nimport os\n```\nand\n```py\n{DEFINED}\n```", DEFINED),
        (f"```python\n{DEFINED}", DEFINED),  # cut off before the fence is closed
        (f"{DEFINED}\n", DEFINED),
        (f"You can do it like this.\n{DEFINED}\n", DEFINED),
        (f"{DEFINED}\n\nThis adds the numbers.\n", DEFINED),
        (f"LIMIT = 3\n{DEFINED}\n", f"LIMIT = 3\n{DEFINED}"),
        (f"import os\n{DEFINED}\n", f"import os\n{DEFINED}"),
        (f"{DEFINED}\n\nif __name__ == '__main__':\n    main()", DEFINED),
        (f"{DEFINED}\n\n# Example usage:\nprint(total([1]))", DEFINED),
        (f"{DEFINED}\n\nassert total([1]) == 2", DEFINED),
        (f"{DEFINED}\ndef other(x):\n    return (x +", DEFINED),
        (f"{DEFINED}\r\n", DEFINED),
        ("class total:\n    pass", "class total:\n    pass"),
        ("total = sum", "total = sum"),
        (BODY, WHOLE),
        (f"\n{BODY}", WHOLE),
        ("return sum(x)", WHOLE),
        ("y = 0\nfor i in x:\n    y += i\nreturn y",
         f"{PROMPT}    y = 0\n    for i in x:\n        y += i\n    return y\n"),
        (f"```python\n{BODY}```", WHOLE),
        (f"{BODY}\n\nprint(total([1]))\nprint(", f"{WHOLE}\n\nprint(total([1]))\n"),
    ],
)  # fmt: skip
def test_the_program_in_an_answer(answer, wanted):
    program = program_of(answer, "total", PROMPT)
    assert program.strip() == wanted.strip()
    assert compiles(program)


def test_answers_without_a_program_are_returned_as_they_are():
    assert program_of("I do not know.", "total") == "I do not know."
    assert program_of("", "total").strip() == ""
    assert not compiles(program_of("def total(x) return", "total"))
    assert len(program_of("x = 1\n" * 100_000, "total")) <= 100_001


@pytest.mark.parametrize("text", ["(" * 50_000, "a" + ".b" * 40_000, "\0", "-" * 80_000 + "1"])
def test_texts_that_are_hard_to_read_are_no_program_or_one(text):
    assert compiles(text) in (True, False)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations(range(n), k))
                share = Fraction(sum(any(i < c for i in draw) for draw in draws), len(draws))
                assert pass_at_k(n, c, k) == pytest.approx(float(share))
    assert pass_at_k(200, 100, 1) == pytest.approx(0.5)
    for n, c, k in ((3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match=f"pass@{k} of {c} right among {n}"):
            pass_at_k(n, c, k)


def benchmark(kind, folder, *rows, **settings):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {kind.name: {"dataset_name": str(path)}}
    return kind(BenchConfig(benchmarks=[kind.name], **data, **settings))


def test_escapes_that_the_parser_warns_of_are_no_fault_of_a_row(tmp_path):
    row = {**SANITIZED, "test_list": [r"assert double(2) == len('\w\w')"]}
    assert benchmark(Mbpp, tmp_path, row).problems()
    assert compiles(r"x = '\w'")


def test_human_eval_shows_the_prompt_and_lends_the_tests_what_stands_before(tmp_path):
    (problem,) = benchmark(HumanEval, tmp_path, HUMAN_EVAL).problems()
    assert problem.id == "HumanEval/0"
    assert f"```python\n{HUMAN_EVAL['prompt'].strip()}\n```" in problem.instruction
    assert "sum(x)" not in problem.instruction
    assert "def half" in problem.row["setup"]
    assert "def total" not in problem.row["setup"]
    assert problem.row["names"] == ["total"]


@pytest.mark.parametrize("row", [FULL, SANITIZED], ids=["full", "sanitized"])
def test_mbpp_in_both_spellings_shows_one_test_or_three(row, tmp_path):
    (one,) = benchmark(Mbpp, tmp_path, row).problems()
    (three,) = benchmark(Mbpp, tmp_path, row, mbpp_prompt="three_tests").problems()
    for problem in (one, three):
        assert "Write a function to double." in problem.instruction
        assert row["test_list"][0] in problem.instruction
        assert problem.row["names"] == ["double"]
    assert row["test_list"][1] not in one.instruction
    assert all(test in three.instruction for test in row["test_list"])


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (Mbpp, {"test_list": []}, "`test_list` is no list of tests"),
        (Mbpp, {"test_list": ["assert other(1)"]}, "uses nothing that `code` defines"),
        (Mbpp, {"code": "def double(x) return"}, "is no Python"),
        (Mbpp, {"text": ""}, "`text` is empty"),
        (HumanEval, {"test": "def check(:"}, "`prompt` or `test` is no Python"),
        (HumanEval, {"entry_point": None}, "`entry_point`"),
    ],
)
def test_rows_that_cannot_be_measured_on_are_refused(kind, change, says, tmp_path):
    row = {**(FULL if kind is Mbpp else HUMAN_EVAL), **change}
    with pytest.raises(DataError, match=says):
        benchmark(kind, tmp_path, row).problems()


def test_answers_are_judged_and_every_row_says_how(tmp_path):
    require_sandbox()
    mbpp = benchmark(Mbpp, tmp_path, FULL)
    (problem,) = mbpp.problems()
    wrong = "```python\ndef double(x):\n    print('looking')\n    return x\n```"
    right, failed, nothing = mbpp.judge([problem] * 3, [RIGHT, wrong, "no idea"])
    assert right.scores == {"mbpp": 1.0, "programs_timed_out": 0.0}
    assert right.shown["outcome"] == "passed"
    assert right.shown["program"] == "def double(x):\n    return x + x\n"
    assert failed.scores["mbpp"] == nothing.scores["mbpp"] == 0.0
    assert failed.shown["outcome"] == "failed"
    assert failed.shown["output"] == "looking\n"
    assert nothing.shown["outcome"] == "raised"
    assert {one.shown["sandbox"] for one in (right, failed, nothing)} == {"bubblewrap"}
    assert mbpp.facts()["sandbox"] == "bubblewrap"


def test_what_the_prompt_imports_is_there_for_an_answer_that_repeats_the_function(tmp_path):
    require_sandbox()
    human_eval = benchmark(HumanEval, tmp_path, HUMAN_EVAL)
    (problem,) = human_eval.problems()
    texts = [
        "```python\ndef total(x: List[int]) -> int:\n    return math.fsum(x)\n```",
        "    return sum(x)\n",
        "from __future__ import annotations\ndef total(x: List[int]):\n    return sum(x)",
        "    return sum(x) + 1\n",
    ]
    verdicts = human_eval.judge([problem] * 4, texts)
    assert [one.scores["humaneval"] for one in verdicts] == [1, 1, 1, 0]


def test_ten_samples_give_pass_at_10(tmp_path):
    require_sandbox()
    mbpp = benchmark(Mbpp, tmp_path, SANITIZED)
    (problem,) = mbpp.problems()
    verdicts = mbpp.judge([problem] * 10, [RIGHT] + ["pass"] * 9)
    assert {one.scores["mbpp_pass@10"] for one in verdicts} == {1.0}
    assert sum(one.scores["mbpp"] for one in verdicts) == 1


def refuse(*_):
    raise SandboxError("bwrap: No permissions to create new namespace")


def test_without_isolation_nothing_is_run_unless_that_is_allowed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("balora.evaluation.bench.code.isolation", refuse)
    refused = benchmark(Mbpp, tmp_path, FULL)
    with pytest.raises(ConfigError, match=r"\(bwrap: No permissions .*\), so mbpp was not started"):
        refused.check()
    (problem,) = refused.problems()
    with pytest.raises(ConfigError, match="allow_unsandboxed"):
        refused.judge([problem], [RIGHT])
    allowed = benchmark(Mbpp, tmp_path, FULL, allow_unsandboxed=True)
    allowed.check()
    assert "run with your rights" in caplog.text
    (verdict,) = allowed.judge([problem], [RIGHT])
    assert verdict.scores["mbpp"] == 1
    assert verdict.shown["sandbox"] == allowed.facts()["sandbox"] == "none"


def test_the_command_is_refused_in_one_sentence_before_a_model_is_loaded(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))  # no bwrap
    sandbox.isolation.cache_clear()
    try:
        words = ["--base", "nobody/no-such-model", "--benchmarks", "humaneval"]
        assert main(["bench", *words]) == 2
        error = error_of(capsys)
        assert "bubblewrap is not installed" in error
        assert "allow_unsandboxed" in error
        assert main(["sandbox"]) == 1
        assert "bubblewrap  fails" in capsys.readouterr().out
    finally:
        sandbox.isolation.cache_clear()


def test_the_command_end_to_end(tmp_path, capsys):
    require_sandbox()
    make_model("llama").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "he.jsonl").write_text(json.dumps(HUMAN_EVAL) + "\n")
    (tmp_path / "mbpp.json").write_text(json.dumps([SANITIZED]))
    words = {
        "base": tmp_path / "base",
        "benchmarks": "humaneval,mbpp",
        "humaneval.dataset_name": tmp_path / "he.jsonl",
        "mbpp.dataset_name": tmp_path / "mbpp.json",
        "max_new_tokens": 4,
        "prompt_template": "{instruction}",
        "output_dir": tmp_path / "out",
    }
    assert main(["bench", *(f"--{name}={value}" for name, value in words.items())]) == 0
    out = capsys.readouterr().out
    assert "HumanEval (pass@1), n = 1" in out
    assert "without isolation" not in out
    for name in ("humaneval", "mbpp"):
        row = json.loads((tmp_path / "out/base" / f"{name}.jsonl").read_text())
        assert {"program", "outcome", "output", "prompt", "text", "sandbox"} <= row.keys()
        assert row["scores"][name] == 0


def test_sandbox_says_what_isolates(capsys):
    require_sandbox()
    assert main(["sandbox"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = ["bubblewrap", "verdict", "files", "network", "processes", "rights", "limits"]
    assert [line[0] for line in lines] == names
    assert {line[1] for line in lines} == {"holds"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HumanEval, Mbpp], ids=lambda kind: kind.name)
def test_all_reference_solutions_pass(kind, shared_data, tmp_path):
    """The published references, through prompt, extraction and sandbox, as a model's answers."""
    require_sandbox()
    if kind is HumanEval:
        with gzip.open(shared_data / "data/humaneval/HumanEval.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        bodies = [row["canonical_solution"] for row in rows]
        whole = [f"```python\n{row['prompt']}{row['canonical_solution']}```" for row in rows]
    else:
        rows = json.loads((shared_data / "data/mbpp/sanitized-mbpp.json").read_text())
        bodies = [row["code"] for row in rows]
        whole = [f"Here:\n```python\n{row['code']}\n```" for row in rows]
    # one reference computes for seconds, which is much longer by the clock of a busy machine
    made = benchmark(kind, tmp_path, *rows, sandbox_seconds=60)
    problems = made.problems()
    for texts in (bodies, whole):
        verdicts = made.judge(problems, texts)
        wrong = [(p.id, v.shown) for p, v in zip(problems, verdicts, strict=True)
                 if not v.scores[kind.name]]  # fmt: skip
        assert not wrong
    assert len(rows) == {"humaneval": 164, "mbpp": 427}[kind.name]
    swapped = made.judge(problems, [*whole[1:], whole[0]])  # the answer to another problem
    assert sum(v.scores[kind.name] for v in swapped) <= 1
