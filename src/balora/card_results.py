"""Results in a model card: the entries of the hub's model index, and evaluations that are added.

An evaluation has a section of its own in the card, by the command that made it and the data that it
is on. Measured anew on the same data it is replaced; all else in the card stays as it is, whoever
wrote it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from balora.errors import BaloraError
from balora.files import read_text, write_text

CARD_FILE = "README.md"
_NO_RESULT = ("num_rows", "of the majority class")
"""What the ends of names say that are no result of the model."""
_DIGITS = 6
"""Significant ones of a result."""
_BEFORE = "## How to load it"
"""The heading that results stand above; without it they stand last."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a command measured of a run on one data set, as the card of the run has it."""

    command: str
    """Of balora: eval or bench."""
    data: str
    """A data set or a benchmark."""
    part: str | None = None
    """What of it, such as a split; None is all."""
    num_rows: int | None = None
    """At most this many rows of a data set, from the first on; None is all."""
    heads: Sequence[str]
    """Of the table's columns, after that of the names."""
    rows: Iterable[Sequence[Any]]
    """Of the table; each begins with its name."""
    how: str
    """The sentence after the table goes on with it: ``in float32``."""
    results: Sequence[EvalResult]
    """Of the model index."""

    @property
    def name(self) -> str:
        """What it is on."""
        return f"{self.data} ({self.part})" if self.part else self.data

    @property
    def section(self) -> str:
        """The Markdown: heading, table, and how it was measured."""
        table = table_section(f"Evaluation on {self.name}", self.heads, self.rows)
        rows = f"the first {self.num_rows} rows of a data set, " if self.num_rows else ""
        return f"{table}\n\nBy `balora {self.command}`, {rows}{self.how.rstrip('.')}."


def results_of(metrics: Mapping[str, Any], *, data: str, is_classifier: bool) -> list[EvalResult]:
    """Return metrics of a model as the hub's model index has them.

    Args:
        metrics: By name; what is before a colon names the set. What is no number, counts rows, is
            of the majority class or is the loss of training is left out.
        data: Their data set, a hub id or a file.
        is_classifier: Whether the model classifies, or writes text.
    """
    slug = re.sub(r"[^\w.-]+", "-", Path(data).name).strip("-.") or "data"
    kinds = {name: name.removeprefix("eval_").rpartition(": ")[2] for name in metrics}
    return [
        EvalResult(
            task_type="text-classification" if is_classifier else "text-generation",
            dataset_type=data if is_hub_id(data) else slug,
            dataset_name=data,
            metric_type=kinds[name],
            metric_name=name,
            metric_value=float(f"{value:.{_DIGITS}g}"),
        )
        for name, value in metrics.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and not name.endswith(_NO_RESULT)
        and kinds[name] != "loss"
        and not name.startswith("before: ")
    ]


def table_section(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a section of Markdown: the heading and a table, whose rows begin with their names."""
    cells = [["", *heads], ["---"] * (len(heads) + 1), *rows]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(map(str, one))} |" for one in cells)])


def add_to_card(run: Path, evaluation: Evaluation) -> str | None:
    """Add an evaluation to the card of a run, in place of an earlier one on the same data.

    A card that cannot be read as one, or written, is left as it is; the log says why.

    Args:
        run: A folder, which has a card or not.
        evaluation: What was measured.

    Returns:
        Where the card is; ``None`` where nothing was written.
    """
    path = run / CARD_FILE
    if not path.is_file():
        return None
    try:
        card = ModelCard(read_text(path, "the model card"))
        about: Any = card.data
        results = [*(about.eval_results or []), *evaluation.results]
        if results:
            known = {(one.dataset_name, one.metric_name): one for one in results}
            about.eval_results = list(known.values())
            about.model_name = about.model_name or run.resolve().name
        card.text = _with_section(card.text, evaluation)
        write_text(path, str(card), name="the model card")
    except (BaloraError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        _log.warning("the metrics are not in the model card `%s`: %s", path, reason)
        return None
    return str(path)


def cards_line(written: Iterable[str | None]) -> list[str]:
    """Return the line that says which cards were written, none where there are none."""
    paths = [path for path in written if path is not None]
    return [f"The metrics are in the model card: {', '.join(paths)}."] if paths else []


def _with_section(text: str, evaluation: Evaluation) -> str:
    """Return the text of a card with a section between marks, in place of the one it has."""
    name = re.sub(r"-{2,}|[<>]", "-", evaluation.name)  # two dashes would end the comment
    mark = f"balora {evaluation.command}"
    start, end = f"<!-- {mark}: {name} -->", f"<!-- {mark} ends: {name} -->"
    marked = f"{start}\n{evaluation.section}\n{end}"
    old = re.compile(re.escape(start) + ".*?" + re.escape(end), re.S)
    if old.search(text):
        return old.sub(lambda _: marked, text, count=1)
    head, heading, rest = text.partition(f"\n{_BEFORE}")
    return f"{head.rstrip()}\n\n{marked}\n" + (f"\n{heading.lstrip()}{rest}" if heading else "")


def is_hub_id(name: str) -> bool:
    """Say whether a name can only be one of the hub: no file here has it."""
    if Path(name).exists() or " " in name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
