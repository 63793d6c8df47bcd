"""The settings of a comparison: what stands under `compare:` in its recipe.

One sentence below each field; the class checks itself and lists every problem at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from balora.compare.bench_settings import BENCH, part_problems
from balora.compare.methods import DEFAULT_METHODS, Method, parse_method
from balora.config.fields import field_problems
from balora.config.parts import Count, Seed, read_part, refuse
from balora.config.rules import Command, Distinct, Form, Interval, Name, NotEmpty, PathTo
from balora.config.words import suggestion
from balora.errors import ConfigError
from balora.evaluation.metrics import asked_metric
from balora.rows import BASE

EVERY = "*"
"""In `sweep`: every method."""

Values = Annotated[list[Any], NotEmpty("list the values to try"), Distinct()]
"""Of a field, to choose from."""
Swept = Annotated[dict[str, Values], NotEmpty("name a field with its values")]

Columns = Annotated[list[str], NotEmpty("name one or more"), Distinct()]
"""Of a summary."""

_Name = Annotated[str, Name()]
_SOME = NotEmpty("name one or more")
_METHODS = Form("[lora, lora+kl=0.3, balora]")
_SETTINGS = Form("{lora: {learning_rate: 1e-3}}")
_CONDITIONS = Form("{clean: {}, noisy: {label_noise: 0.2}}")
_MODELS = Form("{small: {model_name_or_path: HuggingFaceTB/SmolLM2-135M}}")
_BENCH = Form("{benchmarks: [gsm8k, math], num_rows: 200}")
_SUMMARY = Form("{Table 2: [gsm8k, math, humaneval]}")
_REFERENCE = Form("{source: the paper, values: {MODEL: {lora: {gsm8k: 42.5}}}}")
_SWEEP = Form("{lora: {learning_rate: [1e-4, 1e-3]}}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """Which methods are compared, under which conditions, on which seeds, and how.

    Raises:
        ConfigError: If a value has the wrong type or cannot work; all problems in one message.
    """

    methods: Annotated[list[str] | None, _SOME, Distinct(), _METHODS] = None
    """Methods by name (lora+kl, balora-svd, ...); null means base (generation), full to balora."""

    seeds: Annotated[list[Seed] | None, _SOME, Distinct(), Form("[0, 1, 2]")] = None
    """Seeds that every method runs with; null means 0, 1, 2."""

    baseline: str | None = None
    """Method that the others are compared with; null means lora, else the first that trains."""

    settings: Annotated[dict[_Name, dict[str, Any]] | None, _SETTINGS] = None
    """Extra fields per method. To define a method, give it a name and a `method` to build on."""

    conditions: Annotated[dict[_Name, dict[str, Any] | None] | None, NotEmpty(), _CONDITIONS] = None
    """Named sets of fields that override the recipe's (also `lab`); every method runs in each."""

    models: Annotated[dict[_Name, dict[str, Any]] | None, NotEmpty(), _MODELS] = None
    """Named base models, each with its fields; every method runs on each, in each condition."""

    bench: Annotated[dict[str, Any] | None, NotEmpty(), _BENCH] = None
    """Benchmarks that every cell is asked, as by `balora bench`; by option, --bench.FIELD."""

    summary: Annotated[dict[_Name, Columns] | None, NotEmpty(), _SUMMARY] = None
    """Named tables across conditions: their columns, and last the average of these."""

    reference: Annotated[dict[str, Any] | None, NotEmpty(), _REFERENCE] = None
    """Results that others report, with their source; shown beside `summary`, never ranked."""

    sweep: Annotated[dict[str, Swept] | None, _SWEEP] = None
    """Values to try per method (* is every one) and model, by field; held-out rows decide."""

    held_out_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.15
    """Share of the training rows that is held out to choose the sweep's values."""

    sweep_tolerance: Annotated[float, Interval(ge=0)] = 0.0
    """Distance from the best metric that counts as equal; the first of equal values is chosen."""

    metric: str | None = None
    """Metric that decides the sweep and that the table shows first; null means the task's."""

    jobs: Count = 1
    """Cells that run at the same time; of a worker, in that worker."""

    launcher: Annotated[str | None, Command()] = None
    """Command that starts a cell's processes (torchrun --standalone --nproc_per_node 2)."""

    devices: Count = 1
    """CUDA devices that a cell gets; with `launcher`, one for each of its processes."""

    retention_file: Annotated[str | None, PathTo("file")] = None
    """Plain text whose loss is measured, for text generation: text that the model should retain."""

    num_rows: Count | None = None
    """At most this many rows are evaluated on, for text generation."""

    max_new_tokens: Count = 256
    """Longest answer to generate."""

    eval_batch_size: Count = 16
    """Rows in a batch of the evaluation, for text generation."""

    keep_models: bool = True
    """Whether the trained models are retained; their metrics always are."""

    def __post_init__(self) -> None:
        problems = field_problems(
            self,
            self._method_problems,
            self._sweep_problems,
            self._metric_problems,
            self._model_problems,
            self._bench_problems,
        )
        refuse("compare", problems)

    @property
    def own_names(self) -> tuple[str, ...]:
        """The methods that `settings` defines."""
        return tuple(name for name, entry in (self.settings or {}).items() if "method" in entry)

    def method(self, name: str) -> Method:
        """Return what a name among `methods` stands for.

        Raises:
            ConfigError: If it is no method.
        """
        if name in self.own_names:
            return parse_method(str((self.settings or {})[name]["method"]))
        return parse_method(name, self.own_names)

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return the fields of a method's own, without its `method`."""
        entry = self._entry(self.settings, name)
        return {field: value for field, value in entry.items() if field != "method"}

    def swept(self, name: str) -> dict[str, list[Any]]:
        """Return the lists of values that are tried for a method, by field; none for base.

        What `*` sweeps leaves alone a field that the method's own `settings` give; what the
        method's own entry sweeps goes before them.
        """
        if self.method(name).start == BASE:
            return {}
        own = self.settings_of(name)
        of_every = {k: v for k, v in ((self.sweep or {}).get(EVERY) or {}).items() if k not in own}
        return {**of_every, **self._entry(self.sweep, name)}

    def idle_entries(self) -> list[str]:
        """Return half a sentence for each entry of `settings` and `sweep` that is of no method."""
        places = {"settings": self.settings, "sweep": self.sweep}
        methods = self.methods or DEFAULT_METHODS
        return [
            f"`{place}` of `{entry}` is of none of the methods {', '.join(methods)}"
            for place, entries in places.items()
            for entry in entries or {}
            if entry != EVERY and all(self._key(entries, name) != entry for name in methods)
        ]

    def _entry(self, entries: Mapping[Any, Any] | None, name: str) -> Mapping[str, Any]:
        """Return what an entry of `settings` or `sweep` gives a method, however it spells it."""
        return (entries or {}).get(self._key(entries, name)) or {}

    def _key(self, entries: Mapping[Any, Any] | None, name: str) -> str | None:
        """Return the name under which `entries` have a method: `lora+kl` is `lora+consistency`."""
        if not entries or name in entries or name in self.own_names:
            return name
        wanted = parse_method(name, self.own_names)
        others = (key for key in entries if key != EVERY and key not in self.own_names)
        return next((key for key in others if parse_method(key, self.own_names) == wanted), None)

    def _method_problems(self) -> list[str]:
        methods = self.methods if self.methods is not None else list(DEFAULT_METHODS)
        problems = self._setting_problems()
        if problems:
            return problems  # what a method is cannot be told
        meanings: dict[Method, str] = {}
        for name in dict.fromkeys(methods):
            try:
                meaning = self.method(name)
            except ConfigError as error:
                problems.append(f"`methods`: {str(error).rstrip('.')}")
                continue
            if name not in self.own_names and meaning in meanings:
                problems.append(
                    f"`methods` names {meanings[meaning]} and {name}, which are the same; keep one"
                )
            elif name not in self.own_names:
                meanings[meaning] = name
        if self.baseline is not None and self.baseline not in methods:
            problems.append(
                f"`baseline` is {self.baseline}, which is none of the methods "
                f"{', '.join(methods)}{suggestion(self.baseline, methods)}; name one of them "
                "(`--baseline`)"
            )
        return problems

    def _setting_problems(self) -> list[str]:
        problems = []
        for name, entry in (self.settings or {}).items():
            where = f"`settings` of `{name}`"
            if name == EVERY:
                problems.append(
                    f"{where}: every method has the fields of the recipe; set them there"
                )
            elif name == BASE:
                problems.append(f"{where}: the pre-trained model is not trained; leave it out")
            elif "method" in entry:
                problems += _definition_problems(name, entry["method"])
            elif (found := _parse_problem(name, self.own_names)) is not None:
                problems.append(
                    f"{where}: {found}; a method of your own must give the `method` it is made of"
                )
        return problems or self._twice("settings", self.settings)

    def _twice(self, place: str, entries: Mapping[Any, Any] | None) -> list[str]:
        """Refuse two entries of one method, of which one would be left out."""
        problems, seen = [], dict[Method, str]()
        for name in entries or {}:
            if name == EVERY or _parse_problem(name, ()) is not None:
                continue
            first = seen.setdefault(parse_method(name, self.own_names), name)
            if first != name:
                problems.append(f"`{place}` of `{first}` and `{name}` are of one method; keep one")
        return problems

    def _sweep_problems(self) -> list[str]:
        problems = []
        known = [EVERY, *(self.methods or DEFAULT_METHODS), *(self.settings or ())]
        for name in self.sweep or {}:
            where = f"`sweep` of `{name}`"
            if name == BASE:
                problems.append(f"{where}: the pre-trained model is not trained; leave it out")
            elif name not in known and _parse_problem(name, self.own_names) is not None:
                problems.append(f"{where} is no method{suggestion(name, known)}")
        return problems or self._twice("sweep", self.sweep)

    def _model_problems(self) -> list[str]:
        problems = []
        for name, entry in (self.models or {}).items():
            where = f"`models`, `{name}`"
            if entry.get("model_name_or_path") is None:
                problems.append(f"{where} names no `model_name_or_path`; add it")
            problems += [
                f"{where} and `conditions`, `{condition}` both set `{field}`; keep one of them"
                for condition, fields in (self.conditions or {}).items()
                for field in entry
                if field in (fields or {}) and field != BENCH
            ]
        return problems

    def _bench_problems(self) -> list[str]:
        return [] if self.bench is None else part_problems("`bench`", self.bench)

    def _metric_problems(self) -> list[str]:
        return [] if self.metric is None else _metric_problems(self.metric)


