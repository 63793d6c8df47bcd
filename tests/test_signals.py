"""SIGTERM, which batch systems send: a command ends with 143 and says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from balora import cli

COMMANDS = {
    "train": ("balora.recipes.load_recipe", ["train"], "`--resume_from_checkpoint true` resumes"),
    "quickstart": ("balora.quickstart.quickstart", ["quickstart"], "with `--overwrite` starts"),
    "eval": (
        "balora.evaluation.command.evaluate",
        ["eval", "out", "--base", "base"],
        "the same command measures again",
    ),
    "compare": ("balora.compare.command.compare", ["compare"], "resumes the comparison"),
    "lab": ("balora.lab.command.lab", ["lab"], "the same command pre-trains an unfinished"),
    "export": (
        "balora.anchored.export.export_adapter",
        ["export", "out", "--base", "base"],
        "the same command writes the export again",
    ),
}


@pytest.fixture
def handled():
    """Handle the signals as a program does, also where the shell started the tests behind."""
    handlers = {signal.SIGTERM: cli._terminate, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 1, "interrupted")],
)
def test_every_command_says_how_to_go_on(command, number, status, word, monkeypatch, capsys):
    place, words, hint = COMMANDS[command]
    monkeypatch.setattr(place, lambda *_, **__: signal.raise_signal(number))
    assert cli.main(words) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"balora: {word}; ")
    assert hint in line


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at once")
def test_the_program_handles_it():
    code = (
        "import os, signal, sys; from balora import cli;"
        "cli._env = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), signal.pause());"
        "sys.argv = ['balora', 'env']; cli.entry_point()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "balora: terminated\n")
