"""Raw files as bounded pieces of bytes: unpacked, hashed and counted while they are read."""

import codecs
import gzip
import hashlib
import lzma
import re
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, Final, NamedTuple, cast

from mypt import files
from mypt.data.reading.records import WHOLE, ByteRange, Place, Unit, Where
from mypt.errors import DataError, MissingFileError
from mypt.text import one_line

CHUNK: Final = 256 << 10
"""Bytes that are read at a time."""
# Its decoder takes no limit, and 4 bytes of it can unpack to 128 KiB: 8 MiB a slice.
_ZSTD_SLICE = 256
_ZSTD_WINDOW = 128 << 20
BOM = b"\xef\xbb\xbf"
_HEAD = 8


class Stored:
    """A stretch of the bytes as they are stored, counted and hashed as they pass."""

    def __init__(self, file: BinaryIO, stretch: ByteRange) -> None:
        self._file, self._stop = file, stretch.stop
        file.seek(stretch.start)
        self.n_read = 0
        self.hasher = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most ``size`` of them; none at the end of the stretch."""
        if self._stop is not None:
            left = self._stop - self._file.tell()
            size = left if size < 0 else min(size, left)
        data = self._file.read(size)
        self.n_read += len(data)
        self.hasher.update(data)
        return data


def _plain(stored: Stored) -> Iterator[bytes]:
    while data := stored.read(CHUNK):
        yield data


def _gunzip(stored: Stored) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=cast(BinaryIO, stored), mode="rb") as file:
        while data := file.read(CHUNK):
            yield data


def _unxz(stored: Stored) -> Iterator[bytes]:
    with lzma.LZMAFile(cast(BinaryIO, stored)) as file:
        while data := file.read(CHUNK):
            yield data


def _unzstd(stored: Stored) -> Iterator[bytes]:
    from zstandard import ZstdDecompressor, ZstdError

    frames = ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame = None
    while data := stored.read(_ZSTD_SLICE):
        while data:
            frame = frame or frames.decompressobj()
            try:
                yield frame.decompress(data)
            except ZstdError as error:
                raise OSError(str(error)) from None
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("it ends inside a zstd frame")


_UNPACK: Final = {"": _plain, ".gz": _gunzip, ".xz": _unxz, ".zst": _unzstd}
PACKED: Final = (".gz", ".xz", ".zst")
"""Suffixes of files that are unpacked on the way."""
# No text begins like this: none is UTF-8 but the last, which is of zstd's skippable frames.
_MAGIC: Final = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}


class Limits(NamedTuple):
    """What a file may ask of the machine; beyond it the file is refused, not read."""

    row_bytes: int = 64 << 20
    """Longest line, JSON item or conversation."""
    nesting: int = 200
    """Deepest arrays and objects within one row."""
    brackets: int = 1_000_000
    """Most arrays and objects in one row; each takes thirty times its two bytes in memory."""
    free_expansion: int = 64 << 20
    """Bytes that a packed file may unpack to, however small it is."""
    expansion: int = 200
    """Beyond that, how many times its own size. Text packs about 4 times, logs 30 times."""
    table_expansion: int = 10_000
    """The same for a Parquet file, which writes a value that all rows share only once."""


class RawLine(NamedTuple):
    """One line without its line feed."""

    number: int
    """Counted from 1."""
    offset: int
    """Where it starts, in bytes of the unpacked file."""
    data: bytes


class RawFile:
    """One file of a source. ``bytes_done`` of ``size`` stored bytes are read so far."""

    def __init__(
        self,
        path: Path,
        index: int = 0,
        limits: Limits | None = None,
        stretch: ByteRange = WHOLE,
        encoding: str = "utf-8",
    ) -> None:
        """Look at the file without reading it.

        Args:
            path: Where it is.
            index: Its place among the files of its source.
            limits: What it may ask of the machine.
            stretch: Which of its bytes are read.
            encoding: What they mean, by the name that :mod:`codecs` has for it.

        Raises:
            DataError: If it is missing, empty, unreadable or no ordinary file.
        """
        self.path = path
        self._named = str(path)
        self.name = one_line(self._named)
        self.index = index
        self.limits = limits or Limits()
        self.stretch = stretch
        self.encoding = encoding
        self.bytes_done = 0
        self._sha256 = ""
        try:
            status = path.stat()
        except FileNotFoundError:
            raise MissingFileError(f"{self.name}: no such file; check the path") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}: cannot be read ({error}); check the path") from None
        if not S_ISREG(status.st_mode):
            raise DataError(f"{self.name}: no ordinary file; expected a file of rows or text")
        if not status.st_size:
            raise DataError(f"{self.name}: is empty; expected rows or text; leave it out")
        self.size = status.st_size

    def place(self, line: int, unit: Unit = "line") -> Place:
        """Return the place of a line, item or row of this file."""
        return Place(self._named, self.index, line, unit)

    @cached_property
    def head(self) -> bytes:
        """The first bytes as they are stored.

        Raises:
            DataError: If they cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                return file.read(_HEAD)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error}); check the file") from None

    @cached_property
    def packing(self) -> str:
        """What the file is packed as, by its first bytes and whatever it is called: its suffix.

        Raises:
            DataError: If it is called so and is none, or cannot be read.
        """
        found = (suffix for suffix, magic in _MAGIC.items() if magic.match(self.head))
        suffix, named = next(found, ""), self.path.suffix.lower()
        if not suffix and named in PACKED:
            raise DataError(
                f"{self.name}: its first bytes are not those of {named}; get an undamaged copy,"
                f" or, if it was never packed, give it a name without {named}"
            )
        return suffix

    @property
    def is_plain(self) -> bool:
        """Whether the stored bytes are those of the rows: neither packed nor in other letters."""
        return not self.packing and self.encoding == "utf-8"

    def has_bom(self) -> bool:
        """Return whether the file begins with a byte order mark, which :meth:`chunks` leaves out.

        Raises:
            DataError: If it cannot be read.
        """
        return self.head.startswith(BOM)

    def chunks(self) -> Iterator[bytes]:
        """Yield the unpacked bytes in order, as UTF-8 and without a byte order mark at the start.

        Raises:
            DataError: If the file is unreadable, damaged, cut off, or unpacks to more than
                the limits allow.
        """
        self.bytes_done, self._sha256, n_plain = 0, "", 0
        unpack = _UNPACK[self.packing]
        try:
            with self.path.open("rb") as file:
                stored = Stored(file, self.stretch)
                pieces = unpack(stored)
                if self.encoding != "utf-8":
                    pieces = _to_utf8(pieces, self.encoding, self.name)
                for piece in pieces if self.stretch.start else _without_bom(pieces):
                    self.bytes_done = stored.n_read
                    n_plain += len(piece)
                    self.check_expansion(n_plain)
                    yield piece
                self.bytes_done, self._sha256 = stored.n_read, stored.hasher.hexdigest()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(
                f"{self.name}: cannot be read to its end ({error}); get an undamaged copy"
            ) from None

    def beginning(self) -> bytes:
        """Return the first of those bytes, enough to tell what they are.

        Raises:
            DataError: As :meth:`chunks` does.
        """
        held = b""
        for piece in self.chunks():
            held += piece
            if len(held) >= CHUNK or self.bytes_done >= self.size:
                break
        return held

    def sha256(self) -> str:
        """Return the digest of the stored bytes, from a pass of its own.

        Raises:
            DataError: If the file cannot be read.
        """
        try:
            return files.sha256_file(self.path)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error}); check the file") from None

    def check_expansion(self, n_plain: int, times: int | None = None) -> None:
        """Compare the bytes unpacked so far with what a file of this size may unpack to.

        Args:
            n_plain: Unpacked bytes.
            times: How many times its size; default: ``limits.expansion``.

        Raises:
            DataError: If they are more.
        """
        times = times or self.limits.expansion
        allowed = max(self.limits.free_expansion, times * self.size)
        if n_plain > allowed:
            raise DataError(
                f"{self.name}: {self.size:,} bytes unpack to more than {allowed:,}; expected at"
                f" most {times:,} times as many; unpack it by hand if you trust it"
            )

    def check_unchanged(self, sha256: str) -> None:
        """Compare what was read with the digest taken before.

        Raises:
            DataError: If the file changed in between, so that its record would be untrue.
        """
        # Parquet is read out of order by its own library, so it is hashed once more.
        if (self._sha256 or self.sha256()) != sha256:
            raise DataError(f"{self.name}: changed while it was read; run again when it is at rest")


