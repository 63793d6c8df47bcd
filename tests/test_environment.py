"""Where a command runs: what it writes into a log that nobody watches."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

from peft.utils import save_and_load

import balora
from balora.environment import hide_known_warnings, is_silent

PROGRAM = """
import sys
from balora.environment import hide_bars_in_logs
sys.stderr.isatty = lambda: {watched}
hide_bars_in_logs()
from tqdm.auto import tqdm
for _ in tqdm(range(3)):
    pass
"""


def told(*, watched, environment=None):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(watched=watched)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stderr


def test_a_log_holds_no_progress_bar_and_a_terminal_does():
    assert told(watched=False) == ""
    assert "3/3" in told(watched=True)


def test_no_bar_is_drawn_in_a_log_whatever_it_is_told_itself(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert is_silent(False)
    monkeypatch.delenv("TQDM_DISABLE")
    assert is_silent(True)
    assert not is_silent(False)
    for path in Path(balora.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id == "tqdm":
                told = [ast.unparse(one.value) for one in call.keywords if one.arg == "disable"]
                assert told in ([], ["disable"]), path
                assert not told or "disable = is_silent(" in path.read_text(encoding="utf-8"), path


MESSAGE = """
import logging
from balora.environment import print_messages
print_messages()
logging.getLogger("balora").warning("ours")
from accelerate import PartialState
from accelerate.logging import get_logger
PartialState(cpu=True)
get_logger("a.library").warning("theirs")
"""


def test_a_message_has_no_number_of_the_process_where_there_is_one():
    command = [sys.executable, "-W", "ignore", "-c", MESSAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["ours", "theirs"]


def test_what_nobody_can_act_on_is_not_warned_of():
    source = inspect.getsource(save_and_load)
    (words,) = re.findall(r'f"(Could not find a config file in [^"]*)"', source)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        hide_known_warnings()
        warnings.warn(words.replace("{model_id}", "some/model"), UserWarning, stacklevel=1)
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("the disk is nearly full", UserWarning, stacklevel=1)
    assert [str(one.message) for one in told] == ["the disk is nearly full"]
