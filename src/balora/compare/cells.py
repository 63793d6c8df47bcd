"""The cells of a comparison: one run each, with a key, a folder and everything it needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from balora.compare.bench_settings import WITHOUT_EFFECT
from balora.files import write_json
from balora.rows import cell_key
from balora.state import damaged, read_json

Stage = Literal["choose", "final"]

_PLACES = ("output_dir", "disable_tqdm")
"""Fields of a run that do not change its results."""
_MADE = ("model_name_or_path", "dataset_name", "eval_dataset_name")
"""Fields that name what the comparison itself has written, where it has."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a method under a condition with a seed, trained and evaluated."""

    stage: Stage
    """``choose``: a value of the sweep is tried; ``final``: it is reported."""
    condition: str
    """Name of the condition, empty when there are none."""
    method: str
    """Name of the method."""
    seed: int | None
    """Seed of the run; None for the pre-trained model, which is not trained."""
    fields: dict[str, Any]
    """The method's own fields, those that were chosen among them."""
    recipe: dict[str, Any]
    """What `balora train` takes; of the pre-trained model what names it and the data."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """How text generation is evaluated: the fields of `CompareConfig` by name."""
    lab: dict[str, Any] | None = None
    """The lab's settings, where model and data are the lab's."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """The values that were to choose from, and how; of a run that chooses, those it tries."""

    bench: dict[str, Any] = field(default_factory=dict)
    """The settings of the benchmarks that it is asked; a run that chooses is asked none."""

    launcher: str | None = None
    """What starts the processes of the run; with several, a step has more rows."""

    contents: dict[str, str] = field(default_factory=dict)
    """What tells the contents of each file of rows or text on disk, by what names it."""

    @property
    def is_base(self) -> bool:
        """True for the pre-trained model, which is evaluated only."""
        return self.seed is None

    @property
    def key(self) -> str:
        """Return what makes a cell this one: ``noise/lora+kl/seed-0``."""
        key = cell_key(self.condition, self.method, self.seed)
        if self.stage != "choose":
            return key
        tried = self.sweep["values"]
        values = ",".join(f"{name}={_short(value)}" for name, value in tried.items())
        return f"{self.stage}/{key}/{values}"

    @property
    def slug(self) -> str:
        """Return a name for the cell's folder; distinct also where case does not count."""
        return slug_of(self.key)

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the results, flat; a finished cell with another is stale.

        What a sweep chooses is left out, because the values it chooses from are in.
        """
        made, lab = set(_PLACES), dict(self.lab or {})
        if self.lab is not None:
            made |= set(_MADE)
            # the entry of the cache, a hash of the text that the code of its time made
            lab["model"] = Path(self.recipe.get("model_name_or_path", "")).parent.name
        if self.stage == "choose":
            made |= set(_MADE[1:])
        else:
            made |= set(self.sweep.get("values", ()))
        recipe = {name: value for name, value in self.recipe.items() if name not in made}
        bench = {name: value for name, value in self.bench.items() if name not in WITHOUT_EFFECT}
        rest: dict[str, Any] = {
            "evaluation": self.evaluation,
            "lab": lab,
            "sweep": self.sweep,
            "bench": bench,
        }
        if self.launcher is not None:
            rest["launcher"] = self.launcher
        return flat({**recipe, **rest, "contents of": self.contents})

    def write(self, folder: Path) -> None:
        """Write ``cell.json``."""
        write_json(folder / "cell.json", dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Cell:
        """Read what `write` wrote.

        Raises:
            ConfigError: If there is none, or it is damaged.
        """
        file, fix = folder / "cell.json", "`balora compare` writes it again when it runs the cell."
        try:
            return cls(**read_json(file, fix, fields={"method": str, "recipe": dict}))
        except TypeError as error:
            raise damaged(file, "is damaged: it holds no cell", fix) from error


def slug_of(key: str) -> str:
    """Return a name for a folder; distinct for each key, also where case does not count."""
    readable = re.sub(r"[^A-Za-z0-9.+=-]+", "_", key.replace("/", "--"))[:80]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted names: ``lab.noise_rate``."""
    found: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return one half sentence for each name of two flat mappings that has another value."""
    missing = object()
    return [
        f"`{name}` is {_said(there, name)} there and {_said(here, name)} here"
        for name in dict.fromkeys((*there, *here))
        if there.get(name, missing) != here.get(name, missing)
    ]


def _said(mapping: Mapping[str, Any], name: str) -> str:
    return json.dumps(mapping[name], ensure_ascii=False) if name in mapping else "not set"
