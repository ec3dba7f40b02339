"""JSON that hides nothing: no doubled key, no lone surrogate, no bottomless nesting."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mypt.data.reading.raw import Limits, RawFile, decode
from mypt.data.reading.records import Place
from mypt.errors import DataError
from mypt.text import shown

BLANKS = b" \t\r\n"
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+([\[\]{}])", re.DOTALL)
_BRACKET_OR_COMMA = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+([\[\]{},])", re.DOTALL)
_DEPTH = {b"[": 1, b"{": 1, b",": 0, b"]": -1, b"}": -1}
_CLOSING = {b"[": b"]", b"{": b"}"}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _DoubledKeyError(ValueError):
    pass


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DoubledKeyError(next(key for key in keys if keys.count(key) > 1))
    return fields


_STRICT = json.JSONDecoder(object_pairs_hook=_without_doubles)
# Python refuses integers of more than 4,300 digits; as a number of no use here, any will do.
_HUGE = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_int=float)


def parse(data: bytes, offset: int, place: Place, limits: Limits) -> Any:
    """Return the value of one JSON text.

    Args:
        data: The text's bytes, strict UTF-8.
        offset: Where they start in the file, for errors.
        place: The row they belong to, for errors.
        limits: How deep and how many its arrays and objects may be.

    Raises:
        DataError: If it is no JSON or beyond the limits, has a key twice in one object, or
            holds half of a surrogate pair, which no tokenizer can encode.
    """
    text = decode(data, offset, place)
    _check_brackets(data, place, limits)
    try:
        value = _decode(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except _DoubledKeyError as error:
        raise DataError(
            f"{place}: the key {shown(error.args[0])} stands twice in one object; which one"
            " counts cannot be known; remove one"
        ) from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{place}: {half} is half of a surrogate pair and no character; expected text that"
            " UTF-8 can hold; repair or remove the row"
        ) from None
    except RecursionError:
        raise _too_deep(place, limits) from None
    except json.JSONDecodeError as error:
        problem = "a second value" if error.msg == "Extra data" else error.msg
        raise DataError(
            f"{place}: no JSON ({problem} at character {error.pos + 1}); found"
            f" {shown(text[error.pos :].lstrip() or text.strip())}"
        ) from None
    return value


def _decode(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except (json.JSONDecodeError, _DoubledKeyError):
        raise
    except ValueError:
        return _HUGE.decode(text)


def _check_brackets(data: bytes, place: Place, limits: Limits) -> None:
    opened = data.count(b"[") + data.count(b"{")
    if opened <= limits.nesting:
        return
    depth = opened = at = 0
    while match := _BRACKET.match(data, at):
        at = match.end()
        depth += _DEPTH[match[1]]
        opened += _DEPTH[match[1]] > 0
        _check_limits(depth, opened, place, limits)


def _check_limits(depth: int, opened: int, place: Place, limits: Limits) -> None:
    if depth > limits.nesting:
        raise _too_deep(place, limits)
    if opened > limits.brackets:
        raise DataError(
            f"{place}: more than {limits.brackets:,} arrays and objects in one row; expected a row"
            " of messages or text; remove it"
        )


def _too_deep(place: Place, limits: Limits) -> DataError:
    return DataError(
        f"{place}: arrays or objects nested more than {limits.nesting} deep; expected a row of"
        " messages or text; remove it"
    )


class Item(NamedTuple):
    """One item of an array, or one ``"key": value`` of an object, still unparsed."""

    number: int
    """Counted from 1."""
    offset: int
    """Where it starts, in bytes of the unpacked file."""
    data: bytes
    keyed: bool
    """Whether it came from an object."""


def items(raw: RawFile) -> Iterator[Item]:
    """Cut the one array or object of a JSON file into its items.

    Brackets outside strings are counted, and only one item is held at a time, so that a file
    larger than the memory can be read; what an item holds is for :func:`parse` to judge.

    Raises:
        DataError: If there is no array or object, if it is cut off or followed by more, and
            for an item that is too long or too deep.
    """
    window = _Window(raw)
    opening = window.opening()
    start = at = depth = number = 1
    opened = 0
    while depth:
        match = (_BRACKET_OR_COMMA if depth == 1 else _BRACKET).match(window.data, at)
        place = raw.place(number, "item")
        if (match.end() if match else len(window.data)) - start > raw.limits.row_bytes:
            raise DataError(
                f"{place}: more than {raw.limits.row_bytes:,} bytes; expected one row an item"
            )
        if not match:
            if not window.more(start):
                raise DataError(f"{place}: the file ends inside it; get the whole file")
            start, at = 0, at - start
            continue
        at = match.end()
        depth += _DEPTH[match[1]]
        opened += _DEPTH[match[1]] > 0
        _check_limits(depth - 1, opened, place, raw.limits)
        if depth == 0 or (depth == 1 and match[1] == b","):
            item = Item(number, window.offset + start, window.data[start : at - 1], opening == b"{")
            if depth or number > 1 or item.data.strip(BLANKS):
                yield item
            number, start, opened = number + 1, at, 0
    window.check_end(at, opening)


class _Window:
    """The stretch of a JSON file that is held in memory."""

    def __init__(self, raw: RawFile) -> None:
        self.data = b""
        self.offset = 0
        self._raw = raw
        self._chunks = raw.chunks()

    def more(self, start: int) -> bool:
        """Forget what stands before ``start`` and read at least as much as is left."""
        self.data, self.offset = self.data[start:], self.offset + start
        pieces, wanted = [self.data], max(1, len(self.data))
        for piece in self._chunks:
            pieces.append(piece)
            wanted -= len(piece)
            if wanted <= 0:
                break
        self.data = b"".join(pieces)
        return len(self.data) > len(pieces[0])

    def opening(self) -> bytes:
        """Read up to the first bracket and return it."""
        while not self.data.lstrip(BLANKS) and self.more(len(self.data)):
            pass
        self.more(len(self.data) - len(self.data.lstrip(BLANKS)))
        if self.data[:1] not in _CLOSING:
            found = shown(self.data.decode("utf-8", "replace")) if self.data else "white space"
            raise DataError(
                f"{self._raw.place(1)}: found {found}; expected a JSON array or object of rows"
            )
        return self.data[:1]

    def check_end(self, at: int, opening: bytes) -> None:
        """See that the closing bracket fits and that nothing follows it."""
        closing = self.data[at - 1 : at]
        if closing != _CLOSING[opening]:
            raise DataError(
                f"{self._raw.name}: no JSON; {closing.decode()!r} closes what"
                f" {opening.decode()!r} opened"
            )
        rest = self.data[at:].strip(BLANKS)
        while not rest and self.more(len(self.data)):
            rest = self.data.strip(BLANKS)
        if rest:
            raise DataError(
                f"{self._raw.name}: no JSON; found {shown(rest[:80].decode('utf-8', 'replace'))}"
                " after the end; rows on lines of their own belong in a .jsonl file"
            )
