"""Reading YAML and command-line text: one meaning for both, and sentences for what is no YAML."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.config.rules import Named, OneOf
from balora.config.values import (
    dump_mapping,
    parse_text,
    read_mapping,
)
from balora.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    def read(text: str | bytes):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_mapping(path)

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1_000", 1000),
        ("010", 10),
        (".5", 0.5),
        ("1e5", 100000.0),
        ("-3", -3),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'12'", "12"),
        ("", None),
        ("null", None),
        ("~", None),
        ("[a, 1]", ["a", 1]),
        ("{a: 2e-4}", {"a": 2e-4}),
    ],
)
def test_scalars_are_read_by_yaml_1_2(read, text, value):
    result = read(f"key: {text}\n")["key"]
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: [1,\n", r"recipe.yaml, line 3: "),
        ("a: 1\n b: 2\n", r"recipe.yaml, line 2: mapping values are not allowed here"),
        ("a: 1\nb: 2\na: 3\n", r"recipe.yaml, line 3: `a` is given twice"),
        ("a: {b: 1, b: 2}\n", r"recipe.yaml, line 1: `b` is given twice"),
        ("- a\n- b\n", r"must hold `field: value` lines, got list"),
        ("just text\n", r"must hold `field: value` lines, got str"),
        ("1: x\n", r"`1` is no field name"),
        ("[a]: x\n", r"line 1: "),
        (
            "a: !!python/object:os.system x\n",
            r"recipe.yaml, line 1: could not determine a construct",
        ),
        ("a: 1\n---\nb: 2\n", r"recipe.yaml, line 2: "),
        (b"a: \xff\n", r"recipe.yaml is not UTF-8 text \(byte 3\)"),
        (b"a: \x00\n", r"recipe.yaml is not YAML: "),
    ],
)
def test_unreadable_files_are_one_sentence_with_the_line(read, text, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        read(text)
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


def test_an_empty_file_is_an_empty_mapping(read):
    assert read("") == {} == read("# nothing\n")


def test_missing_recipe_names_its_neighbour(tmp_path):
    (tmp_path / "math.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match=r"does not exist \(did you mean `math.yaml`\?\)"):
        read_mapping(tmp_path / "maths.yaml")
    with pytest.raises(ConfigError, match="is a folder; name a YAML file in it"):
        read_mapping(tmp_path)


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("2e-4", float, 2e-4),
        ("1_000", int, 1000),
        ("12.5", int, 12.5),  # the type check refuses it
        ("true", bool, True),
        ("1", bool, 1),
        ("none", int | None, None),
        ("None", float, None),
        ("null", str | None, None),
        ("2024", str, "2024"),
        ("true", str | None, "true"),
        ("a: b: [", str, "a: b: ["),
        ("no", str, "no"),
        ("8", int | str | None, 8),
        ("auto", int | str | None, "auto"),
        ("[q_proj,v_proj]", str | list[str], ["q_proj", "v_proj"]),
        ("q_proj, v_proj", str | list[str], ["q_proj", "v_proj"]),
        ("all-linear", str | list[str], "all-linear"),
        ("labels", list[str] | None, ["labels"]),
        ("3", list[int] | None, [3]),
        ("3, 1", list[int] | None, [3, 1]),
        ("3, 1.5", list[int] | None, [3, 1.5]),
        ("3,yes", list[Any] | None, ["3", "yes"]),
        ('{"num_cycles": 2}', dict | str | None, {"num_cycles": 2}),
        ("config.json", dict | str | None, "config.json"),
    ],
)
def test_command_line_text_is_read_by_the_type_of_the_field(text, annotation, value):
    result = parse_text(text, annotation)
    assert result == value
    assert type(result) is type(value)


def test_none_can_be_a_name():
    for rule in (Named(("none",)), OneOf(("none", "all"))):
        assert parse_text("none", Annotated[str | None, rule]) == "none"
        assert parse_text("null", Annotated[str | None, rule]) is None


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        ["2e-4", "no", "010", "1_000", "null", "~", "=", "<<", "1:30", ".inf", "0x1F"]
    )
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars, max_size=3)


@given(st.dictionaries(st.text(min_size=1), values, max_size=4))
def test_what_is_written_is_read_again(tmp_path_factory, mapping):
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(dump_mapping(mapping), encoding="utf-8", newline="")
    result = read_mapping(path)
    assert result == mapping
    assert list(result) == list(mapping)
    assert [type(value) for value in result.values()] == [type(v) for v in mapping.values()]
