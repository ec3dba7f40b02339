"""Plain text, and text with role tags.

Plain text is cut into documents, or stands in rows with a ``text``; tagged text is the guide's,
``<User>...</User>`` and ``<Assistant>...</Assistant>``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mypt.config import Markup
from mypt.data.conversations import Document
from mypt.data.reading.formats.markups import refuse_rendered
from mypt.data.reading.formats.message import fields_of, read_text, read_train
from mypt.data.reading.raw import RawFile, decode, lines
from mypt.data.reading.records import BLANK, WEIGHTS, WHOLE, Dropped, Place, Record, Tally
from mypt.errors import DataError
from mypt.text import shown

DOCUMENT_BYTES = 16 << 10
"""Longest document that is cut from a text file: longer than any context here, short enough
that one book gives rows for both train and val."""
SPEAKERS: Final = frozenset({"role", "from", "speaker", "sender", "participant"})
"""Fields of a row that say who speaks; such a row is no plain text."""
_SPOKEN: Final = frozenset({"user", "assistant", "human", "gpt", "bot", "chatgpt", "prompter"})
"""What no field says but of who speaks."""
_READ: Final = frozenset({"text", *WEIGHTS})
TAGS = ("User", "Assistant", "System", "Tool")
_TAG = re.compile(rf"<(/?)({'|'.join(TAGS)})>")


def read_text_rows(
    row: Any, place: Place, tally: Tally, markup: Markup | None = None
) -> Iterator[Document]:
    """Yield the document of a row with a ``text``, however long it is.

    Args:
        row: The row.
        place: Where it stands, for errors.
        tally: Counts the fields that are not read.
        markup: "none" takes it as it is; else text that may be a message's is refused.

    Raises:
        DataError: If there is no text, or somebody says it.
        Dropped: If it is blank, or ``train`` or ``weight`` say to leave it unsupervised: a
            document is nobody's context.
    """
    fields = fields_of(row, place)
    text = read_text(fields, "text", place)
    if markup != "none":
        refuse_speaker(fields, place)
        refuse_rendered(text, place)
    tally.check_fields(fields, _READ, place)
    if not text.strip():
        raise Dropped("a document without text")
    train = read_train(fields, place)
    if train is False:
        raise Dropped("a document of weight 0")
    yield Document(text, place.origin, None if train is True else train)


def refuse_speaker(fields: Mapping[str, Any], place: Place) -> None:
    """See that nobody says the text of a row.

    Raises:
        DataError: If a field tells who, with the ways to read such rows.
    """
    for key, value in fields.items():
        if key == "text":
            continue
        named = key.lower() in SPEAKERS and value not in (None, "")
        if named or (isinstance(value, str) and value.lower() in _SPOKEN):
            raise DataError(
                f"{place}: {key} {shown(fields[key])} says who speaks the text; expected a message"
                " with role and content, of user or assistant, say; rename the fields, or --format"
                " text takes the text as it is, every token learned"
            )


def read_text_file(raw: RawFile, tally: Tally, markup: Markup | None = None) -> Iterator[Document]:
    """Yield the text of a file in documents that, joined, are the file byte for byte.

    A document ends at the last empty line in the second half of ``DOCUMENT_BYTES``, or else
    at the last line feed there, or else between any two characters. Only the byte order mark
    at the start of a file is no part of its text. Unless ``markup`` is "none", text with role
    tags is refused.

    Raises:
        DataError: If the file is no UTF-8, holds nothing but white space, or a chat.
    """
    offset, line = raw.stretch.start, raw.stretch.line
    blank = raw.stretch == WHOLE
    for piece in cut_documents(raw.chunks()):
        if offset:
            tally.notes["text cut into one more document"] += 1
        place = raw.place(line)
        text = decode(piece, offset, place)
        if markup != "none":
            refuse_rendered(text, place)
        yield Document(text, place.origin)
        blank = blank and not text.strip()
        offset, line = offset + len(piece), line + piece.count(b"\n")
    if blank:
        raise DataError(f"{raw.name}: only white space; expected text; leave the file out")


def cut_documents(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut the bytes of a text file into documents, as :func:`read_text_file` says."""
    held = b""
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start > DOCUMENT_BYTES:
            stop = _end_of_document(held, start)
            yield held[start:stop]
            start = stop
        held = held[start:]
    if held:
        yield held


def _end_of_document(data: bytes, start: int) -> int:
    middle, end = start + DOCUMENT_BYTES // 2, start + DOCUMENT_BYTES
    for marks in ((b"\n\n", b"\n\r\n"), (b"\n",)):
        found = [data.rfind(mark, middle, end) + len(mark) for mark in marks]
        if max(found) > middle:
            return max(found)
    # A character takes at most four bytes, and all but its first begin with the bits 10.
    return next((at for at in range(end, end - 4, -1) if data[at] & 0xC0 != 0x80), end)


def read_turns(raw: RawFile) -> Iterator[Record]:
    """Yield each tagged turn as a message of the chat format, and BLANK for an empty line.

    What stands between the tags of a turn is its content, byte for byte, empty lines too.
    Between turns only white space may stand, and an empty line there ends the conversation.

    Raises:
        DataError: For text outside the tags, or a tag that opens or closes out of turn.
    """
    turn = _Turn(raw.limits.row_bytes)
    for line in lines(raw):
        place = raw.place(line.number)
        text = decode(line.data, line.offset, place) + "\n"
        if not turn.name and not text.strip():
            yield Record(BLANK, place, 0)
            continue
        at = 0
        for tag in _TAG.finditer(text):
            turn.add(text[at : tag.start()], place)
            if tag[1]:
                yield turn.close(tag[2], place)
            else:
                turn.open(tag[2], place)
            at = tag.end()
        turn.add(text[at:], place)
    if turn.name:
        raise DataError(f"{turn.place}: <{turn.name}> is never closed; expected </{turn.name}>")
    if not turn.place:
        raise DataError(f"{raw.name}: no turns found; expected <User>...</User>; leave it out")


class _Turn:
    """The turn that is being read; without a name, the space between turns."""

    def __init__(self, most_bytes: int) -> None:
        self.name = ""
        self.place: Place | None = None
        self._most_bytes = most_bytes
        self._content: list[str] = []
        self._n_bytes = 0

    def open(self, name: str, place: Place) -> None:
        if self.name:
            raise DataError(
                f"{place}: <{name}> inside <{self.name}> of {self.place}; expected"
                f" </{self.name}> before it, or the text in a JSON format, where it is only text"
            )
        self.name, self.place, self._content, self._n_bytes = name, place, [], 0

    def add(self, text: str, place: Place) -> None:
        if not self.name and text.strip():
            raise DataError(
                f"{place}: found {shown(text.strip())} between turns; expected one of"
                f" {', '.join(f'<{tag}>' for tag in TAGS)}"
            )
        self._content.append(text)
        self._n_bytes += len(text)
        if self._n_bytes > self._most_bytes:
            raise DataError(f"{self.place}: a turn of more than {self._most_bytes:,} characters")

    def close(self, name: str, place: Place) -> Record:
        if name != self.name or self.place is None:
            opened = f"<{self.name}> of {self.place} is open" if self.name else "no turn is open"
            raise DataError(f"{place}: </{name}> found, but {opened}; mend the tags")
        message = {"role": name.lower(), "content": "".join(self._content)}
        record = Record(message, self.place, self._n_bytes)
        self.name, self._n_bytes = "", 0
        return record
