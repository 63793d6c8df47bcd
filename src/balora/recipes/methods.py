"""What a method's name stands for: the start of the adapter and the coefficients of the terms.

:data:`METHODS` is the one table of them. A field that is given explicitly replaces what the name
stands for, so PiSSA with one term is legal; a field that is given and cannot act is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from balora.config import AdapterConfig, BALoraConfig
from balora.config.objective import COEFFICIENTS, PISSA_FIELDS, AdapterInit
from balora.config.quantization import Quantization
from balora.config.replay import ReplayConfig
from balora.errors import ConfigError

T = TypeVar("T")


class MethodRow(NamedTuple):
    """What one name stands for."""

    start: AdapterInit | None
    """`adapter_init` where nothing else is given; None trains every weight."""
    has_terms: bool = False
    """Whether the coefficients are those of a preset; without, they are 0."""

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained; if not, what says something of one is refused."""
        return self.start is not None


METHODS: Mapping[str, MethodRow] = {
    "full": MethodRow(start=None),
    "lora": MethodRow(start="lora"),
    "pissa": MethodRow(start="pissa"),
    "olora": MethodRow(start="olora"),
    "mica": MethodRow(start="mica"),
    "balora": MethodRow(start="pissa", has_terms=True),
}
"""By the value of `method`."""

REPLAY_FIELDS = frozenset(field.name for field in fields(ReplayConfig))
"""The fields of the replay term, which a baseline does not take over."""
START_FIELDS = frozenset({"adapter_init", *PISSA_FIELDS})

_OFF = dict.fromkeys(COEFFICIENTS, 0.0)
FIELDS_OF_TERM = {
    "consistency_coef": ("temperature",),
    "diversity_coef": ("entropy_top_k",),
    "svd_coef": ("svd_k", "svd_variance_coef", "svd_denominator", "svd_max_tokens"),
}
"""The settings of each term, by its coefficient."""


class Resolved(NamedTuple):
    """The adapter and the objective that a set of explicitly given fields stands for."""

    adapter: AdapterConfig
    objective: BALoraConfig


def resolve(
    given: Mapping[str, Any],
    *,
    task: str = "nlg",
    adapter_defaults: Mapping[str, Any] | None = None,
) -> Resolved:
    """Return adapter and objective for the explicitly `given` fields of both dataclasses.

    Args:
        given: Values by field name of `AdapterConfig` and `BALoraConfig`; only the fields that
            the user set, because a field that was set and cannot act is refused.
        task: ``nlg`` or ``nlu``, for the numbers of the preset.
        adapter_defaults: Fields of `AdapterConfig` where `given` is silent.

    Raises:
        ConfigError: If a value is wrong or cannot act; all problems in one message.
    """
    adapter_names = {field.name for field in fields(AdapterConfig)}
    own = {name: value for name, value in given.items() if name not in adapter_names}
    of_adapter = {name: value for name, value in given.items() if name in adapter_names}
    if _row(given).has_adapter:
        of_adapter = {**(adapter_defaults or {}), **of_adapter}
    errors: list[str] = []
    adapter = attempt(errors, lambda: AdapterConfig(**of_adapter))
    objective = attempt(errors, lambda: _objective(given, own, task))
    problems = method_problems(given)
    if adapter is not None and objective is not None:
        problems += inert_problems(adapter, objective, given)
        if objective.adapter_init == "corda":
            problems.append(
                "`adapter_init` is corda, which is computed from sample data, and a recipe has no "
                "place for them; set it to pissa or olora, or use `balora.get_balora_model` after "
                "PEFT's `preprocess_corda`"
            )
    if problems:
        errors.append(f"method {given.get('method', 'balora')}: " + "; ".join(problems) + ".")
    if adapter is None or objective is None or errors:
        raise ConfigError(" ".join(errors))
    return Resolved(adapter, objective)


def attempt(errors: list[str], build: Callable[[], T]) -> T | None:
    """Return what `build` returns; on a ConfigError add its message to `errors`, return None."""
    try:
        return build()
    except ConfigError as error:
        errors.append(str(error))
        return None


def _objective(given: Mapping[str, Any], own: Mapping[str, Any], task: str) -> BALoraConfig:
    row = _row(given)
    if row.has_terms:
        return BALoraConfig.preset(given.get("preset") or "paper", task, **own)
    start = {} if row.start is None else {"adapter_init": row.start}
    return BALoraConfig(**{**_OFF, **start, **own})


def _row(given: Mapping[str, Any]) -> MethodRow:
    """Return the row of the method that is given, of the default where it is none or wrong."""
    method = given.get("method")
    return METHODS.get(method if isinstance(method, str) else "", METHODS[AdapterConfig().method])


