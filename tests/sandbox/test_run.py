"""Programs and their tests: what passes, what is said of the rest, and what is left afterwards."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from balora import sandbox
from balora.sandbox import Limits, SandboxError, Task, Unisolated, run_program
from balora.sandbox.isolation import Bubblewrap, find_bubblewrap
from balora.sandbox.seccomp import DENIED, filter_bytes
from support.sandbox import nobody_command, require_sandbox, run_here

TWICE = "def twice(x): return 2 * x"
RIGHT = Task(("twice",), "", ("assert twice(2) == 4",))


def task(*tests: str, names: tuple[str, ...] = ("f",), setup: str = "") -> Task:
    return Task(names, setup, tests)


# right programs with what their tests may use: (program, task)
HONEST = {
    "plain values": (
        "def f(x): return x",
        task("assert f([1, 2.5, 'a', None, (1, {2})]) == [1, 2.5, 'a', None, (1, {2})]"),
    ),
    "keywords": ("def f(a, *, b): return a - b", task("assert f(3, b=1) == 2")),
    "floats": ("def f(): return 0.1 + 0.2", task("assert abs(f() - 0.3) < 1e-9")),
    "large numbers": ("def f(n): return 2 ** n", task("assert f(20000) == 2 ** 20000")),
    "sets": ("def f(a, b): return set(a) & set(b)", task("assert f([1, 2], [2, 3]) == {2}")),
    "a counter": (
        "from collections import Counter\ndef f(x): return Counter(x)",
        task("assert f('aab') == {'a': 2, 'b': 1}"),
    ),
    "a generator": (
        "def f(n):\n for i in range(n): yield i * i",
        task("assert list(f(4)) == [0, 1, 4, 9]", "assert sum(f(4)) == 14"),
    ),
    "the next of a generator": (
        "def f():\n yield from (1, 2)",
        task("g = f()\nassert (next(g), next(g), next(g, 3)) == (1, 2, 3)"),
    ),
    "map and filter": (
        "def f(x): return map(str, filter(None, x))",
        task("assert list(f([0, 1, 2])) == ['1', '2']"),
    ),
    "a match": (
        "import re\ndef f(x): return re.search('b+', x)",
        task("assert f('abb')", "assert not f('ac')", "assert f('abb').group() == 'bb'"),
    ),
    "a class": (
        "class Pair:\n def __init__(self, a, b): self.a, self.b = a, b\n"
        "def f(pairs): return max(p.b - p.a for p in pairs)",
        task("assert f([Pair(1, 4), Pair(2, 3)]) == 3", names=("Pair", "f")),
    ),
    "a tree built by the tests": (
        "class Node:\n def __init__(self, v): self.v, self.left = v, None\n"
        "def f(n): return n.v + (f(n.left) if n.left else 0)",
        task(
            "assert f(root) == 3", names=("Node", "f"), setup="root = Node(1)\nroot.left = Node(2)"
        ),
    ),
    "a list that is sorted in place": (
        "def f(x): x.sort()",
        task("a = [3, 1, 2]\nf(a)\nassert a == [1, 2, 3]"),
    ),
    "a dictionary that is filled": (
        "def f(d, s): d['a'] = 1; s.add(2)",
        task("d, s = {}, set()\nf(d, s)\nassert d == {'a': 1} and s == {2}"),
    ),
    "an exception that is asked for": (
        "def f(x):\n if x < 0: raise ValueError('negative')\n return x",
        task("try:\n f(-1)\n assert False\nexcept ValueError as e:\n assert 'negative' in str(e)"),
    ),
    "the name of a builtin": (
        "def sum(a, b): return a + b",
        task("assert sum(1, 2) == 3", names=("sum",)),
    ),
    "a function that returns a function": (
        "def f(n): return lambda x: x + n",
        task("assert f(2)(3) == 5"),
    ),
    "dataclasses and typing": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from typing import List\n@dataclass\nclass P:\n x: int\n"
        "def f(v: List[int]): return [P(i).x for i in v]",
        task("assert f([1, 2]) == [1, 2]"),
    ),
    "threads and asyncio": (
        "import asyncio, threading\nasync def g(x): return x\n"
        "def f(x):\n out = []\n t = threading.Thread(target=lambda: out.append(x))\n"
        " t.start(); t.join()\n return out + [asyncio.run(g(x))]",
        task("assert f(1) == [1, 1]"),
    ),
    "files of its own": (
        "import tempfile\ndef f(x):\n with tempfile.TemporaryFile('w+') as t:\n"
        "  t.write(x); t.seek(0); return t.read()",
        task("assert f('a') == 'a'"),
    ),
    "numbers and dates": (
        "import math, statistics, datetime, decimal, random, heapq, bisect, itertools, functools\n"
        "def f(x): return statistics.mean(x) + math.isqrt(9)",
        task("assert f([1, 3]) == 5"),
    ),
    "tests without helpers of their own": (
        "def f(x): return x + 1",
        task(
            "check(f)", setup="def check(c):\n assert c(1) == 2\n assert all(c(i) > i for i in [3])"
        ),
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_right_programs_pass(name):
    require_sandbox()
    result = run_here(*HONEST[name])
    assert result.passed, result


@pytest.mark.parametrize(
    ("program", "outcome", "detail"),
    [
        ("def twice(x): return x", "failed", "test 1: AssertionError"),
        ("def twice(x): return x / 0", "raised", "test 1: ZeroDivisionError: division by zero"),
        ("def twice(x) return x", "raised", "loading the program: SyntaxError"),
        ("import nothing_of_that_name", "raised", "loading the program: ModuleNotFoundError"),
        ("def other(x): return 4", "raised", "test 1: NameError: name 'twice' is not defined"),
        ("import os\ndef twice(x): os._exit(3)", "died", "test 1: the program ended its process"),
        ("def twice(x): return 'x' * (5 << 20)", "raised", "more data at once than crosses"),
    ],
)
def test_what_is_said_of_the_others(program, outcome, detail):
    require_sandbox()
    result = run_here(program, RIGHT)
    assert result.outcome == outcome
    assert detail in result.detail


def test_tests_that_cannot_run_are_no_fault_of_the_program():
    require_sandbox()
    assert run_here(TWICE, task("assert 1", setup="import nothing_of_that_name")).outcome == "error"


def test_what_a_program_prints_is_kept_without_control_characters():
    require_sandbox()
    result = run_here("print('a\\x1b[31m\\tb\\u20ac')\n" + TWICE, RIGHT)
    assert result.passed
    assert result.output == "a\ufffd[31m\tb\u20ac\n"
    assert len(run_here("print('x' * 100000)\n" + TWICE, RIGHT).output) == 4096


def test_the_same_program_has_the_same_order_of_sets():
    require_sandbox()
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))\n" + TWICE
    assert len({run_here(program, RIGHT).output for _ in range(3)}) == 1


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.parametrize("num", [8, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_piles_up(num, no_processes_left, tmp_path, monkeypatch):
    """No descriptor, zombie or folder after many programs, of all outcomes; without the collector,
    which would hide what is only freed by it."""
    require_sandbox()
    programs = [TWICE, "def twice(x): return x", "import os; os._exit(0)", "def twice(x) 4"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = open_descriptors(), children()
    gc.disable()
    try:
        for number in range(num):
            run_here(programs[number % 4], RIGHT)
        assert (open_descriptors(), children()) == before
    finally:
        gc.enable()
    assert not list(tmp_path.iterdir())


EVALUATOR = """\
from balora.sandbox.isolation import find_bubblewrap
from balora.sandbox.limits import Limits
from balora.sandbox.run import Task, run_program
program = (
    "import ctypes; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\\n"  # no order to die with a parent
    "def twice(x):\\n import time\\n while True: time.sleep(1)"
)
print("ready", flush=True)
run_program(program, Task(("twice",), "", ("assert twice(2) == 4",)), find_bubblewrap(),
            Limits(seconds=1000))
