"""How a shard lies on disk: its files' names, and its arrays mapped from them."""

import ctypes
import os
import signal
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mypt import files
from mypt.data.manifest import METADATA, FileRecord, Shard, SourceRecord, Split
from mypt.data.spans import ROW_DTYPE, SPAN_DTYPE
from mypt.errors import DataError, ManifestError
from mypt.text import one_line

_MAPPED: dict[Path, int] = {}
"""Size of each file that was ever mapped."""
_KEPT: list[object] = []
"""What the system calls and so must not go."""
TOKENS, MASK, SPANS, ROWS = ".bin", "_mask.bin", "_spans.npy", "_rows.npy"
Scalar = TypeVar("Scalar", bound=np.generic)


def shard_name(split: Split, index: int, part: str = TOKENS) -> str:
    """Return a file's path below its dataset, such as ``train/shard_000_mask.bin``."""
    return f"{split}/shard_{index:03d}{part}"


class ShardView(NamedTuple):
    """One shard's arrays, mapped from disk and read-only; N tokens, S spans, R rows."""

    record: Shard
    tokens: NDArray[np.uint32]
    """(N,) ids."""
    mask: NDArray[np.uint8] | None
    """(N,) indices into the dataset's weights, 0 where unsupervised; None before masking."""
    spans: NDArray[np.void] | None
    """(S,) of ``SPAN_DTYPE``; None for shards made by hand."""
    rows: NDArray[np.void] | None
    """(R,) of ``ROW_DTYPE``; None for shards made by hand."""

    def span_edges(self, rows: Iterable[int]) -> list[int]:
        """Return where the spans of each row begin.

        Bisected, since numpy would copy all of the column at each call.
        """
        assert self.spans is not None, "the caller has looked"
        owner = np.asarray(self.spans)["conversation"]
        return [bisect_left(owner, row) for row in rows]


def origin(shard: ShardView, source: SourceRecord, row: int) -> str:
    """Return file and line of a row, counted in its shard; shard and row where none is known."""
    if shard.rows is None or not source.files:
        return f"{shard.record.tokens.name} row {row}"
    found = shard.rows[row]
    return f"{_last_name(source.files[found['file']].path)}:{found['line']}"


@cache
def _last_name(path: str) -> str:
    return PurePath(path).name


class TokenRange(NamedTuple):
    """Neighbouring tokens of one shard, [start, stop)."""

    shard: ShardView
    start: int
    """First token."""
    stop: int
    """One past the last token."""
    system: tuple[int, int] = (0, 0)
    """Tokens of the same shard that are read before them and never supervised, [start, stop)."""


def name_row(sources: Sequence[SourceRecord], places: Iterable[TokenRange]) -> str:
    """Return one batch row as people look it up: shard, tokens, and the raw file's lines.

    Args:
        sources: Of the dataset that the places lie in.
        places: The stretches that the row is made of; none gives "", a row of padding.
    """
    return " + ".join(
        f"{place.shard.record.tokens.name} tokens {place.start}..{place.stop}"
        f"{_raw_lines(sources, place)}"
        for place in places
    )


def _raw_lines(sources: Sequence[SourceRecord], place: TokenRange) -> str:
    rows = place.shard.rows
    if rows is None:  # made by hand: nobody recorded where the tokens came from
        return ""
    edges = rows["start"].searchsorted([place.start, place.stop - 1], side="right") - 1
    found = sources[place.shard.record.source].files
    (first, start), (last, stop) = (
        (_last_name(found[int(row["file"])].path), int(row["line"])) for row in rows[edges]
    )
    if first != last:
        return f" ({first} line {start} to {last} line {stop})"
    return f" ({first} line {start})" if start == stop else f" ({first} lines {start} to {stop})"


