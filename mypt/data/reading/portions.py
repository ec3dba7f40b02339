"""What is prepared at a time: stretches of a source's files, cut where no row is."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mypt.config import Format, Reading
from mypt.data.conversations import Row
from mypt.data.reading.containers import container_of, first_row
from mypt.data.reading.formats.texts import cut_documents
from mypt.data.reading.formats.threads import links_of
from mypt.data.reading.raw import BOM, RawFile
from mypt.data.reading.readers import FROM_TEXT, read_rows, together
from mypt.data.reading.records import WHOLE, ByteRange, Tally
from mypt.parsing import Frozen
from mypt.text import one_line

PORTION_BYTES: Final = 16 << 20
"""A portion has about as many: seconds of work."""
_END_OF_LINE: Final = re.compile(rb"\n")
_END_OF_CHAT: Final = re.compile(rb"\n[ \t\r]*\n")


class FileSlice(Frozen):
    """Neighbouring bytes of one raw file, and their digest."""

    path: str
    file: int
    """Index of the file within its source."""
    stretch: ByteRange
    size: int
    """Bytes as stored."""
    sha256: str
    """Of them."""

    @property
    def name(self) -> str:
        """What people call it."""
        name = one_line(self.path)
        start, stop, _ = self.stretch
        return name if self.stretch == WHOLE else f"{name}, bytes {start:,} to {stop:,}"


class Portion(Frozen):
    """Neighbouring pieces of one source."""

    source: int
    how: Reading
    """With the format that was decided on."""
    pieces: tuple[FileSlice, ...]

    @property
    def size(self) -> int:
        """Bytes as stored."""
        return sum(piece.size for piece in self.pieces)

    def alone(self) -> "tuple[Portion, ...]":
        """Return a portion for each piece, or for those that are read together."""
        groups: list[tuple[FileSlice, ...]] = []
        for piece in self.pieces:
            if groups and _belong_together(groups[-1][-1], piece, self.how.format):
                groups[-1] += (piece,)
            else:
                groups.append((piece,))
        return tuple(self.model_copy(update={"pieces": group}) for group in groups)


def cut_portions(
    files: Iterable[tuple[RawFile, str]], source: int, how: Reading
) -> Iterator[Portion]:
    """Cut the files of a source into portions, in order.

    Small files go together, and so do all days of a Slack channel. A large one is cut where
    reading can begin afresh: text between two documents, lines between two rows. What is packed,
    a table, one JSON value, or messages that a column brings together stay whole. So the rows of
    all portions are the rows of the files.

    Args:
        files: With their sha256.
        source: Its place among the sources.
        how: How the rows are understood, with any format but "auto".

    Raises:
        DataError: If a large file changed since it was hashed.
    """
    held: list[FileSlice] = []
    for raw, sha256 in files:
        for piece in _pieces(raw, sha256, how):
            full = sum(one.size for one in held) + piece.size > PORTION_BYTES
            if held and full and not _belong_together(held[-1], piece, how.format):
                yield Portion(source=source, how=how, pieces=tuple(held))
                held = []
            held.append(piece)
    yield Portion(source=source, how=how, pieces=tuple(held))


def read_portion(portion: Portion, tally: Tally) -> Iterator[Row]:
    """Yield the rows of a portion; what is left out or changed is counted in ``tally``.

    Raises:
        DataError: For the first row that is wrong, or if a piece holds other bytes than it must.
    """
    raws = [
        RawFile(Path(one.path), one.file, None, one.stretch, portion.how.encoding)
        for one in portion.pieces
    ]
    digests = iter(piece.sha256 for piece in portion.pieces)
    for first, *more in together(raws, portion.how.format):
        yield from read_rows(first, portion.how, tally, more)
        for raw in (first, *more):
            raw.check_unchanged(next(digests))


def _belong_together(one: FileSlice, other: FileSlice, format: Format) -> bool:
    return format == "slack" and Path(one.path).parent == Path(other.path).parent


def _pieces(raw: RawFile, sha256: str, how: Reading) -> Iterator[FileSlice]:
    whole = FileSlice(
        path=str(raw.path), file=raw.index, stretch=WHOLE, size=raw.size, sha256=sha256
    )
    blocks = _blocks(raw, how)
    if raw.size <= PORTION_BYTES or blocks is None:
        yield whole
        return
    bom = BOM if raw.has_bom() else b""
    start, stop, hasher = 0, len(bom), hashlib.sha256(bom)
    line = next_line = 1
    found, blank = [], True

    def end() -> FileSlice:
        return FileSlice(
            path=str(raw.path),
            file=raw.index,
            stretch=ByteRange(start, stop, line),
            size=stop - start,
            sha256=hasher.hexdigest(),
        )

    for block, may_end in blocks:
        hasher.update(block)
        stop, next_line = stop + len(block), next_line + block.count(b"\n")
        blank = blank and not block.strip()
        if may_end and stop - start >= PORTION_BYTES:
            found.append(end())
            start, line, hasher = stop, next_line, hashlib.sha256()
    if stop > start:
        found.append(end())
    raw.check_unchanged(sha256)
    yield from [whole] if blank else found  # of white space alone the reader tells


def _blocks(raw: RawFile, how: Reading) -> Iterator[tuple[bytes, bool]] | None:
    """Yield the bytes of a file, and whether a row may begin behind them; None: nobody knows."""
    if not raw.is_plain or how.format in ("tagged", "whatsapp"):
        return None
    container = container_of(raw, text=how.format in FROM_TEXT)
    if container == "text" and how.format == "text":
        return ((document, True) for document in cut_documents(raw.chunks()))
    if container != "lines":
        return None
    if how.format != "chat":
        return _blocks_of_lines(raw, _END_OF_LINE)
    # Messages that a column brings together may lie anywhere in the file.
    linked = links_of(first_row(raw), how.group_by)
    return None if linked else _blocks_of_lines(raw, _END_OF_CHAT)


def _blocks_of_lines(raw: RawFile, ends: re.Pattern[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in raw.chunks():
        at = max((found.end() for found in ends.finditer(chunk)), default=0)
        if at:
            yield chunk[:at], True
        yield chunk[at:], False
