"""The parts of the report beside tables and plots: samples, sweeps, what was run."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from balora.evaluation.metrics import metric_of, task_metric
from balora.report.study import MAJORITY, Row, Study
from balora.rows import model_of, place_of

_MAX_CHARACTERS = 700
"""Of one text of a sample; what is dropped is said."""
_MAX_SAMPLE_BYTES = 600_000
"""Of all samples: of many methods and conditions each text is shorter."""
_BYTES_A_CHARACTER = 3
"""At most, apart from rare signs."""
_MAX_PROMPTS = 5
"""Of a condition."""


class Sample(NamedTuple):
    """One prompt, and what each method makes of it."""

    prompt: str
    """As the model gets it."""
    gold: str
    """The answer of the data."""
    before: str
    """What the pre-trained model writes."""
    after: dict[str, str]
    """What each method writes, with its first seed."""


class Sweep(NamedTuple):
    """What was tried for one method, with one model."""

    name: str
    """The method's, ``MODEL/METHOD`` of models."""
    metric: str | None
    """Title of the metric that was compared; None where no run has one."""
    fields: tuple[str, ...]
    """That were varied."""
    lines: list[tuple[list[str], str, bool]]
    """Values of the fields, the metric or the error, and whether they were chosen."""


def samples(study: Study) -> dict[str, tuple[str, list[Sample]]]:
    """Return what is around every prompt, and the samples, of each condition that has some.

    They are of the first seed of every method. The template of the prompts is told once.
    """
    found = {}
    num_texts = len(study.conditions) * _MAX_PROMPTS * (len(study.trained) + 3)
    room = min(_MAX_CHARACTERS, _MAX_SAMPLE_BYTES // (_BYTES_A_CHARACTER * max(num_texts, 1)))
    for condition in study.conditions:
        by_prompt: dict[tuple[str, str], Sample] = {}
        for method in study.trained:
            for texts in [*study.details(condition, method, "samples"), []][0][:_MAX_PROMPTS]:
                gold, before, after = (
                    cut(texts.get(name) or "", room) for name in ("gold", "before", "after")
                )
                new = Sample(texts["prompt"], gold, before, {})
                by_prompt.setdefault((new.prompt, gold), new).after[method] = after
        chosen = list(by_prompt.values())[:_MAX_PROMPTS]
        start, end = around([sample.prompt for sample in chosen])
        own = [sample.prompt.removeprefix(start).removesuffix(end).strip("\n") for sample in chosen]
        if chosen:
            found[condition] = (
                cut(f"{start}[...]\n{end}", room) if start or end else "",
                [s._replace(prompt=cut(p, room)) for s, p in zip(chosen, own, strict=True)],
            )
    return found


def around(prompts: Sequence[str]) -> tuple[str, str]:
    """Return the whole lines that all prompts begin with and end with; of one prompt, none."""
    if len({*prompts}) < 2:
        return "", ""
    lines = [prompt.splitlines(keepends=True) for prompt in prompts]
    start = _common(lines)
    end = _common([own[len(start) :][::-1] for own in lines])
    return "".join(start), "".join(reversed(end))


def _common(lines: Sequence[Sequence[str]]) -> list[str]:
    columns = itertools.takewhile(lambda column: len({*column}) == 1, zip(*lines, strict=False))
    return [column[0] for column in columns]


def cut(text: str, room: int = _MAX_CHARACTERS) -> str:
    """Return the beginning of a text longer than `room`, with how much was dropped."""
    if len(text) <= room:
        return text
    return f"{text[:room]} [... {len(text) - room} more characters]"


def sweeps(study: Study) -> list[Sweep]:
    """Return what the sweep tried for each method, of each model, and what was chosen."""
    tried, final = _by_choice(study, study.tried), _by_choice(study, study.rows)
    return [_sweep(study, name, rows, final.get(name, [])) for name, rows in tried.items()]


def _by_choice(study: Study, rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        model = model_of(row["condition"], study.settings.get("models"))
        found.setdefault(place_of(model, row["method"]), []).append(row)
    return found


def _sweep(study: Study, choice: str, rows: Sequence[Row], reported: Sequence[Row]) -> Sweep:
    name = study.settings.get("metric") or task_metric([row["metrics"] for row in rows])
    metric, fields = None if name is None else metric_of(name), _varied(rows)
    final = [row["fields"] for row in reported if not row["error"]]
    lines = []
    for row in rows:
        tried = {field: row["fields"].get(field) for field in fields}
        value = "-" if metric is None else metric.show(row["metrics"].get(name))
        is_chosen = bool(final) and tried == {field: final[0].get(field) for field in fields}
        lines.append(([*map(_text, tried.values())], row["error"] or value, is_chosen))
    return Sweep(choice, metric.title if metric else None, fields, lines)


def _varied(rows: Sequence[Row]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in rows for name in row["fields"])
    return tuple(n for n in names if len({_text(row["fields"].get(n)) for row in rows}) > 1)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def facts(study: Study) -> dict[str, str]:
    """Return what was run, name by name: methods, seeds, time, versions, commit."""
    finished = [row for row in (*study.rows, *study.tried) if row["error"] is None]
    versions = [row.get("versions") or {} for row in finished]
    found = {
        "methods": ", ".join(name for name in study.methods if name != MAJORITY),
        "conditions": ", ".join(name for name in study.conditions if name),
        "seeds": ", ".join(map(str, study.seeds)),
        "cells that have not run": ", ".join(study.missing),
        "baseline": study.baseline or "",
        "seconds per cell": _spread([row["seconds"] for row in finished if row.get("seconds")]),
        "evaluated in": _distinct(finished, "dtype"),
        "commit": _distinct(finished, "commit"),
        **{name: _distinct(versions, name) for name in itertools.chain(*versions)},
    }
    return {name: text for name, text in found.items() if text}


def failed(study: Study) -> list[tuple[str, str]]:
    """Return the key and the sentence of every cell that failed."""
    return [(r["cell"], r["error"]) for r in (*study.tried, *study.rows) if r["error"] is not None]


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    middle, total = statistics.median(seconds), sum(seconds)
    return f"median {middle:.1f}, longest {max(seconds):.1f}, together {total / 3600:.2f} hours"


def _distinct(rows: Iterable[Row], name: str) -> str:
    """Return what the cells have in common, or each value with how many cells have it."""
    counts = Counter(str(row[name]) for row in rows if row.get(name) is not None)
    if len(counts) < 2:
        return "".join(counts)
    return ", ".join(f"{value} ({number} cells)" for value, number in counts.items())
