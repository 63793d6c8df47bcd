"""Rows of JSON files as they stand: text stays text, and a number is what Python makes of it.

Nothing is inferred. A file holds one object on each line, or one list of objects, in any layout;
it is read in a stream, whichever it is. What other readers pass over is refused: a key that is
there twice, and values nested deeper than `MAX_DEPTH`. Half a surrogate pair is refused where the
rows are stored.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from balora.data.opening import open_data, undecodable
from balora.errors import DataError

MAX_DEPTH = 200
"""Levels of lists and mappings in a row; Python's own stack ends not far above."""

_TOO_DEEP = (
    f"lists and mappings are nested more than {MAX_DEPTH} levels deep; write the value as text"
)
_BLOCK = 1 << 20
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_OPEN = re.compile(r"\{[ \t]*")
_KEY = re.compile(r'"([^"\\\x00-\x1f]*)"[ \t]*:[ \t]*')
_COMMA_OR_END = re.compile(r"[ \t]*([,}])[ \t]*")
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair or alone
_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_TOKEN = 16  # a block may end in the middle of one; strings are longer


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, of which no key is there twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _DuplicateKeyError(f"the key {ascii(twice)[1:-1]!r} is there twice")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_parse = _DECODER.raw_decode
_scan: Callable[[str, int], tuple[Any, int]] = vars(_DECODER)["scan_once"]


class RawJson(str):
    """The text of a list or a mapping as it stands in the file; `json.loads` reads it."""

    __slots__ = ()


def _parse_apart(line: str, start: int = 0) -> tuple[Any, int]:
    """Return what `_parse` does, but lists and mappings of the row as `RawJson`.

    They are checked like all others, and need not be written anew to be stored.
    """
    row: dict[str, Any] = {}
    has_escapes = "\\" in line  # some of them may be half of a surrogate pair
    between = _OPEN.match(line, start)
    while between:
        key = _KEY.match(line, between.end())
        if key is None or key[1] in row:
            break
        place = key.end()
        try:
            value, end = _scan(line, place)
        except StopIteration:  # there is no value
            break
        is_nested = type(value) is list or type(value) is dict
        if is_nested and not (has_escapes and _HALF_PAIR.search(line, place, end)):
            value = RawJson(line[place:end])
        row[key[1]] = value
        between = _COMMA_OR_END.match(line, end)
        if between and between[1] == "}":
            return row, between.end(1)
    return _parse(line, start)  # keys with escapes, and whatever is wrong


def json_records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row of a file and where it stands: its line, or its number in a list.

    Lines count from 1, rows of a list from 0. Blank lines are passed over.

    Raises:
        DataError: At the first row that cannot be read, by file and line.
    """
    with open_data(file) as stream:
        yield from _list_rows(file, stream) if is_list(file) else _line_rows(file, stream)


def is_list(file: Path) -> bool:
    """Say whether a JSON file is one list of rows; otherwise each line is a row."""
    with open_data(file) as stream:
        block = stream.read(_BLOCK).removeprefix(codecs.BOM_UTF8)
        while block and not block.strip():
            block = stream.read(_BLOCK)
    return block.lstrip().startswith(b"[")


def _line_rows(file: Path, stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, raw in enumerate(stream, start=1):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if not (raw := raw.strip()):
            continue
        try:
            line = raw.decode()
            is_nested = "[" in line or line.find("{", 1) > 0
            row, end = _parse_apart(line) if is_nested else _parse(line)
            others = _values(line, end) if end < len(line) else ()
        except (ValueError, RecursionError) as error:
            _refuse(f"{file}, line {number}", error)
        if is_nested and line.count("[") + line.count("{") > MAX_DEPTH:
            _check_depth(line, f"{file}, line {number}")
        for value in (row, *others):
            if not isinstance(value, dict):
                raise DataError(f"{file}, line {number}: not a mapping of columns to values.")
            yield number, value


def _values(line: str, end: int) -> list[Any]:
    """Return what follows on a line that holds more than one value."""
    values = []
    while end < len(line):
        value, end = _parse(line, len(line) - len(line[end:].lstrip()))
        values.append(value)
    return values


def _refuse(where: str, error: Exception) -> NoReturn:
    """Raise DataError with what is wrong with a row, in one sentence."""
    if isinstance(error, RecursionError):
        problem = _TOO_DEEP
    elif isinstance(error, _DuplicateKeyError):
        problem = str(error)
    elif isinstance(error, json.JSONDecodeError):
        problem = f"not JSON ({error.msg}, column {error.colno})"
    elif isinstance(error, UnicodeDecodeError):
        problem = "not UTF-8 text"
    else:  # Python reads no whole number of more than 4,300 digits
        problem = "a number has too many digits; write it as text"
    raise DataError(f"{where}: {problem}.") from error


def _check_depth(text: str, where: str) -> None:
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise DataError(f"{where}: {_TOO_DEEP}.")


class _Text:
    """The text of a file, of which a part is in memory."""

    def __init__(self, file: Path, stream: IO[bytes]) -> None:
        self._file, self._stream = file, stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._lines_before = 0
        self._is_whole = False
        self._text = ""
        self._position = 0

    def peek(self) -> str:
        """Pass over space and return the character that follows, "" at the end."""
        while True:
            rest = _SPACE.match(self._text, self._position)
            self._position = rest.end() if rest else self._position
            if self._position < len(self._text) or self._is_whole:
                return self._text[self._position : self._position + 1]
            self._read()

    def take(self, character: str) -> None:
        """Pass over a character that must follow, "" for the end."""
        if self.peek() != character:
            what = f"expecting {character!r}" if character else "text after the list"
            raise DataError(f"{self._where(self._position)}: not JSON ({what}).")
        self._position += len(character)

    def value(self, name: str) -> Any:
        """Return the value that follows and pass over it; `name` is for messages."""
        self.peek()
        while True:
            try:
                value, end = _parse(self._text, self._position)
                break
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self._text) - _LONGEST_TOKEN
                if self._is_whole or not (near_end or error.msg.startswith("Unterminated")):
                    where = self._where(error.pos)
                    raise DataError(f"{where}: not JSON ({error.msg}).") from error
                self._read()
            except (ValueError, RecursionError) as error:
                _refuse(name, error)
        _check_depth(self._text[self._position : end], name)
        self._position = end
        return value

    def _read(self) -> None:
        """Add a block as long as what is in memory, and drop what was passed over."""
        self._lines_before += self._text.count("\n", 0, self._position)
        self._text, self._position = self._text[self._position :], 0
        raw = self._stream.read(max(_BLOCK, len(self._text)))
        try:
            self._text += self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise DataError(f"{undecodable(self._file)}.") from error
        self._is_whole = not raw

    def _where(self, position: int) -> str:
        line = self._lines_before + self._text.count("\n", 0, position) + 1
        return f"{self._file}, line {line}"


def _list_rows(file: Path, stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _Text(file, stream)
    text.take("[")
    number = 0
    while text.peek() != "]":
        if number:
            text.take(",")
        where = f"row {number} of {file}, counted from 0"
        row = text.value(where)
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a mapping of columns to values.")
        yield number, row
        number += 1
    text.take("]")
    text.take("")
