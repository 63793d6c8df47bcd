"""Write the quickstart's data: disjoint training and test problems, and text to retain.

    python -m balora.lab.quickstart --output DIR --seed 0

Writes ``train.jsonl`` and ``test.jsonl`` (rows of instruction and output), ``retention.txt``
(text of the kind that the tiny model was pre-trained on, held out from it; the seed must be that
of the pre-training) and ``data_log.json``. The defaults are those of the files in the package.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from balora.lab.corpus import CorpusSettings, build_corpus
from balora.lab.problems import Problem
from balora.lab.settings import TaskSettings
from balora.lab.task import draw_task, jsonl


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartSettings:
    """What decides the quickstart's data."""

    seed: int = 0
    """Draws the problems, and the world that the retention text tells of."""
    num_train: int = 1500
    """Rows to train on."""
    num_test: int = 150
    """Held-out rows."""
    max_steps: int = 2
    """Things that happen in a problem at most."""


def quickstart_problems(settings: QuickstartSettings) -> tuple[list[Problem], list[Problem]]:
    """Return the training and the test problems; none occurs in both, in whatever words."""
    task = TaskSettings(
        task_seed=settings.seed,
        num_train=settings.num_train,
        num_test=settings.num_test,
        max_problem_steps=settings.max_steps,
    )
    return draw_task(task)


def quickstart_files(settings: QuickstartSettings) -> dict[str, str]:
    """Return the text of every file by its name; the same settings give the same text."""
    train, test = quickstart_problems(settings)
    corpus = build_corpus(CorpusSettings(seed=settings.seed))
    log = {
        "seed": settings.seed,
        "command": f"python -m balora.lab.quickstart --output DIR --seed {settings.seed}",
        "settings": asdict(settings),
    }
    return {
        "train.jsonl": jsonl(problem.row() for problem in train),
        "test.jsonl": jsonl(problem.row() for problem in test),
        "retention.txt": corpus.held_out_text(),
        "data_log.json": json.dumps(log, indent=1) + "\n",
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, help="where the files go")
    parser.add_argument("--seed", type=int, default=QuickstartSettings().seed)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, text in quickstart_files(QuickstartSettings(seed=options.seed)).items():
        (options.output / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
