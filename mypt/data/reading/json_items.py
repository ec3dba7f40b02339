"""The items and members of a JSON file, cut out in bounded memory and still unparsed."""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from mypt.data.reading.raw import RawFile
from mypt.data.reading.records import Place
from mypt.data.reading.strict_json import BLANKS, BRACKET, DEPTH, STRING, check_limits, parse
from mypt.errors import DataError
from mypt.text import names, shown

_BRACKET_OR_COMMA = re.compile(rb'(?:[^"\[\]{},]++|' + STRING + rb")*+([\[\]{},])", re.DOTALL)
_PLAIN = re.compile(rb'(?:[^"\[\]{}]++|' + STRING + rb")*+", re.DOTALL)
_KEY = re.compile(rb"[ \t\r\n]*+(" + STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_CLOSING = {b"[": b"]", b"{": b"}"}
_HEAD = 80
_HELD = 64 << 10


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


def members(raw: RawFile, path: Sequence[str] = ()) -> Iterator[Member]:
    """Yield what the object of a JSON file, or the one at ``path``, holds; of an array nothing.

    The memory is bounded.

    Raises:
        DataError: If there is no array or object, or it ends early.
    """
    window = _Window(raw)
    window.opening()
    at = window.enter(path)
    if window.data[at - 1 : at] != b"{":
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
        match = (_BRACKET_OR_COMMA if depth == 1 else BRACKET).match(window.data, at)
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
        depth += DEPTH[match[1]]
        opened += DEPTH[match[1]] > 0
        check_limits(depth - 1, opened, place, raw.limits)
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
            match = (_BRACKET_OR_COMMA if depth == 1 else BRACKET).match(self.data, at)
            if match:
                at = match.end()
                depth += DEPTH[match[1]]
                if depth == 0 or (depth == 1 and match[1] == b","):
                    return start, at - 1
                continue
            start = None if start is None or len(self.data) - start > held else start
            plain = _PLAIN.match(self.data, at)
            at = plain.end() if plain else at
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
