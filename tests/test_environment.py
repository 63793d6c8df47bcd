"""Where a command runs: what it writes into a log that nobody watches."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import warnings

from peft.utils import save_and_load

from balora.environment import hide_known_warnings

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
