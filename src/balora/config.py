"""The settings of a run, one dataclass per part of a recipe. Standard library only.

Each field carries one sentence below it. It is the only description: `describe` reads it from here
for the command line's help. Each class checks itself and lists every problem at once.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from balora.errors import ConfigError
from balora.field_rules import Form, Interval, Named, NotEmpty, PathTo, Pattern
from balora.field_types import (
    FieldDescription,
    describe,
    field_hints,
    field_problems,
    given_problems,
    suggestion,
)

__all__ = [
    "AdapterConfig",
    "BALoraConfig",
    "DataConfig",
    "FieldDescription",
    "ModelConfig",
    "RunConfig",
    "StoppingConfig",
    "describe",
]

AdapterInit = Literal["pissa", "lora", "olora", "corda", "gaussian", "orthogonal", "mica"]
PissaSvd = Literal["randomized", "exact"]
SvdDenominator = Literal["nuclear", "frobenius"]
Schedule = Literal["constant", "iclr2026"]
Space = Literal["logits", "features"]
Method = Literal["full", "lora", "pissa", "olora", "mica", "balora"]
Preset = Literal["paper", "iclr2026"]
Task = Literal["nlg", "nlu"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
OverlongRows = Literal["error", "drop"]

Coefficient = Annotated[float, Interval(ge=0)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # that NumPy takes
Count = Annotated[int, Interval(ge=1)]

_FRACTION = Interval(gt=0, le=1, hint="write a whole number to count singular values")
_TARGETS = Form("[q_proj, v_proj]")

COEFFICIENTS = ("consistency_coef", "diversity_coef", "svd_coef")
GENERATION_FIELDS = (
    "temperature",
    "entropy_top_k",
    "svd_variance_coef",
    "svd_denominator",
    "svd_max_tokens",
)
"""Fields of the objective that act in text generation only."""
PISSA_FIELDS = ("pissa_svd", "pissa_oversampling", "pissa_power_iterations", "pissa_seed")
PLAIN_STARTS = ("lora", "gaussian", "orthogonal", "mica")
"""Values of `adapter_init` with which the update of a new adapter is zero; the others are anchored:
a frozen copy of the start is taken away from it."""

_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    # Bias-Aware Low-Rank Adaptation, Eq. 13 (nlg: the defaults of the class) and Eq. 9 (nlu)
    ("paper", "nlg"): {},
    ("paper", "nlu"): {
        "consistency_coef": 1e-4,
        "diversity_coef": 4e-4,
        "svd_coef": 1e-4,
        "svd_k": 0.3,
    },
    # the training script that the authors published with the ICLR 2026 version
    ("iclr2026", "nlg"): {
        "consistency_coef": 0.025,
        "diversity_coef": 0.005,
        "svd_coef": 0.005,
        "temperature": 2.0,
        "entropy_top_k": 20,
        "svd_k": 10,
        "svd_denominator": "frobenius",
        "schedule": "iclr2026",
    },
}


T = TypeVar("T")


def refuse(part: str, problems: list[str]) -> None:
    """Raise one ConfigError that lists every problem of a part of the recipe, if there is any."""
    if problems:
        raise ConfigError(f"{part}: " + "; ".join(problems) + ".")


def read_part(config_class: type[T], mapping: Mapping[str, Any], *, part: str, of: str) -> T:
    """Return the settings that a mapping of a recipe holds; what it leaves out has its default.

    Args:
        config_class: A dataclass that checks itself.
        mapping: As it stands in the recipe.
        part: What a message begins with.
        of: What the fields are of, where a key is no field.

    Raises:
        ConfigError: If a key is unknown or missing; or as the class.
    """
    hints = field_hints(config_class)
    own: Any = config_class
    required = {field.name for field in fields(own) if field.default is MISSING}
    missing = [f"`{name}` is missing" for name in hints if name in required - mapping.keys()]
    if missing or mapping.keys() - hints.keys():
        refuse(part, given_problems(mapping, hints, of=of) + missing)
    return config_class(**mapping)


@dataclass(frozen=True, kw_only=True, slots=True)
class BALoraConfig:
    """The start of the adapter and the three terms added to the task loss.

    The defaults are the preset ``paper`` for text generation (task ``nlg``).

    Raises:
        ConfigError: If a value has the wrong type or cannot work; all problems in one message.
    """

    adapter_init: AdapterInit = "pissa"
    """Start of the adapter: each weight's leading directions (pissa), plain LoRA, or another."""

    pissa_svd: PissaSvd = "randomized"
    """How the singular directions are found: a seeded randomised SVD, or the exact one."""

    pissa_oversampling: Annotated[int, Interval(ge=0, le=1_000_000)] = 16
    """Directions the randomised SVD carries beyond the rank; more is closer to the exact one."""

    pissa_power_iterations: Annotated[int, Interval(ge=0, le=1_000)] = 8
    """Power iterations of the randomised SVD; more is closer to the exact one."""

    pissa_seed: Seed = 0
    """Seed of the randomised SVD, independent of the seed of the run."""

    consistency_coef: Coefficient = 1e-4
    """Multiplies the consistency term (drift from the pre-trained model); 0 runs no reference."""

    diversity_coef: Coefficient = 3e-4
    """Multiplies the diversity term (collapse onto few answers); 0 switches it off."""

    svd_coef: Coefficient = 1e-4
    """Multiplies the SVD term (share of the leading singular values); 0 switches it off."""

    temperature: Annotated[float, Interval(gt=0)] = 1.0
    """Softmax temperature T of the consistency term, which carries the factor T^2."""

    entropy_top_k: Count | None = None
    """Take the entropy over the K likeliest tokens only, renormalised; null takes them all."""

    svd_k: Count | Annotated[float, _FRACTION] = 0.3
    """Leading singular values to reward: 1 is the first, 1.0 is all of them, 0.3 the first 30%."""

    svd_variance_coef: Coefficient = 0.0
    """Multiplies the variance of the leading singular values in the SVD term (Eq. 12, alpha)."""

    svd_denominator: SvdDenominator = "nuclear"
    """What the leading singular values are divided by: the sum of all, or the Frobenius norm."""

    svd_max_tokens: Count = 1024
    """At most this many evenly spaced tokens of a batch enter the SVD term."""

    schedule: Schedule = "constant"
    """How the coefficients move over the run: not at all, or as in the ICLR 2026 code."""

    space: Space = "logits"
    """Where the terms of classification act: on the logits, or on the head's input features."""

    def __post_init__(self) -> None:
        refuse("objective", field_problems(self, self._start_problems))

    def _start_problems(self) -> list[str]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = [f.name for f in fields(self) if values[f.name] != f.default]
        return self.idle_start_problems({name: values[name] for name in changed})

    def idle_start_problems(self, given: Mapping[str, Any]) -> list[str]:
        """Return one half sentence for each of the given `pissa_*` fields that cannot act."""
        if self.adapter_init == "pissa" and self.pissa_svd != "exact":
            return []
        of_start = self.adapter_init == "pissa"
        idle = PISSA_FIELDS[1:] if of_start else PISSA_FIELDS
        why = "`pissa_svd` is exact" if of_start else f"`adapter_init` is {self.adapter_init}"
        return [
            f"`{name}` is {given[name]}, but {why} and has no such setting; leave it out"
            for name in idle
            if name in given
        ]

    @property
    def is_anchored(self) -> bool:
        """True when the update of a new adapter is not zero, and its start is taken away."""
        return self.adapter_init not in PLAIN_STARTS

    @property
    def needs_reference(self) -> bool:
        """True when the pre-trained model's outputs are needed in every step."""
        return self.consistency_coef > 0

    @classmethod
    def preset(cls, name: str, task: str = "nlg", **overrides: Any) -> BALoraConfig:
        """Return the published numbers `name` for a `task`, with single fields replaced.

        Args:
            name: ``paper`` (arXiv 2408.04556, Eq. 9 and 13) or ``iclr2026`` (the authors' script).
            task: ``nlg`` (text generation) or ``nlu`` (classification and regression).
            **overrides: Fields of this class that replace the preset's.

        Raises:
            ConfigError: If there is no such preset for the task, or a value cannot work.
        """
        names, tasks = typing.get_args(Preset), typing.get_args(Task)
        if name not in names or task not in tasks:
            wrong, known = (name, names) if name not in names else (task, tasks)
            what = "preset" if name not in names else "task"
            raise ConfigError(
                f"`{what}` must be one of {', '.join(known)}, got `{wrong}`"
                f"{suggestion(str(wrong), known)}."
            )
        if (name, task) not in _PRESETS:
            raise ConfigError(
                f"`preset` is {name}, which has numbers for text generation (nlg) only; "
                f"use `paper` for the task {task}."
            )
        return cls(**{**_PRESETS[name, task], **overrides})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model to start from, and how to load it."""

    model_name_or_path: Annotated[str, PathTo("model")]
    """The causal language model to fine-tune: a Hugging Face hub id or a local folder."""

    model_revision: str = "main"
    """Branch, tag or commit of the model on the hub."""

    dtype: Dtype = "float32"
    """Type the weights are loaded in; auto takes the checkpoint's own, the paper uses float32."""

    attn_implementation: str | None = None
    """Attention kernel for transformers, such as sdpa or flash_attention_2; null lets it choose."""

    def __post_init__(self) -> None:
        refuse("model", field_problems(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """The method by name, and the low-rank adapter."""

    method: Method = "balora"
    """What is trained: all weights, an adapter by its start, or PiSSA with the terms (balora)."""

    preset: Preset | None = None
    """Published numbers for the terms of method balora; null means paper."""

    lora_r: Count = 128
    """Rank r, at most the smaller side of every adapted matrix."""

    lora_alpha: Count = 128
    """Scale of the adapter: its output is multiplied by alpha / r."""

    lora_target_modules: Annotated[
        str | list[str],
        Named(("all-linear",)),
        Pattern(),
        NotEmpty("write all-linear or a list of names"),
        _TARGETS,
    ] = "all-linear"
    """Layers to adapt: all-linear, a list of name endings, or a regular expression."""

    lora_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout before the adapter, where `adapter_init` is lora, gaussian, orthogonal or mica."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""

    def __post_init__(self) -> None:
        refuse("adapter", field_problems(self, self._method_problems))

    def _method_problems(self) -> list[str]:
        if self.preset is None or self.method == "balora":
            return []
        return [
            f"`preset` is {self.preset}, but it only acts with method balora, and `method` is "
            f"{self.method}; leave `preset` out"
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which rows to train on, and how a row becomes a prompt and a response."""

    dataset_name: Annotated[str, PathTo("data")]
    """A hub id, a local .jsonl, .json, .csv, .tsv or .parquet file, or a folder of them."""

    dataset_config: str | None = None
    """Configuration (subset) of `dataset_name`, where that is a data set on the hub."""

    dataset_train_split: str = "train"
    """Rows to train on, such as train, train[:100000] or train[10%:]."""

    eval_dataset_name: Annotated[str | None, PathTo("data")] = None
    """Another data set to evaluate on, named like `dataset_name`; null takes the same one."""

    dataset_test_split: str | None = None
    """Rows to evaluate on; null with no `eval_dataset_name` means no evaluation."""

    prompt_column: str | None = None
    """Column with the instruction, where its name is not one of the usual ones."""

    input_column: str | None = None
    """Column with an optional input to the instruction; needs `prompt_column`."""

    response_column: str | None = None
    """Column with the response, where its name is not one of the usual ones."""

    prompt_template: Annotated[str | None, Named(("alpaca", "none"))] = None
    """Text with {instruction} and optionally {input}, or alpaca, or none; null picks by columns."""

    overlong_rows: OverlongRows = "error"
    """What to do with rows whose response is cut off entirely by `max_length`: error or drop."""

    def __post_init__(self) -> None:
        refuse("data", field_problems(self, self._column_problems, self._template_problems))

    def _column_problems(self) -> list[str]:
        problems = []
        for one, other in (
            ("prompt_column", "response_column"),
            ("response_column", "prompt_column"),
            ("input_column", "prompt_column"),
        ):
            if getattr(self, one) is not None and getattr(self, other) is None:
                problems.append(f"`{one}` is {getattr(self, one)}, so `{other}` must be set too")
        return problems

    def _template_problems(self) -> list[str]:
        text = self.prompt_template
        if text is None or text == "alpaca":
            return []
        if text != "none" and "{instruction}" not in text:
            hint = suggestion(text, ("alpaca", "none"))
            return [
                f"`prompt_template` is `{text}`, which holds no {{instruction}}{hint}; write "
                "alpaca, none or a text with {instruction} in it"
            ]
        if text.endswith((" ", "\t")):
            return [
                "`prompt_template` ends in a space, which tokenizers merge with the first word of "
                "the response; leave the space out, the response then starts with one"
            ]
        if self.input_column is not None and "{input}" not in text:
            return [
                f"`input_column` is {self.input_column}, but `prompt_template` has no {{input}}; "
                "add {input} to it or leave `input_column` out"
            ]
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppingConfig:
    """When a run ends before its last step."""

    early_stopping_patience: Count | None = None
    """Stop when this many evaluations in a row have not improved the metric; null never stops."""

    early_stopping_threshold: Annotated[float, Interval(ge=0)] = 0.0
    """How much the metric must improve by to count; needs `early_stopping_patience`."""

    def __post_init__(self) -> None:
        refuse("run", field_problems(self, self._threshold_problems))

    def _threshold_problems(self) -> list[str]:
        if self.early_stopping_patience is not None or not self.early_stopping_threshold:
            return []
        return [
            f"`early_stopping_threshold` is {self.early_stopping_threshold}, so "
            "`early_stopping_patience` must be set too"
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What the command does with an existing output, and whether it trains at all."""

    overwrite: bool = False
    """Replace what is in `output_dir`; without it an output that is not empty is refused."""

    dry_run: bool = False
    """Check the recipe, the data and the model, say what would be done, and stop."""

    def __post_init__(self) -> None:
        refuse("run", field_problems(self))
