"""The start of the adapter and the terms of the objective, with the published numbers."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from balora.config.fields import field_problems
from balora.config.parts import Coefficient, Count, Seed, refuse
from balora.config.rules import Interval
from balora.config.words import suggestion
from balora.errors import ConfigError

AdapterInit = Literal["pissa", "lora", "olora", "corda", "gaussian", "orthogonal", "mica"]
PissaSvd = Literal["randomized", "exact"]
SvdDenominator = Literal["nuclear", "frobenius"]
Schedule = Literal["constant", "iclr2026"]
Space = Literal["logits", "features"]
Preset = Literal["paper", "iclr2026", "recommended"]
Task = Literal["nlg", "nlu"]

_FRACTION = Interval(gt=0, le=1, hint="write a whole number to count singular values")

COEFFICIENTS = ("consistency_coef", "diversity_coef", "svd_coef")
GENERATION_FIELDS = (
    "temperature",
    "entropy_top_k",
    "svd_variance_coef",
    "svd_denominator",
    "svd_max_tokens",
)
"""Fields of the objective that act in text generation only."""
_RANDOMIZED_FIELDS = ("pissa_oversampling", "pissa_power_iterations", "pissa_seed")
PISSA_FIELDS = ("pissa_residual", "pissa_svd", *_RANDOMIZED_FIELDS)
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
    # what the study of replay found to keep most; a recipe gets replay with it (`RECOMMENDED`)
    ("recommended", "nlg"): {"consistency_coef": 0.0, "diversity_coef": 0.0, "svd_coef": 0.0},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BALoraConfig:
    """The start of the adapter and the three terms added to the task loss.

    The defaults are the preset ``paper`` for text generation (task ``nlg``).

    Raises:
        ConfigError: If a value has the wrong type or cannot work; all problems in one message.
    """

    adapter_init: AdapterInit = "pissa"
    """Start of the adapter: each weight's leading directions (pissa), plain LoRA, or another."""

    pissa_residual: bool = False
    """Quantise only what the start leaves of each weight (QPiSSA); needs a quantised base."""

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
        idle = _RANDOMIZED_FIELDS if of_start else PISSA_FIELDS
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
        """Return the numbers that `name` stands for in a `task`, with single fields replaced.

        Args:
            name: ``paper`` (arXiv 2408.04556, Eq. 9 and 13), ``iclr2026`` (the authors' script), or
                ``recommended``, in which the three terms are off and a recipe gets replay instead.
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
                f"`preset` is {name}, which is for text generation (nlg) only; "
                f"use `paper` for the task {task}."
            )
        return cls(**{**_PRESETS[name, task], **overrides})
