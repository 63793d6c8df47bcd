"""What the parts of a recipe share: types of their fields, how one is read, how it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar

from balora.config.fields import field_hints, given_problems
from balora.config.rules import Interval
from balora.errors import ConfigError

Coefficient = Annotated[float, Interval(ge=0)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # that NumPy takes
Count = Annotated[int, Interval(ge=1)]

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