def _parse_problem(name: str, own: Collection[str]) -> str | None:
    try:
        parse_method(name, own)
    except ConfigError as error:
        return str(error).rstrip(".")
    return None


def _definition_problems(name: str, method: Any) -> list[str]:
    """Say what is wrong with the `method` of an entry of `settings`."""
    where = f"`settings` of `{name}`"
    if _parse_problem(name, ()) is None:
        return [f"{where} has a `method`, but the name is one already; leave `method` out"]
    if not isinstance(method, str):
        return [f"{where}: `method` must be text, got {method!r}"]
    if method == BASE:
        return [f"{where}: `method` is {BASE}, which is not trained; name it in `methods`"]
    found = _parse_problem(method, ())
    return [] if found is None else [f"{where}: `method`: {found}"]


def _metric_problems(name: str) -> list[str]:
    try:
        metric = asked_metric(name)
    except ConfigError as error:
        return [f"`metric`: {str(error).rstrip('.')}"]
    if metric.higher_is_better is None:
        return [f"`metric` is {name}, of which neither more nor less is better; name another"]
    return []


def compare_config(
    mapping: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> CompareConfig:
    """Return the settings under `compare:` with those of the command line in their place.

    Args:
        mapping: As it stands in the recipe.
        given: Values that replace them; None takes a field out.

    Raises:
        ConfigError: If a key is unknown, or a value cannot work.
    """
    merged = {**mapping, **(given or {})}
    left_out = {name for name, value in (given or {}).items() if value is None}
    asked = {name: value for name, value in merged.items() if name not in left_out}
    return read_part(CompareConfig, asked, part="compare", of="`compare`")
