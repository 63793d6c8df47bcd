"""What a method's name stands for: the start of the adapter and the coefficients of the terms.

``full`` has no adapter and no terms, ``lora`` and ``pissa`` are adapters without terms, ``balora``
is PiSSA with the terms of its preset. A field that is given explicitly replaces what the name
stands for, so PiSSA with one term is legal; a field that is given and cannot act is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from balora.config import COEFFICIENTS, PISSA_FIELDS, AdapterConfig, BALoraConfig
from balora.errors import ConfigError
from balora.replay.config import ReplayConfig

T = TypeVar("T")

REPLAY_FIELDS = frozenset(field.name for field in fields(ReplayConfig))
"""The fields of the replay term, which a baseline does not take over."""

_OFF = dict.fromkeys(COEFFICIENTS, 0.0)
_FIELDS_OF_TERM = {
    "consistency_coef": ("temperature",),
    "diversity_coef": ("entropy_top_k",),
    "svd_coef": ("svd_k", "svd_variance_coef", "svd_denominator", "svd_max_tokens"),
}


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
    if given.get("method") != "full":
        of_adapter = {**(adapter_defaults or {}), **of_adapter}
    errors: list[str] = []
    adapter = attempt(errors, lambda: AdapterConfig(**of_adapter))
    objective = attempt(errors, lambda: _objective(given, own, task))
    problems = method_problems(given)
    if adapter is not None and objective is not None:
        problems += inert_problems(adapter, objective, given)
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
    method, preset = given.get("method", "balora"), given.get("preset")
    if method == "balora":
        return BALoraConfig.preset(preset or "paper", task, **own)
    init = "lora" if method == "lora" else "pissa"
    return BALoraConfig(**{**_OFF, "adapter_init": init, **own})


def fields_of_terms_off(given: Mapping[str, Any]) -> frozenset[str]:
    """Return the settings of every term whose coefficient is given as 0: they cannot act."""
    off = [coefficient for coefficient in _FIELDS_OF_TERM if given.get(coefficient) == 0]
    return frozenset(name for coefficient in off for name in _FIELDS_OF_TERM[coefficient])


def foreign_fields(method: str) -> frozenset[str]:
    """Return the fields that `method` has no use for and another method may have set.

    A recipe written for one method runs as the baseline of another when these are set aside.
    """
    terms = {field.name for field in fields(BALoraConfig)} | {"preset"} | REPLAY_FIELDS
    adapter = {name.name for name in fields(AdapterConfig)} - {"method", "preset"}
    if method == "full":
        return frozenset(terms | adapter)
    if method == "lora":
        return frozenset(terms)
    if method == "pissa":
        return frozenset(terms - {"adapter_init", *PISSA_FIELDS})
    return frozenset()


def method_problems(given: Mapping[str, Any]) -> list[str]:
    """Return what `full` cannot have: anything of an adapter, and a reference model."""
    if given.get("method") != "full":
        return []
    of_adapter = [
        name
        for name in given
        if name.startswith("lora_") or name in ("use_rslora", "adapter_init", *PISSA_FIELDS)
    ]
    problems = [
        f"`{name}` is {given[name]}, but full fine-tuning has no adapter; leave it out "
        f"(`--{name} null`) or choose `method` lora, pissa or balora"
        for name in of_adapter
    ]
    coefficient = given.get("consistency_coef", 0)
    if isinstance(coefficient, int | float) and coefficient > 0:
        problems.append(
            f"`consistency_coef` is {coefficient}, but full fine-tuning would need a "
            "second copy of the model as reference; set it to 0 or choose another `method`"
        )
    return problems


def inert_problems(
    adapter: AdapterConfig, objective: BALoraConfig, given: Mapping[str, Any]
) -> list[str]:
    """Return one half sentence per given field that the other settings keep from acting."""
    problems = []
    if adapter.method != "full":
        problems += _pissa_problems(objective, given)
        if adapter.lora_dropout > 0 and objective.adapter_init == "pissa":
            problems.append(
                f"`lora_dropout` is {adapter.lora_dropout}, but the start from singular directions "
                "(`adapter_init` pissa) has no dropout; set it to 0"
            )
    for coefficient, names in _FIELDS_OF_TERM.items():
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


def _pissa_problems(objective: BALoraConfig, given: Mapping[str, Any]) -> list[str]:
    problems = []
    if objective.adapter_init == "lora":
        problems += [
            f"`{name}` is {given[name]}, but `adapter_init` is lora and runs no SVD; leave it out"
            for name in PISSA_FIELDS
            if name in given
        ]
    elif objective.pissa_svd == "exact":
        problems += [
            f"`{name}` is {given[name]}, but `pissa_svd` is exact and has no such setting; "
            "leave it out"
            for name in PISSA_FIELDS[1:]
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