"""


def descendants(pid: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


@pytest.fixture
def folder_of_all():
    with tempfile.TemporaryDirectory(prefix="nobody-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_nothing_lives_on_when_the_evaluator_is_killed(user, folder_of_all):
    require_sandbox()
    folder = folder_of_all
    if os.geteuid() == 0 and user == "nobody":
        command, path = nobody_command(folder), str(folder)
    elif (os.geteuid() == 0) == (user == "root"):
        command, path = [sys.executable], str(Path(sandbox.__file__).parents[2])
    else:
        pytest.skip("needs root")
    evaluator = subprocess.Popen(
        [*command, "-c", EVALUATOR],
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    most = 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        alive = descendants(evaluator.pid)
        if len(alive) >= 4 and len(alive) == most:  # two sandboxes, and no more come
            break
        most = len(alive)
        time.sleep(0.3)
    assert len(alive) >= 4
    evaluator.send_signal(signal.SIGKILL)
    evaluator.wait()
    deadline = time.monotonic() + 20
    while alive and time.monotonic() < deadline:
        alive = {pid for pid in alive if is_running(pid)}
        time.sleep(0.05)
    assert not alive


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_sandbox_that_does_not_start_says_nothing_about_a_program(tmp_path):
    refusing = tmp_path / "bwrap"
    refusing.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    refusing.chmod(0o755)
    with pytest.raises(SandboxError, match="No permissions to create new namespace"):
        run_program(TWICE, RIGHT, Bubblewrap(str(refusing)))


def test_what_cannot_be_started_is_a_sentence(tmp_path):
    with pytest.raises(SandboxError, match="cannot be started: No such file"):
        run_program(TWICE, RIGHT, Bubblewrap(str(tmp_path / "bwrap")))


def test_other_machines_are_refused(monkeypatch):
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(sysname="Linux", machine="aarch64"))
    with pytest.raises(SandboxError, match="x86_64 only, and this is Linux on aarch64"):
        find_bubblewrap()


def test_the_filter_has_the_numbers_of_the_kernel():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no headers of the kernel")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    assert {name: int(numbers[name]) for name in DENIED} == DENIED
    assert len(filter_bytes()) % 8 == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo 'bwrap: No permissions' >&2\nexit 1", "does not offer"),
        (
            "[ $1 = --help ] && echo --size --perms --as-pid-1 --clearenv && exit\necho no\nexit 1",
            "no",
        ),
        (None, "not installed"),
    ],
)
def test_without_isolation_the_check_fails(body, says, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if body is not None:
        (tmp_path / "bwrap").write_text("#!/bin/sh\n" + body + "\n")
        (tmp_path / "bwrap").chmod(0o755)
    layers = sandbox.check()
    assert not all(layer.holds for layer in layers)
    assert says in layers[-1].says


@pytest.mark.parametrize(
    ("layer", "without", "added"),
    [
        ("rights", ["--seccomp"], []),
        pytest.param("network", ["--unshare-net"], [], marks=pytest.mark.slow),
        pytest.param("processes", ["--unshare-pid"], [], marks=pytest.mark.slow),
        pytest.param("files", [], ["--ro-bind", "/etc", "/etc"], marks=pytest.mark.slow),
        pytest.param("files", [], ["--ro-bind", "/tmp", "/tmp"], marks=pytest.mark.slow),
    ],
)
def test_the_check_sees_a_missing_wall(layer, without, added, monkeypatch, tmp_path):
    """Each layer is really tried: with one option of bubblewrap taken away it does not hold."""
    require_sandbox()
    real = find_bubblewrap().program
    leaky = tmp_path / "bwrap"
    leaky.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"words, without, added = sys.argv[1:], {without!r}, {added!r}\n"
        "if '--help' not in words and '--version' not in words:\n"
        "    for word in without:\n"
        "        at = words.index(word)\n"
        "        del words[at : at + (2 if word == '--seccomp' else 1)]\n"
        "    at = words.index('--remount-ro')\n"
        "    words[at:at] = added\n"
        f"os.execv({real!r}, [{real!r}, *words])\n"
    )
    leaky.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert layer in [one.name for one in sandbox.check() if not one.holds]


def test_without_isolation_a_link_that_is_left_leads_to_no_deletion(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    program = f"import os\nos.symlink({str(tmp_path / 'mine')!r}, 'link')\n" + TWICE
    assert run_program(program, RIGHT, Unisolated()).passed
    assert (tmp_path / "mine" / "file").read_text() == "kept"


def test_without_isolation_the_judged_split_and_the_limits_stay():
    limits = Limits(seconds=0.4)
    assert run_program(TWICE, RIGHT, Unisolated(), limits).passed
    equal = "class A:\n __eq__ = lambda s, o: True\ndef twice(x): return A()"
    assert run_program(equal, RIGHT, Unisolated(), limits).outcome == "failed"
    assert run_program("import os; os._exit(0)", RIGHT, Unisolated(), limits).outcome == "died"
    loop = "def twice(x):\n while True: pass"
    assert run_program(loop, RIGHT, Unisolated(), limits).outcome == "timed out"
    sees = "import os\ndef twice(x): return set(os.environ) - {'LC_CTYPE'}, os.listdir('.')"
    names = "{'HOME', 'LANG', 'PATH', 'PYTHONHASHSEED', 'TMPDIR'}, []"
    result = run_program(
        sees, task(f"assert twice(1) == ({names})", names=("twice",)), Unisolated()
    )
    assert result.passed, result
    memory = "def twice(x): return len(bytes(2 << 30)) and 4"
    assert run_program(memory, RIGHT, Unisolated(), limits).outcome == "raised"
    assert json.dumps(vars(result))