def view_shard(folder: Path, shard: Shard) -> ShardView:
    """Map the files of one shard; each kind has one reader with its own dtype.

    Raises:
        ManifestError: If a file is missing, has another name or length than it must have, or
            is of another layout.
    """

    def path(record: FileRecord, part: str) -> Path:
        expected = shard_name(shard.split, shard.index, part)
        if record.name != expected:
            raise ManifestError(f"{folder / METADATA}: file {record.name!r}, expected {expected!r}")
        return folder / expected

    mask, spans, rows = shard.mask, shard.spans, shard.rows
    u4, u1 = np.dtype(np.uint32), np.dtype(np.uint8)
    return ShardView(
        record=shard,
        tokens=map_flat(path(shard.tokens, TOKENS), u4, shard.n_tokens),
        mask=None if mask is None else map_flat(path(mask, MASK), u1, shard.n_tokens),
        spans=None if spans is None else _map_table(path(spans, SPANS), SPAN_DTYPE),
        rows=None if rows is None else _map_table(path(rows, ROWS), ROW_DTYPE, shard.n_rows),
    )


def check_ids(folder: Path, shard: ShardView, n_vocab: int) -> None:
    """Refuse token ids that no vocabulary row stands for.

    Raises:
        DataError: If there is one.
    """
    largest = int(shard.tokens.max(initial=0))
    if largest >= n_vocab:
        at = int((shard.tokens == largest).argmax())
        raise DataError(
            f"{folder / shard.record.tokens.name}: id {largest} found at token {at}, the vocabulary"
            f" has {n_vocab}; another tokenizer made the tokens, or they are not uint32"
        )


@cache
def _end_by_a_line() -> None:
    """Let a process that reads beyond the end of a file that shrank say so before it ends.

    The system sends it SIGBUS, of which Python's own handlers never hear.
    """

    def end(_: int) -> None:
        cut = [p for p, size in _MAPPED.items() if not p.exists() or p.stat().st_size < size]
        named = ", ".join(map(one_line, map(str, cut))) or "a file that is read"
        os.write(2, f"mypt: {named}: shrank while it was read; put a copy back\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    _KEPT.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, type(handler)), ctypes.c_void_p
    libc.signal(signal.SIGBUS, handler)


def _map(path: Path, size: int) -> None:
    _MAPPED[path.absolute()] = size
    _end_by_a_line()


def map_flat(path: Path, dtype: np.dtype[Scalar], length: int) -> NDArray[Scalar]:
    """Map a file that is nothing but ``length`` values.

    Raises:
        ManifestError: If it is missing or longer or shorter.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: missing, though {METADATA} lists it; prepare again")
    size, expected = path.stat().st_size, length * dtype.itemsize
    if size != expected:
        raise ManifestError(
            f"{path}: {size} bytes found, {expected} expected for {length} tokens of"
            f" {dtype.itemsize} bytes ({dtype.name}); prepare again"
        )
    if length == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    _map(path, size)
    return np.memmap(path, dtype, "r", shape=(length,))


def open_table(path: Path) -> NDArray[np.void]:
    """Map a ``.npy`` file as whatever its header says it is.

    Raises:
        ValueError: If it has no header that numpy understands, or is cut off.
        OSError: If it cannot be read.
    """
    try:
        files.open_ordinary(path).close()
        table: NDArray[np.void] = npy.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python, and damage raises anything
        raise ValueError(str(error) or type(error).__name__) from None
    _map(path, path.stat().st_size)
    return table


def _map_table(path: Path, dtype: np.dtype[np.void], length: int | None = None) -> NDArray[np.void]:
    try:
        table = open_table(path)
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing, though {METADATA} lists it; prepare again") from None
    except ValueError as error:
        raise ManifestError(f"{path}: no table of numpy's ({error}); prepare again") from None
    if table.dtype != dtype or table.ndim != 1 or (length is not None and len(table) != length):
        raise ManifestError(
            f"{path}: {table.dtype} {table.shape} found, {dtype} ({length or 'any'},) expected;"
            " prepare again"
        )
    return table
