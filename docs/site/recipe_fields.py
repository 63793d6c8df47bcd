"""The page of every field of a recipe, from the packaged JSON schemas."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from balora.config import ClassificationConfig
from balora.recipes.kinds import GENERATION

_SCHEMAS = Path(__file__).resolve().parents[2] / "src" / "balora" / "schemas"
_HEAD = """\
# Fields of a recipe

A recipe is a flat YAML file. Each field is also an option of the command: `learning_rate: 1e-4`
in the file is `--learning_rate 1e-4` in a shell. `balora train --help_fields WORD` shows the fields
with a word in them. `balora schema` prints the JSON schema that this page is made of; an editor
completes and checks a recipe by it.

"""


def recipe_page() -> str:
    """Return the page, made of the schemas of `balora train`, `compare` and `lab`."""
    train = _schema("train")
    merged = {name: _whole(name, train) for name in train["properties"]}
    pieces = [_HEAD]
    listed: set[str] = set()
    for title, names in _sections(merged):
        listed |= set(names)
        pieces.append(f"## {title}\n\n{_table({name: merged[name] for name in names})}\n")
    rest = {name: one for name, one in merged.items() if name not in listed}
    note = "They are transformers' and trl's own; the sentences are theirs.\n"
    pieces.append(f"## Training arguments\n\n{note}\n{_table(rest)}\n")
    compare = _schema("compare")["properties"]
    for title, key in (("A comparison: `compare:`", "compare"), ("The lab: `lab:`", "lab")):
        pieces.append(f"## {title}\n\n{_table(compare[key]['properties'])}\n")
    return "\n".join(pieces)


def _schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _whole(name: str, train: Mapping[str, Any]) -> dict[str, Any]:
    """Return a field with the words of each kind, where generation and classification differ."""
    one = dict(train["properties"][name])
    for branch, kind in (("else", "generation"), ("then", "classification")):
        own = train[branch]["properties"].get(name)
        if isinstance(own, dict) and "description" in own:
            words = own["description"].partition("\n\n")[2]
            if words != str(one.get("description", "")).partition("\n\n")[2]:
                one.setdefault("by_kind", []).append(f"{kind}: {words}")
    return one


def _sections(known: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    titles = {
        "model": "Model",
        "quantization": "Quantised bases",
        "adapter": "Adapter",
        "data": "Data of text generation",
        "run": "The run",
        "stopping": "When to stop",
        "objective": "Objective",
        "replay": "Replay",
    }
    seen: set[str] = set()
    for part, owner in GENERATION.parts.items():
        names = [one.name for one in fields(owner) if one.name in known]
        seen |= set(names)
        yield titles.get(part, part.capitalize()), names
        if part == "data":
            own = [one.name for one in fields(ClassificationConfig) if one.name in known]
            yield "Data of classification and regression", [n for n in own if n not in seen]


def _table(known: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| Field | |", "|---|---|"]
    for name, one in known.items():
        sentence, _, words = str(one.get("description", "")).partition("\n\n")
        kinds = [words, *one.get("by_kind", [])]
        below = "".join(f"<br><small>{_cell(word)}</small>" for word in kinds if word)
        rows.append(f'| <span id="{name}"></span>`{name}` | {_cell(sentence)}{below} |')
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Return text for a cell: escaped but for literals, on one line."""
    parts = " ".join(text.split()).replace("|", "&#124;").split("`")
    return "`".join(
        part if place % 2 else html.escape(part, quote=False).replace("&amp;#", "&#")
        for place, part in enumerate(parts)
    )
