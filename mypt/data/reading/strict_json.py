"""JSON that hides nothing: no doubled key, no lone surrogate, no bottomless nesting."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

from mypt.data.reading.raw import Limits, RawFile, decode
from mypt.data.reading.records import Place
from mypt.errors import DataError
from mypt.text import names, shown

BLANKS = b" \t\r\n"
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+([\[\]{}])", re.DOTALL)
_BRACKET_OR_COMMA = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+([\[\]{},])", re.DOTALL)
_KEY = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_DEPTH = {b"[": 1, b"{": 1, b",": 0, b"]": -1, b"}": -1}
_CLOSING = {b"[": b"]", b"{": b"}"}
_MANY_DIGITS = re.compile(r"[0-9]{309}")
_HEAD = 80
_HELD = 64 << 10
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


def _whole_number(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


# Python refuses integers of more than 4,300 digits; as a number of no use here, any will do.
_HUGE = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_int=_whole_number)
_CURES = (
    (r"^'|^(None|True|False)\b", "this is how Python prints; write it with json.dumps"),
    (r"^.?\0", "this looks like UTF-16; say --encoding utf-16-le or utf-16-be"),
    (r"^(,\s*)?[\]}]", "remove the comma before a closing bracket"),
    (r"^,", "remove the comma after the value"),
    (r"^$", "the text ends too early; get the whole of it, or remove the row"),
    (r"^/[/*]|^#", "JSON has no comments; remove them"),
)
"""What to do, by what the text goes on with where it is no JSON."""
_CURES_BY_PROBLEM = {
    "Invalid control character": "write line feeds and tabs inside a string as \\n and \\t",
    "Unterminated string": "close the string, or get the whole file if it was cut off",
    "Invalid \\": "write a backslash inside a string twice",
    "Extra data": "write each row on a line of its own",
}


def parse_text(text: str, place: Place | str) -> Any:
    """Return the value of JSON that stands in a field or cell as text; see :func:`parse`.

    Raises:
        DataError: As :func:`parse` does.
    """
    return parse(text.encode(), 0, place, Limits())


def parse(data: bytes, offset: int, place: Place | str, limits: Limits) -> Any:
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
            f" {shown(text[error.pos :].lstrip() or text.strip())}; {_cure(text, error)}"
        ) from None
    return value


def spell(value: Any, place: Place | str) -> str:
    """Return a value as JSON on one line, equal values as equal text.

    Raises:
        DataError: If JSON has no such value, or a number is beyond what float64 reaches.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if _MANY_DIGITS.search(text):
            json.dumps(json.loads(text, parse_int=float), allow_nan=False)
    except ValueError:
        raise DataError(
            f"{place}: a number that is no JSON or beyond float64, such as NaN, Infinity or 1e999;"
            " expected numbers up to 1.7e308; write null, or the number as text"
        ) from None
    except TypeError as error:
        raise DataError(
            f"{place}: {error}; expected what JSON has: text, numbers, lists and objects"
        ) from None
    return text


def _cure(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos : error.pos + 80].lstrip(" \t\r\n")
    before = text[max(0, error.pos - 80) : error.pos].rstrip(" \t\r\n")
    is_cut = rest[:1] in ("]", "}") and not before.endswith(",")
    by_rest = (cure for begins, cure in _CURES if re.match(begins, rest) and not is_cut)
    by_problem = (c for problem, c in _CURES_BY_PROBLEM.items() if error.msg.startswith(problem))
    return next(by_rest, None) or next(by_problem, "mend the row or remove it")


