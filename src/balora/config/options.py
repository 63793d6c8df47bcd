"""The options of the commands on finished runs that are no fields of a recipe.

Like the parts of a recipe: type, range and one sentence stand on the field, and the command line is
made from them. Importing this module must not import torch.
"""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, cast

from balora.config.data import RunTemplate
from balora.config.fields import (
    accepts,
    describe,
    field_hints,
    missing_path,
    rules_of,
    type_problem,
)
from balora.config.model import Dtype
from balora.config.parts import Count, Seed
from balora.config.quantization import SCHEMES
from balora.config.rules import Interval, PathTo
from balora.config.words import spelled_default
from balora.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Revised:
    """Which version of the base is meant."""

    revision: str | None = None
    """Branch, tag or commit of the base; null takes the recipe's where it trains that name."""

    load_in_4bit: bool | None = None
    """Whether the base is quantised to 4 bits (bitsandbytes); null takes the recipe's."""

    load_in_8bit: bool | None = None
    """Whether the base is quantised to 8 bits (bitsandbytes); null takes the recipe's."""

    torchao: Literal["int8_weight_only"] | None = None
    """Quantise the weights of the base to 8 bits (torchao); null takes the recipe's."""


@dataclass(frozen=True, kw_only=True)
class _OfABase(_Revised):
    """Which model the runs belong to."""

    base: Annotated[str, PathTo("model")]
    """The pre-trained model, a Hugging Face hub id or a local folder."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """How models are loaded that are not trained."""

    dtype: Dtype | None = None
    """Type of the weights; null takes the recipe's, without a recipe float32."""

    attn_implementation: str | None = None
    """Attention kernel, such as sdpa; null takes the recipe's."""


@dataclass(frozen=True, kw_only=True)
class _Measured(_OfABase, _Loaded):
    """How models are loaded that are measured."""

    json: Annotated[str | None, PathTo("new file")] = None
    """Also write the metrics to this file, as JSON."""

    card: bool = True
    """Whether the metrics go into the model card of each run, README.md, too."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(_Measured):
    """How runs are measured."""

    retention_file: Annotated[str | None, PathTo("file")] = None
    """Plain text whose loss is measured: text that the model should retain."""

    num_rows: Count | None = None
    """At most this many rows of a data set."""

    max_new_tokens: Count | None = None
    """Longest answer to generate; null means 256."""

    batch_size: Count = 16
    """Rows in a batch."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(_Measured):
    """Which models are asked, and how they are loaded."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions(_Revised, _Loaded):
    """Which texts are read, and how a run answers them."""

    base: Annotated[str | None, PathTo("model")] = None
    """The pre-trained model of an adapter; null takes the one that the adapter names."""

    input: Annotated[str | None, PathTo("file")] = None
    """A file of texts: .txt with one a line, .jsonl, .json, .csv, .tsv or .parquet."""

    output: Annotated[str | None, PathTo("new file")] = None
    """A new file, .jsonl or .csv: the columns of the input, and the predictions."""

    overwrite: bool = False
    """Replace the file of `--output` if it exists."""

    text_column: str | None = None
    """Column with the text or the prompt; null takes the recipe's, or a usual name."""

    text_pair_column: str | None = None
    """Column with the second text of a pair, or with the input of an instruction."""

    batch_size: Count = 16
    """Rows in a batch."""

    prompt_template: RunTemplate = None
    """Text with {instruction}, or alpaca, none or chat; null takes the one the run had."""

    max_new_tokens: Count | None = None
    """Longest text to generate; null means 256."""

    temperature: Annotated[float, Interval(ge=0)] | None = None
    """Of generated text; null and 0 take the likeliest token every time."""

    seed: Seed | None = None
    """Of what is drawn at a temperature above 0; null means 0."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(_OfABase):
    """What is written of a run, and where."""

    rank: Count | None = None
    """Truncate the adapter to this rank, and print the error."""

    merge: bool = False
    """Merge the adapter into the weights of the base."""

    to: Annotated[str | None, PathTo("folder")] = None
    """The new folder; null means OUT-export, OUT-rankR or OUT-merged."""

    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.merge:
            raise ConfigError(
                f"`--rank` is {self.rank} and `--merge` is set, but a merged model has no rank; "
                "leave one of them out."
            )


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Which model writes the texts, and how many of which kind."""

    model_name_or_path: Annotated[str, PathTo("model")]
    """The pre-trained model, a Hugging Face hub id or a local folder."""

    output: Annotated[str, PathTo("new file")]
    """The new file, JSON Lines: text, input_ids and labels of each text."""

    model_revision: str = "main"
    """Branch, tag or commit of the model on the hub."""

    dtype: Dtype = "float32"
    """Type the weights are loaded in; auto takes the checkpoint's own."""

    replay_num_texts: Count = 2000
    """Texts to generate."""

    replay_length: Annotated[int, Interval(ge=2)] = 128
    """Tokens of a text at most, the start included."""

    replay_seed: Seed = 0
    """Seed of the texts."""

    replay_prompt: str | None = None
    """What the texts begin with: null for the beginning of a text, chat, or a text."""

    overwrite: bool = False
    """Replace the file if it exists."""


