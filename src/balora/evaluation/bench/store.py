"""The answers to a benchmark on disk: one row each, written as they come, so that none is lost.

``NAME.jsonl`` has the rows, ``NAME.json`` the settings that they were written with and, once they
are judged, the scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.config.words import spelled
from balora.errors import ConfigError
from balora.files import finite, write_json, write_text
from balora.folders import made_folder
from balora.staging import writing
from balora.state import read_json, read_json_lines

_OUTPUT = "`output_dir`"
_OTHERWISE = "Name another `output_dir`, or pass `--overwrite true` to have them written anew."

Key = tuple[str, int]
"""Of a row: the problem and which of its answers."""


class AnswerStore:
    """The rows of one model and one benchmark.

    Args:
        folder: Of the model; made when the first row is written.
        name: Of the benchmark.
        settings: What decides the answers beside the prompts, as JSON holds it.
        overwrite: Whether rows of other settings are replaced.
    """

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.folder, self.name, self.overwrite = folder, name, overwrite
        self.settings = json.loads(json.dumps(settings))
        self.rows_file, self.scores_file = folder / f"{name}.jsonl", folder / f"{name}.json"
        self.rows = self._read()

    @classmethod
    def opened(cls, folder: Path, name: str) -> AnswerStore:
        """Return the answers that are there, whatever settings they were written with.

        Raises:
            ConfigError: If there are none, or they are damaged.
        """
        known = read_json(folder / f"{name}.json", _OTHERWISE, fields={"settings": dict})
        return cls(folder, name, known["settings"])

    @classmethod
    def is_in(cls, folder: Path, name: str) -> bool:
        """Say whether a folder has the answers to a benchmark."""
        return all((folder / f"{name}.{suffix}").is_file() for suffix in ("json", "jsonl"))

    def _read(self) -> dict[Key, dict[str, Any]]:
        """Return the rows that are there and can be gone on with.

        Raises:
            ConfigError: If they were written with other settings, or are damaged.
        """
        if not self.rows_file.exists():
            return {}
        found = read_json(self.scores_file, _OTHERWISE, fields={"settings": dict})["settings"]
        if found != self.settings:
            if self.overwrite:
                return {}
            raise ConfigError(
                f"`{self.rows_file}` has answers that were written otherwise: "
                f"{', '.join(_differences(found, self.settings))}. {_OTHERWISE}"
            )
        self._drop_half_a_line()
        rows = read_json_lines(self.rows_file, _OTHERWISE)
        if not all({"id", "sample", "prompt", "text"} <= row.keys() for row in rows):
            raise ConfigError(f"`{self.rows_file}` is damaged: a row lacks a field. {_OTHERWISE}")
        return {(row["id"], row["sample"]): row for row in rows}

    def _drop_half_a_line(self) -> None:
        """Remove what a process that was killed left of its last row."""
        with writing(self.rows_file, _OUTPUT):
            content = self.rows_file.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with self.rows_file.open("r+b") as file:
                    file.truncate(whole)

    def missing(self, prompts: Mapping[str, str], num_samples: int) -> list[str]:
        """Return the problems that lack an answer.

        Args:
            prompts: By the problem's id.
            num_samples: Answers to each.

        Raises:
            ConfigError: If an answer is there to another prompt.
        """
        for (problem, _), row in self.rows.items():
            if problem in prompts and row["prompt"] != prompts[problem]:
                if self.overwrite:
                    self.rows = {}
                    break
                raise ConfigError(
                    f"`{self.rows_file}` has answers to other prompts, that of problem {problem} "
                    f"first: the data or the template have changed. {_OTHERWISE}"
                )
        return [
            problem
            for problem in prompts
            if any((problem, number) not in self.rows for number in range(num_samples))
        ]

    def begin(self) -> None:
        """Make the files, with the settings: before the first answer is written.

        Raises:
            ConfigError: If the folder cannot be made.
        """
        with made_folder(self.folder, _OUTPUT), writing(self.folder, _OUTPUT):
            if self.rows_file.exists() and self.rows:
                return
            self.rows_file.unlink(missing_ok=True)
            write_json(self.scores_file, {"settings": self.settings}, name=_OUTPUT)

    def add(self, problem: str, prompt: str, texts: Sequence[str]) -> None:
        """Write the answers to one problem behind the others, at once.

        Raises:
            WriteError: If the disk is full.
        """
        new: list[dict[str, Any]] = [
            {"id": problem, "sample": number, "prompt": prompt, "text": text}
            for number, text in enumerate(texts)
        ]
        with (
            writing(self.rows_file, _OUTPUT),
            self.rows_file.open("a", encoding="utf-8", newline="\n") as file,
        ):
            file.write("".join(_line(row) for row in new))
        self.rows |= {(row["id"], row["sample"]): row for row in new}

    def finish(self, rows: Mapping[Key, Mapping[str, Any]], scores: Mapping[str, Any]) -> None:
        """Write the judged rows in place of the plain ones, and the scores beside the settings.

        Raises:
            WriteError: If the disk is full; the answers are still there.
        """
        others = {key: row for key, row in self.rows.items() if key not in rows}
        judged = {**rows, **others}
        write_text(self.rows_file, "".join(map(_line, judged.values())), name=_OUTPUT)
        write_json(self.scores_file, {"settings": self.settings, **scores}, name=_OUTPUT)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite(row), ensure_ascii=False) + "\n"


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    names = [name for name in dict.fromkeys([*wanted, *found])]
    return [
        f"`{name}` was {spelled(found.get(name))} and is {spelled(wanted.get(name))}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
