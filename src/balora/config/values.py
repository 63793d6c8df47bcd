"""The values of a recipe: YAML from a file, text from the command line, one reading for both.

YAML 1.1 reads ``no`` as false, ``2e-4`` as text, ``010`` as 8 and ``1:30`` as 90. A recipe is read
by the rules of YAML 1.2 instead: only ``true`` and ``false`` are booleans, ``2e-4`` is a number.

The loader is PyYAML's with the lines below. ruamel.yaml would need as many: it makes dates,
hexadecimal numbers and merged keys of such texts, takes lists for keys, and ends in a `ValueError`
for a number of 5,000 digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from balora.config.fields import (
    accepts,
    field_hints,
    given_problems,
    list_of,
    members,
    named_texts,
    type_problem,
)
from balora.config.words import suggestion
from balora.errors import ConfigError

_RARE_BREAKS = ("\r", "\x85", "\u2028", "\u2029")
_NULLS = ("null", "Null", "NULL", "~")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with the scalars of YAML 1.2, and without duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            is_text = not isinstance(key, list | dict)
            if not is_text or key in seen:
                problem = f"`{key}` is given twice" if is_text else "a key must be text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    if len(text) > 400:
        problem = "a number of more than 400 digits"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    if _INT.match(text):
        return int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping of a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: If the file is missing or unreadable, is not YAML (with the line), gives a key
            twice, or holds something else than a mapping with text keys.
    """
    text = _read_text(path)
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: {error.problem or error.context}.") from error
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply for a recipe.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {reason}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `field: value` lines, got {type(content).__name__}.")
    strange = [key for key in content if not isinstance(key, str)]
    if strange:
        raise ConfigError(f"{path}: `{strange[0]}` is no field name; write `field: value`.")
    return content


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"`--config` {path} is a folder; name a YAML file in it.")
    if not path.is_file():
        there = [*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")]
        hint = suggestion(path.name, [file.name for file in there])
        raise ConfigError(f"`--config` {path} does not exist{hint}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def parse_texts(texts: Mapping[str, str], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the texts of a command line stand for, by field.

    Here text becomes values, and nowhere else. What is no field stays text, and is refused by name.

    Args:
        texts: As they were typed.
        hints: The annotation of every field.
    """
    return {name: parse_text(text, hints.get(name, str)) for name, text in texts.items()}


def parse_fields(texts: Mapping[str, str], config_class: type, *, of: str) -> dict[str, Any]:
    """Return the values of the fields of a part that a command line gives.

    Args:
        texts: As they were typed, by the name of the option.
        config_class: The dataclass of the part.
        of: What the fields are of, where a name is no field.

    Raises:
        ConfigError: If a name is no field, or a value does not fit.
    """
    hints = field_hints(config_class)
    values = parse_texts(texts, hints)
    if problems := given_problems(values, hints, of=of, label="--{}".format):
        raise ConfigError("; ".join(problems) + ".")
    return values


def parse_text(text: str, annotation: Any) -> Any:
    """Return the value that a command-line `text` stands for in a field of type `annotation`.

    ``null`` and ``none`` are None, unless the field has the name ``none`` for something. A text
    field takes the text as it is; a list is ``[a,b]`` or ``a,b``; everything else is read as YAML.
    What fits nothing is returned as it reads, and the type check refuses it.
    """
    if not text.strip():
        return ""  # no field takes it
    if text in _NULLS or (text.lower() == "none" and "none" not in named_texts(annotation)):
        return None
    value = _scalar(text)
    if _is_bare_list(text, value, annotation):
        read = _scalar if members(list_of(annotation))[0] in (int, float) else str
        return [read(part.strip()) for part in text.split(",")]
    takes_text = any(isinstance(m, type) and issubclass(m, str) for m in members(annotation))
    if takes_text and (isinstance(value, str) or type_problem(value, annotation) is not None):
        return text
    return value


def _is_bare_list(text: str, value: Any, annotation: Any) -> bool:
    """Say whether a text, which YAML reads as `value`, is the entries of a list by themselves."""
    if list_of(annotation) is None or isinstance(value, list | dict):
        return False
    is_broken = text.lstrip().startswith(("[", "{"))
    return not is_broken and ("," in text or not accepts(annotation, str))


def read_switch(name: str, text: str) -> bool:
    """Return what the text of an option that is true or false stands for.

    Raises:
        ConfigError: If it is neither.
    """
    value = parse_text(text, bool)
    if not isinstance(value, bool):
        raise ConfigError(f"`--{name}` must be true or false, got the text `{text}`.")
    return value


class _Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper` that quotes what YAML 1.1 or 1.2 would read as something else than text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Write line breaks that are no newline as escapes: PyYAML reads them back as a space."""
    style = '"' if any(mark in text for mark in _RARE_BREAKS) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_mapping(mapping: Mapping[str, Any]) -> str:
    """Return YAML that `read_mapping` reads back to an equal mapping, in the same order."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _scalar(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return text