def fields_of_terms_off(given: Mapping[str, Any]) -> frozenset[str]:
    """Return the settings of every term whose coefficient is given as 0: they cannot act."""
    off = [coefficient for coefficient in FIELDS_OF_TERM if given.get(coefficient) == 0]
    return frozenset(name for coefficient in off for name in FIELDS_OF_TERM[coefficient])


def foreign_fields(method: str) -> frozenset[str]:
    """Return the fields that `method` has no use for and another method may have set.

    A recipe written for one method runs as the baseline of another when these are set aside.
    """
    row = METHODS.get(method)
    if row is None or row.has_terms:
        return frozenset()
    foreign = {field.name for field in fields(BALoraConfig)} | {"preset"} | REPLAY_FIELDS
    if not row.has_adapter:
        foreign |= {field.name for field in fields(AdapterConfig)} - {"method"}
    return frozenset(foreign - START_FIELDS if row.start == "pissa" else foreign)


def method_problems(given: Mapping[str, Any]) -> list[str]:
    """Return what a method without an adapter cannot have: its settings, and a reference."""
    if _row(given).has_adapter:
        return []
    of_adapter = [
        name
        for name in given
        if name.startswith("lora_") or name == "use_rslora" or name in START_FIELDS
    ]
    problems = [
        f"`{name}` is {given[name]}, but full fine-tuning has no adapter; leave it out "
        f"(`--{name} null`) or choose `method` lora, pissa or balora"
        for name in of_adapter
    ]
    coefficient = given.get("consistency_coef", 0)
    if isinstance(coefficient, int | float):
        problem = reference_problem(coefficient, has_adapter=False)
        if problem is not None:
            problems.append(
                f"`consistency_coef` is {coefficient}, but {problem}; set it to 0 or choose "
                "another `method`"
            )
    return problems


def reference_problem(coefficient: float, *, has_adapter: bool) -> str | None:
    """Return why there is no reference for the consistency term, as half a sentence.

    Args:
        coefficient: `consistency_coef`.
        has_adapter: Whether there is an adapter to switch off.

    Returns:
        None where there is one, or where none is needed.
    """
    if has_adapter or not coefficient > 0:
        return None
    return "full fine-tuning would need a second copy of the model as reference"


def quantization_problem(quantization: Quantization, resolved: Resolved) -> str | None:
    """Return why a quantised base cannot be trained so, as a sentence; None where it can."""
    if quantization.scheme is None and resolved.objective.pissa_residual:
        return (
            "`pissa_residual` is true, but the base is not quantised, so there is no residual to "
            "quantise. Set `load_in_4bit: true`, or leave `pissa_residual` out."
        )
    if quantization.scheme is None or METHODS[resolved.adapter.method].has_adapter:
        return None
    return (
        f"{quantization.setting} and `method` is {resolved.adapter.method}, but quantised weights "
        "cannot be trained. Choose a method with an adapter (lora, pissa, balora), or leave "
        f"`{quantization.scheme}` out."
    )


def inert_problems(
    adapter: AdapterConfig, objective: BALoraConfig, given: Mapping[str, Any]
) -> list[str]:
    """Return one half sentence per given field that the other settings keep from acting."""
    problems = []
    if METHODS[adapter.method].has_adapter:
        problems += objective.idle_start_problems(given)
        if adapter.lora_dropout > 0 and objective.is_anchored:
            problems.append(
                f"`lora_dropout` is {adapter.lora_dropout}, but the start (`adapter_init` "
                f"{objective.adapter_init}) has no dropout, with which it would not equal the "
                "pre-trained model; set it to 0"
            )
    for coefficient, names in FIELDS_OF_TERM.items():
        if getattr(objective, coefficient) == 0:
            problems += [
                f"`{name}` is {given[name]}, but `{coefficient}` is 0 and so it cannot act; "
                f"leave it out or set `{coefficient}`"
                for name in names
                if given.get(name) is not None
            ]
    if not any(getattr(objective, name) for name in COEFFICIENTS):
        problems += [
            f"`{name}` is {given[name]}, but every coefficient is 0; leave it out"
            for name in ("schedule", "space")
            if name in given
        ]
    return problems


def acting_fields(resolved: Resolved) -> dict[str, Any]:
    """Return the fields that may be written down: given again, they resolve to the same."""
    adapter, objective = resolved
    values = {field.name: getattr(part, field.name) for part in resolved for field in fields(part)}
    if adapter.preset is None:
        del values["preset"]
    return {
        name: value
        for name, value in values.items()
        if not method_problems({"method": adapter.method, name: value})
        and not inert_problems(adapter, objective, {name: value})
    }