class Once(argparse.Action):
    """An option that is given at most once, and not empty."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Take the value, or refuse it."""
        if getattr(namespace, self.dest, None) is not None:
            raise ConfigError(f"`{option_string}` is given twice; keep one.")
        if not str(values).strip():
            raise ConfigError(f"`{option_string}` is empty; give it a value or leave it out.")
        setattr(namespace, self.dest, values)


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """Add the fields of a dataclass to a parser, each with its sentence, range and default."""
    hints, required = field_hints(options), _required(options)
    for entry in describe(options):
        if entry.default is False:
            parser.add_argument(f"--{entry.name}", action="store_true", help=entry.sentence)
            continue
        is_unset = entry.name in required or entry.default is None
        default = "" if is_unset else f"; {spelled_default(entry.default)}"
        bare: dict[str, Any] = {"nargs": "?", "const": "true"}  # `--flag` is `--flag true`
        parser.add_argument(
            f"--{entry.name}",
            action=Once,
            **(bare if accepts(hints[entry.name], bool) else {}),
            required=entry.name in required,
            metavar=_metavar(hints[entry.name]),
            help=f"{entry.sentence} ({entry.type}{default})",
        )


def read_options(options: type[T], given: argparse.Namespace) -> T:
    """Return what was given on the command line as an instance of `options`.

    Raises:
        ConfigError: With every value that does not fit its field, and every file that is missing.
    """
    from balora.config.values import parse_text

    hints = field_hints(options)
    texts = {name: text for name in hints if (text := getattr(given, name)) is not None}
    values = {
        name: parse_text(text, hints[name]) if isinstance(text, str) else text
        for name, text in texts.items()
    }
    values = {name: value for name, value in values.items() if value is not None}
    problems = [
        f"`--{name}` {problem}"
        for name, value in values.items()
        if (problem := type_problem(value, hints[name]) or missing_path(value, hints[name]))
    ]
    problems += [f"`--{name}` is missing" for name in sorted(_required(options) - values.keys())]
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return options(**values)


def schemes(options: _OfABase) -> dict[str, Any]:
    """Return what the command line says on how the base is quantised, by field."""
    return {name: getattr(options, name) for name in SCHEMES}


def _metavar(annotation: Any) -> str:
    paths = [rule.what for rule in rules_of(annotation) if isinstance(rule, PathTo)]
    if paths:
        return paths[0].split()[-1].upper()
    return "N" if accepts(annotation, int) else "VALUE"


def _required(options: type) -> set[str]:
    return {entry.name for entry in fields(cast(Any, options)) if entry.default is MISSING}