def _decode(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except (json.JSONDecodeError, _DoubledKeyError):
        raise
    except ValueError:
        return _HUGE.decode(text)


def _check_brackets(data: bytes, place: Place | str, limits: Limits) -> None:
    opened = data.count(b"[") + data.count(b"{")
    if opened <= limits.nesting:
        return
    depth = opened = at = 0
    while match := _BRACKET.match(data, at):
        at = match.end()
        depth += _DEPTH[match[1]]
        opened += _DEPTH[match[1]] > 0
        _check_limits(depth, opened, place, limits)


def _check_limits(depth: int, opened: int, place: Place | str, limits: Limits) -> None:
    if depth > limits.nesting:
        raise _too_deep(place, limits)
    if opened > limits.brackets:
        raise DataError(
            f"{place}: more than {limits.brackets:,} arrays and objects in one row; expected a row"
            " of messages or text; remove it"
        )


def _too_deep(place: Place | str, limits: Limits) -> DataError:
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


class Member(NamedTuple):
    """One ``"key": value`` of the object that a JSON file is."""

    key: str
    head: bytes
    """How the value begins."""
    data: bytes | None
    """The value; None if it is longer than most."""


def members(raw: RawFile) -> Iterator[Member]:
    """Yield what the object of a JSON file holds, in bounded memory; of an array nothing.

    Raises:
        DataError: If there is no array or object, or it ends early.
    """
    window = _Window(raw)
    at = 1
    if window.opening() != b"{":
        return
    for number in count(1):
        place = raw.place(number, "item")
        found = window.key(at, place)
        if not found:
            return
        key, at = found
        head = window.data[at : at + _HEAD]
        start, at = window.skip(at, place, _HELD)
        yield Member(key, head, None if start is None else window.data[start:at])
        if window.data[at : at + 1] != b",":
            return
        at += 1


def items(raw: RawFile, path: Sequence[str] = ()) -> Iterator[Item]:
    """Cut the one array or object of a JSON file, or the one at ``path``, into its items.

    Brackets outside strings are counted, and only one item is held at a time, so that a file
    larger than the memory can be read; what an item holds is for :func:`parse` to judge.

    Raises:
        DataError: If there is no array or object, if it is cut off or followed by more, and
            for an item that is too long or too deep.
    """
    window = _Window(raw)
    opening = window.opening()
    start = at = window.enter(path)
    opening = window.data[at - 1 : at]
    depth = number = 1
    opened = 0
    while depth:
        match = (_BRACKET_OR_COMMA if depth == 1 else _BRACKET).match(window.data, at)
        place = raw.place(number, "item")
        if (match.end() if match else len(window.data)) - start > raw.limits.row_bytes:
            raise DataError(
                f"{place}: more than {raw.limits.row_bytes:,} bytes; expected one row an item;"
                " where rows lie deeper, name their key, such as --rows_at data"
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
    window.check_end(at, opening, len(path))


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

    def key(self, at: int, place: Place) -> tuple[str, int] | None:
        """Return the key that stands at ``at``, and where its value now begins; None: no more."""
        match, grows = _KEY.match(self.data, at), True
        while grows and (not match or len(self.data) - match.end() < _HEAD):
            grows = len(self.data) - at <= self._raw.limits.row_bytes and self.more(at)
            at, match = 0, _KEY.match(self.data)
        if match:
            return parse(match[1], self.offset + at, place, self._raw.limits), match.end()
        rest = self.data[at:].lstrip(BLANKS)
        if rest[:1] == b"}":
            return None
        found = shown(rest[:80].decode("utf-8", "replace"))
        raise DataError(f"{place}: no JSON; found {found}; expected a key in double quotes")

    def skip(self, at: int, place: Place, held: int) -> tuple[int | None, int]:
        """Return where the value at ``at`` now begins, and ends; None: longer than ``held``."""
        start: int | None = at
        depth = 1
        while True:
            match = (_BRACKET_OR_COMMA if depth == 1 else _BRACKET).match(self.data, at)
            if match:
                at = match.end()
                depth += _DEPTH[match[1]]
                if depth == 0 or (depth == 1 and match[1] == b","):
                    return start, at - 1
                continue
            start = None if start is None or len(self.data) - start > held else start
            keep = at if start is None else start
            if len(self.data) - at > self._raw.limits.row_bytes or not self.more(keep):
                raise DataError(f"{place}: the file ends inside it; get the whole file")
            start, at = None if start is None else 0, at - keep

    def enter(self, path: Sequence[str]) -> int:
        """Return what stands behind the opening bracket that ``path`` leads to."""
        at = 1
        for key in path:
            passed: list[str] = []
            place = self._raw.place(1, "item")
            found = self.key(at, place) if self.data[at - 1 : at] == b"{" else None
            while found and found[0] != key:
                passed.append(found[0])
                _, at = self.skip(found[1], place, 0)
                is_last = self.data[at : at + 1] != b","
                found = None if is_last else self.key(at + 1, place)
            if not found or self.data[found[1] : found[1] + 1] not in _CLOSING:
                what = "no list or object" if found else names(passed) or "no fields"
                raise DataError(
                    f"{self._raw.name}: no rows at {'.'.join(path)!r}: found {what} where {key!r}"
                    " should lead to them; expected keys joined by dots; mend --rows_at"
                )
            at = found[1] + 1
        return at

    def leave(self, at: int, levels: int) -> int:
        """Return what stands behind the closing brackets of so many objects around ``at``."""
        for _ in range(levels):
            while self.data[at : at + 1] != b"}":
                _, at = self.skip(at, self._raw.place(1, "item"), 0)
                if self.data[at : at + 1] == b"]":
                    raise DataError(f"{self._raw.name}: no JSON; ']' closes what '{{' opened")
                at += self.data[at : at + 1] == b","
            at += 1
        return at

    def check_end(self, at: int, opening: bytes, levels: int = 0) -> None:
        """See that the closing bracket fits, ``levels`` more follow, and nothing behind them."""
        closing = self.data[at - 1 : at]
        if closing != _CLOSING[opening]:
            raise DataError(
                f"{self._raw.name}: no JSON; {closing.decode()!r} closes what"
                f" {opening.decode()!r} opened"
            )
        at = self.leave(at, levels)
        rest = self.data[at:].strip(BLANKS)
        while not rest and self.more(len(self.data)):
            rest = self.data.strip(BLANKS)
        if rest:
            raise DataError(
                f"{self._raw.name}: no JSON; found {shown(rest[:80].decode('utf-8', 'replace'))}"
                " after the end; write the rows as one array, or each on a line of its own in a"
                " .jsonl file"
            )
