"""Plain text: documents cut from whole files, and rows with a ``text``."""

from collections.abc import Iterator
from typing import Any

from mypt.data.conversations import Document
from mypt.data.formats.message import fields_of, read_text, read_train
from mypt.data.places import WHOLE, Place
from mypt.data.raw import RawFile, decode
from mypt.data.records import Dropped, Tally
from mypt.errors import DataError

DOCUMENT_BYTES = 16 << 10
"""Longest document that is cut from a text file: longer than any context here, short enough
that one book gives rows for both train and val."""


def read_text_rows(row: Any, place: Place, tally: Tally) -> Iterator[Document]:  # noqa: ARG001
    """Yield the document of a row with a ``text``, however long it is.

    Raises:
        DataError: If there is no text.
        Dropped: If it is blank, or ``train`` or ``weight`` say to leave it unsupervised: a
            document is nobody's context.
    """
    fields = fields_of(row, place)
    text = read_text(fields, "text", place)
    if not text.strip():
        raise Dropped("a document without text")
    if read_train(fields, place) is False:
        raise Dropped("a document of weight 0")
    yield Document(text, place.origin)


def read_text_file(raw: RawFile, tally: Tally) -> Iterator[Document]:
    """Yield the text of a file in documents that, joined, are the file byte for byte.

    A document ends at the last empty line in the second half of ``DOCUMENT_BYTES``, or else
    at the last line feed there, or else between any two characters. Only the byte order mark
    at the start of a file is no part of its text.

    Raises:
        DataError: If the file is no UTF-8 or holds nothing but white space.
    """
    offset, line = raw.stretch.start, raw.stretch.line
    blank = raw.stretch == WHOLE
    for piece in cut_documents(raw.chunks()):
        if offset:
            tally.notes["text cut into one more document"] += 1
        place = raw.place(line)
        text = decode(piece, offset, place)
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
