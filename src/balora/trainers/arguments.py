"""Training arguments that hold the settings of the method too: for trackers, files and parsers.

The fields are those of :class:`~balora.config.BALoraConfig` and
:class:`~balora.config.replay.ReplayConfig`, with their defaults, sentences and checks; they are
written there and nowhere else.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union

from transformers import TrainingArguments
from trl import SFTConfig

from balora.config import BALoraConfig
from balora.config.fields import describe
from balora.config.objective import GENERATION_FIELDS
from balora.config.replay import ReplayConfig
from balora.config.values import parse_text
from balora.errors import ConfigError

Part = TypeVar("Part", BALoraConfig, ReplayConfig)


class HoldsSettings:
    """Training arguments with the fields of parts of a recipe."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is set up, then as the arguments' own class."""
        part_of(self, BALoraConfig)
        part_of(self, ReplayConfig)
        super().__post_init__()  # type: ignore[misc]


def _holding(*parts: Any, without: tuple[str, ...]) -> Callable[[Any], Any]:
    """Return a decorator that adds the fields of ``parts``, with their values as the defaults."""

    def add(cls: Any) -> Any:
        for part in parts:
            hints = typing.get_type_hints(type(part))
            for described in describe(type(part)):
                name = described.name
                if name in without:
                    continue
                cls.__annotations__[name] = _readable(hints[name])
                # argparse formats the help with %
                metadata = {"help": described.sentence.replace("%", "%%")}
                setattr(cls, name, field(default=getattr(part, name), metadata=metadata))
        return dataclass(cls)

    return add


def _readable(hint: Any) -> Any:
    """Return a type that transformers' parser reads: one, a choice, or either of them or None.

    For all others it calls the type with the text, and so it gets one that reads it.
    """
    members = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
    several = [member for member in members if member is not type(None)]
    if len(several) == 1 and (several[0] in (int, float, str) or _is_choice(several[0])):
        return hint

    class Value:
        """A value of a field, from the text of a command line."""

        def __new__(cls, text: str) -> Any:
            return parse_text(text, hint)

    return Value


def _is_choice(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


@_holding(BALoraConfig(), ReplayConfig(), without=("space",))
class BALoraSFTConfig(HoldsSettings, SFTConfig):  # type: ignore[misc]
    """trl's ``SFTConfig`` with the fields of ``BALoraConfig`` and ``ReplayConfig``.

    What they hold is in trackers, in ``training_args.bin`` and in the reach of ``TrlParser``. The
    defaults are the paper's for text generation. For a preset, pass
    ``**dataclasses.asdict(BALoraConfig.preset(...))`` without ``space``.

    Raises:
        ConfigError: If a value of those fields has the wrong type or cannot work.
    """


@_holding(BALoraConfig.preset("paper", task="nlu"), without=GENERATION_FIELDS)
class BALoraTrainingArguments(HoldsSettings, TrainingArguments):  # type: ignore[misc]
    """transformers' ``TrainingArguments`` with the fields of ``BALoraConfig``.

    The defaults are the paper's for classification; fields that act in text generation only are
    left out.

    Raises:
        ConfigError: If a value of those fields has the wrong type or cannot work.
    """


def part_of(args: Any, part: type[Part]) -> Part:
    """Return the settings that arguments hold; those that they do not have are the defaults.

    Raises:
        ConfigError: If a value cannot work.
    """
    own: Any = part
    return part(**{f.name: getattr(args, f.name) for f in fields(own) if hasattr(args, f.name)})


def settings(args: Any, given: Part | None, default: Part, *, called: str) -> Part:
    """Return the settings of a trainer, from its arguments or from its own parameter.

    Args:
        args: With or without them.
        given: The parameter; None where it was left out.
        default: Where neither says anything.
        called: The parameter, for the message.

    Raises:
        ConfigError: If the two differ.
    """
    if not isinstance(args, HoldsSettings):
        return default if given is None else given
    held = part_of(args, type(default))
    if given is None or given == held:
        return held
    now, other = asdict(held), asdict(given)
    differing = [
        f"`{name}` is {now[name]} in `args` and {other[name]} in `{called}`"
        for name in now
        if now[name] != other[name]
    ]
    raise ConfigError(f"{'; '.join(differing)}. Leave `{called}` out, or pass {_plain(args)}.")


def holding(args: Any, *parts: BALoraConfig | ReplayConfig) -> Any:
    """Return a copy of a trainer's arguments that holds the settings of ``parts``.

    Arguments of a class of the user's own stay of that class, and hold nothing.
    """
    own = copy(args)
    holder = {SFTConfig: BALoraSFTConfig, TrainingArguments: BALoraTrainingArguments}
    own.__class__ = holder.get(type(own), type(own))
    if isinstance(own, HoldsSettings):
        for part in parts:
            held: Any = part
            for each in fields(held):
                if each.name in own.__dataclass_fields__:  # type: ignore[attr-defined]
                    setattr(own, each.name, getattr(part, each.name))
    return own


def _plain(args: Any) -> str:
    return f"`{'SFTConfig' if isinstance(args, SFTConfig) else 'TrainingArguments'}` as `args`"
