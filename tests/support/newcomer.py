"""Somebody who has the wheel and the pages, and does what the pages say: copies their commands.

A command that a page no longer has cannot be copied, so the test that copies it fails. In a copied
line, and in a copied file, only what `INSTEAD` names may be replaced.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from support.documents import ROOT, Block, blocks_of, commands_of

GENERATOR, ENCODER = "meta-llama/Llama-2-7b-hf", "FacebookAI/roberta-base"
INSTEAD = (GENERATOR, ENCODER)
"""The models that pages name: of the hub, and large. Everything else is run as it is written."""
_PATIENCE_SECONDS = 3600
_AT_THE_END = "\nimport sys\nassert 'balora' not in sys.modules\n"


class Newcomer:
    """Works in an empty folder, with the commands of an environment that has the wheel.

    Args:
        folder: Empty.
        place: The `bin` of the environment.
        instead: The models that take the place of those of the pages, by the name there.
    """

    def __init__(self, folder: Path, place: Path, instead: Mapping[str, Path]):
        assert set(instead) <= set(INSTEAD)
        self.folder, self._place, self._instead = folder, place, instead
        home = folder.with_name("home")
        home.mkdir()
        kept = {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "LANG") if name in os.environ
        }
        path = f"{place}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**kept, "PATH": path, "HOME": str(home), "HF_HUB_OFFLINE": "1"}

    def copies_file(self, page: str, section: str, *parts: str, to: str) -> None:
        """Copy the one block of a section that has all parts into a file."""
        found = [
            block.code
            for block in _blocks(page)
            if block.section == section and all(part in block.code for part in parts)
        ]
        assert len(found) == 1, f"{page}, {section}: {len(found)} blocks have {parts}"
        (self.folder / to).write_text(self._replaced(found[0]), encoding="utf-8")

    def copies(self, page: str, *parts: str, without: str = "\0", fails: bool = False) -> str:
        """Run the first command of a page that has all parts, and return what it prints.

        Args:
            page: As README.md, or docs/classify.md.
            parts: Of the command.
            without: What it must not have.
            fails: Whether it is refused; then what it says of that is returned.
        """
        words = self._command(page, parts, without)
        status, printed, said = self._run(words)
        assert status == (2 if fails else 0), f"{' '.join(words)}: {status}\n{printed}\n{said}"
        return said if fails else printed

    def interrupts(
        self, page: str, *parts: str, without: str = "\0", when: Callable[[], bool]
    ) -> None:
        """Start a command and press Ctrl-C as soon as something has happened."""
        words = self._command(page, parts, without)
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_take_interrupts,
        )
        end = time.monotonic() + _PATIENCE_SECONDS
        while not when() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        assert process.returncode == 1, said
        assert "interrupted" in said

    def python(self, code: str) -> str:
        """Run a program, elsewhere, that must not come across balora; return what it prints."""
        words = [str(self._place / "python"), "-c", code + _AT_THE_END]
        status, printed, said = self._run(words, Path("/"))
        assert status == 0, said
        return printed

    def _command(self, page: str, parts: tuple[str, ...], without: str) -> list[str]:
        lines = [
            words
            for block in _blocks(page)
            if block.language == "bash"
            for words in commands_of(block.code)
            if all(part in " ".join(words) for part in parts) and without not in " ".join(words)
        ]
        assert lines, f"{page} has no command with {parts}"
        return [self._replaced(word) for word in lines[0]]

    def _replaced(self, text: str) -> str:
        for name, path in self._instead.items():
            text = text.replace(name, str(path))
        return text

    def _run(self, words: list[str], folder: Path | None = None) -> tuple[int, str, str]:
        start = time.monotonic()
        done = subprocess.run(
            words,
            cwd=folder or self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        shown = " ".join(words) if words[0] == "balora" else "python ..."
        seconds = time.monotonic() - start
        sys.stdout.write(f"\n$ {shown}\n{done.stdout}[{done.returncode}, {seconds:.0f} s]\n")
        return done.returncode, done.stdout, done.stderr


def _take_interrupts() -> None:
    """Undo what a shell does to its jobs in the background, which pass over Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _blocks(page: str) -> list[Block]:
    return blocks_of(ROOT / page)