def lines(raw: RawFile) -> Iterator[RawLine]:
    r"""Cut a file at ``\n`` only; U+2028 or a lone carriage return ends no line.

    Raises:
        DataError: For a line over the limit, before it is read whole.
    """
    number, offset = raw.stretch.line, raw.stretch.start
    pending: list[bytes] = []
    n_pending = 0
    for chunk in raw.chunks():
        for index, piece in enumerate(chunk.split(b"\n")):
            if index:
                yield RawLine(number, offset, b"".join(pending))
                number, offset = number + 1, offset + n_pending + 1
                pending, n_pending = [], 0
            pending.append(piece)
            n_pending += len(piece)
            if n_pending > raw.limits.row_bytes:
                raise DataError(
                    f"{raw.place(number)}: a line of more than {raw.limits.row_bytes:,} bytes;"
                    " expected one row a line; cut it into rows"
                )
    if n_pending:
        yield RawLine(number, offset, b"".join(pending))


def decode(data: bytes, offset: int, place: Where) -> str:
    """Return UTF-8 bytes as text; ``offset`` is where they start in the file.

    Raises:
        DataError: If they are no UTF-8, naming the byte.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: byte 0x{data[error.start]:02x} at offset {offset + error.start} is no UTF-8"
            f" ({error.reason}); save the file as UTF-8, or say what it is, as"
            f" --encoding {_likely(data, offset)} does"
        ) from None


def _likely(data: bytes, offset: int) -> str:
    """Return what bytes that are no UTF-8 may be."""
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zero = data[:_HEAD].find(b"\0")
    # cp1252 is Latin-1 with letters where that has control characters, which nobody types.
    return "cp1252" if zero < 0 else "utf-16-le" if (offset + zero) % 2 else "utf-16-be"


def _to_utf8(pieces: Iterator[bytes], encoding: str, name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    n_read = 0
    try:
        for piece in pieces:
            yield decoder.decode(piece).encode()
            n_read += len(piece)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else "half a character"
        raise DataError(
            f"{name}: no {encoding} ({reason} in the {CHUNK:,} bytes from offset {n_read:,});"
            " name the --encoding that the file was saved in"
        ) from None


def _without_bom(pieces: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= len(BOM):
            break
    yield head.removeprefix(BOM)
    yield from pieces
