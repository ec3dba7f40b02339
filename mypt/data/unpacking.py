"""How packed files are unpacked, a bounded piece at a time."""

import gzip
import hashlib
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

from mypt.data.places import Stretch

CHUNK: Final = 256 << 10
"""Bytes that are read at a time."""
# Its decoder takes no limit, and 4 bytes of it can unpack to 128 KiB: 8 MiB a slice.
_ZSTD_SLICE = 256
_ZSTD_WINDOW = 128 << 20


class Stored:
    """A stretch of the bytes as they are stored, counted and hashed as they pass."""

    def __init__(self, file: BinaryIO, stretch: Stretch) -> None:
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


_UNPACK: Final = {".gz": _gunzip, ".xz": _unxz, ".zst": _unzstd}


def unpacker(path: Path) -> Callable[[Stored], Iterator[bytes]]:
    """Return what unpacks a file of this name."""
    return _UNPACK.get(path.suffix.lower(), _plain)
