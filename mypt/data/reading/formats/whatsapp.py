"""A chat that WhatsApp wrote as text: a date, a time and a name begin a message."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from mypt.config import Reading
from mypt.data.conversations import Conversation
from mypt.data.reading.formats.people import Said, Talk, converse
from mypt.data.reading.raw import RawFile, decode, lines
from mypt.data.reading.records import Place, Tally
from mypt.errors import DataError
from mypt.text import shown

# "31/12/23, 11:59 PM - Ann: Hi", "[31.12.2023, 23:59:59] Ann: Hi", and as other languages do.
_DATE: Final = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\.?[,\u060c]?"
_TIME: Final = r"\D{0,8}?\d{1,2}[:.]\d\d(?:[:.]\d\d)?\D{0,8}?"
_HEADER: Final = re.compile(
    rf"[\u200e\u200f\u202a]*(?:\[{_DATE}\s{_TIME}\]|{_DATE}\s{_TIME}\s[-\u2013]) (.*)"
)
_DIRECTIONS: Final = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_UNTYPED: Final = "\u200e"
"""Begins what an iPhone puts in the place of a text."""
_MEDIA: Final = re.compile(r"<(?:[^<>]* [^<>]*|[^<>\x00-\x7f]+)>")
"""``<Media omitted>`` in any language; no tag of a markup has a blank alone in it."""
_EDITED: Final = re.compile(r"\s*\u200e?<This message was edited>$")
_DELETED: Final = frozenset({"This message was deleted", "You deleted this message"})
_QUOTES: Final = '"\u201c\u00ab'
"""A name with one of them is none, but a notice: Ann changed the subject to "Trip: Rome"."""


class _Entry(NamedTuple):
    """Lines from one date and time to the next."""

    text: str
    place: Place


def read_whatsapp(raw: RawFile, how: Reading, tally: Tally) -> Iterator[Conversation]:
    """Yield the conversation of a chat; a message goes on until a line begins as one does.

    Lines that nobody said, media and deleted messages are left out and counted.

    Raises:
        DataError: If the first line begins otherwise, the chat is longer than the limits
            allow, or two speakers are called as the assistant is.
    """
    talk = Talk(tally, raw.limits)
    for text, place in _entries(raw):
        head, colon, said = text.partition(": ")
        name = _DIRECTIONS.sub("", head).strip()
        if not colon or not name or "\n" in head or any(quote in name for quote in _QUOTES):
            tally.notes["service message left out"] += 1
            continue
        kept = _typed(said, tally)
        if kept:
            talk.add(Said(name, (name,), kept, place))
    yield from converse(talk.said, raw.place(1), tally, how)


def is_whatsapp(head: bytes) -> bool:
    """Return whether a text begins as such a chat, in which somebody speaks."""
    first = head.decode("utf-8", "replace").strip().splitlines()[:20]
    found = [_HEADER.match(line) for line in first]
    return bool(found and found[0]) and any(one and ": " in one[1] for one in found)


def _entries(raw: RawFile) -> Iterator[_Entry]:
    held: list[str] = []
    n_held, begun = 0, raw.place(1)
    for line in lines(raw):
        place = raw.place(line.number)
        text = decode(line.data, line.offset, place).removesuffix("\r")
        header = _HEADER.match(text)
        if header:
            if held:
                yield _Entry("\n".join(held), begun)
            held, n_held, begun = [header[1]], len(text), place
        elif held:
            held.append(text)
            n_held += len(text)
        elif text.strip():
            raise DataError(
                f"{place}: found {shown(text)}; expected a date and a time, as in '31/12/23, 23:59"
                " - Ann: Hi'; name the right --format"
            )
        if n_held > raw.limits.row_bytes:
            raise DataError(f"{begun}: a message of more than {raw.limits.row_bytes:,} characters")
    if held:
        yield _Entry("\n".join(held), begun)


def _typed(said: str, tally: Tally) -> str:
    """Return what somebody typed of a message, without notices in its place."""
    text, edits = _EDITED.subn("", said)
    if edits:
        tally.notes["mark of an edited message left out"] += 1
    if _DIRECTIONS.sub("", text).strip().rstrip(".") in _DELETED:
        tally.notes["deleted message left out"] += 1
        return ""
    head, _, caption = text.partition("\n")
    if head.startswith(_UNTYPED) or _MEDIA.fullmatch(head.strip()):
        tally.notes["media or notice in the place of a text left out"] += 1
        return caption.rstrip()
    if not text.strip():
        tally.notes["message without text left out"] += 1
    return text.rstrip()
