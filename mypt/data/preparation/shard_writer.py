"""Shards written as a stream: rows are appended to open files, and never cut.

Which rows are kept for validation is a function of what they say, so that twins never cross.
"""

import io
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mypt import files
from mypt.data.manifest import SPLITS, Shard, Split, record_file
from mypt.data.preparation.encoding import Encoded
from mypt.data.reading.formats.texts import DOCUMENT_BYTES
from mypt.data.shards import ROWS, SPANS, TOKENS, shard_name
from mypt.data.spans import ROW_DTYPE, SPAN_DTYPE
from mypt.errors import DataError

TOKEN_DTYPE: Final = np.dtype("<u4")
_NO_VALIDATION: Final = "set val_fraction to 0, which a pipeline refuses, since it evaluates on val"


class ShardWriter:
    """Writes encoded rows as shards of one source each; holds one batch, never a shard."""

    def __init__(
        self,
        folder: Path,
        shard_tokens: int,
        n_vocab: int,
        together: int = 1,
        after: Sequence[Shard] = (),
    ) -> None:
        """Write below ``folder``; a shard ends with the row that fills ``shard_tokens``.

        So many rows at a time stand ``together`` in one shard; shards that lie there already are
        those that the new ones come ``after``.
        """
        self._folder, self._together = folder, together
        self._shard_tokens = shard_tokens
        self._n_vocab = n_vocab
        self._open: dict[Split, _OpenShard] = {}
        self._done = list(after)

    @property
    def n_tokens(self) -> int:
        """Tokens written so far."""
        done = sum(shard.n_tokens for shard in self._done)
        return done + sum(shard.n_tokens for shard in self._open.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            for shard in self._open.values():
                closing.callback(shard.abandon)

    def append(self, split: Split, source: int, encoded: Encoded) -> None:
        """Write whole rows of one source.

        Raises:
            DataError: If an id is not in the vocabulary.
        """
        largest = int(encoded.tokens.max(initial=0))
        if largest >= self._n_vocab:
            raise DataError(
                f"token id {largest} found, the vocabulary has {self._n_vocab}; the tokens were"
                " made by another tokenizer than the dataset's"
            )
        first, rows = 0, encoded.rows
        while first < len(rows):
            shard = self._shard(split, source)
            filled = rows["stop"][first:] - rows["start"][first]
            room = np.uint64(self._shard_tokens - shard.n_tokens)
            stop = first + int(np.searchsorted(filled, room)) + 1
            stop = min(stop + (first - stop) % self._together, len(rows))
            shard.append(encoded, first, stop)
            first = stop

    def close(self) -> tuple[Shard, ...]:
        """Finish the open shards and return all of them, train before val."""
        for split in tuple(self._open):
            self._finish(split)
        return tuple(sorted(self._done, key=lambda s: (SPLITS.index(s.split), s.index)))

    def _shard(self, split: Split, source: int) -> "_OpenShard":
        shard = self._open.get(split)
        if shard and (shard.source != source or shard.n_tokens >= self._shard_tokens):
            self._finish(split)
        if split not in self._open:
            index = sum(done.split == split for done in self._done)
            self._open[split] = _OpenShard(self._folder, split, index, source)
        return self._open[split]

    def _finish(self, split: Split) -> None:
        self._done.append(self._open.pop(split).close())


class _OpenShard:
    """The shard that is being written."""

    def __init__(self, folder: Path, split: Split, index: int, source: int) -> None:
        (folder / split).mkdir(exist_ok=True)
        self.source = source
        self.n_tokens = 0
        self._folder, self._split, self._index = folder, split, index
        self._names = [shard_name(split, index, part) for part in (TOKENS, SPANS, ROWS)]
        self._files = [files.create(folder / name) for name in self._names]
        self._tokens = self._files[0]
        self._spans = _Table(self._files[1], SPAN_DTYPE)
        self._rows = _Table(self._files[2], ROW_DTYPE)

    def append(self, encoded: Encoded, first: int, stop: int) -> None:
        """Write rows ``first`` to ``stop``, counting tokens and rows on from this shard's."""
        rows = encoded.rows[first:stop].copy()
        left, right = np.searchsorted(encoded.spans["conversation"], (first, stop))
        spans = encoded.spans[left:right].copy()
        start, end = int(rows["start"][0]), int(rows["stop"][-1])
        for table in (rows, spans):
            for edge in ("start", "stop"):
                table[edge] = table[edge] - np.uint64(start) + np.uint64(self.n_tokens)
        spans["conversation"] = spans["conversation"] - first + self._rows.length
        self._tokens.write(encoded.tokens[start:end].astype(TOKEN_DTYPE, copy=False).tobytes())
        self._spans.append(spans)
        self._rows.append(rows)
        self.n_tokens += end - start

    def abandon(self) -> None:
        """Let go of the files; whoever made the folder removes it."""
        with ExitStack() as closing:  # a full disk fails at each close; none may stay open
            for file in self._files:
                closing.callback(file.close)

    def close(self) -> Shard:
        """Finish the files and return their record."""
        self._spans.finish()
        self._rows.finish()
        self.abandon()
        tokens, spans, rows = (record_file(self._folder, name) for name in self._names)
        return Shard(
            split=self._split,
            index=self._index,
            source=self.source,
            n_tokens=self.n_tokens,
            n_rows=self._rows.length,
            tokens=tokens,
            spans=spans,
            rows=rows,
        )


class _Table:
    """A ``.npy`` file that grows: numpy pads its header so that the length fits in later."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[np.void]) -> None:
        self.length = 0
        self._file, self._dtype = file, dtype
        file.write(self._header())

    def append(self, rows: NDArray[np.void]) -> None:
        self.length += len(rows)
        self._file.write(rows.tobytes())

    def finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())

    def _header(self) -> bytes:
        described: dict[str, Any] = {
            "descr": npy.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        header = io.BytesIO()
        npy.write_array_header_1_0(header, described)
        return header.getvalue()


class RowSplit:
    """Sends rows to train or val by a 64-bit key of their digest, and remembers the extremes.

    A small corpus may have no key below the threshold, or none above. Then :meth:`repaired`
    moves the threshold just so far that both splits have a row, and the twins of that row.
    """

    def __init__(self, val_fraction: float) -> None:
        """Send the share ``val_fraction`` of all possible keys to val."""
        self._threshold = math.ceil(val_fraction * 2**64)
        self._smallest, self._largest = 2**64, -1
        self._n_rows = 0

    def in_val(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Return which of ``rows``, (R,) of ``ROW_DTYPE``, belong to val."""
        if not len(rows):
            return np.zeros(0, np.bool_)
        self._n_rows += len(rows)
        keys = row_keys(rows)
        self._smallest = min(self._smallest, int(keys.min()))
        self._largest = max(self._largest, int(keys.max()))
        found: NDArray[np.bool_] = keys < np.uint64(self._threshold)
        return found

    @property
    def empty(self) -> Split | None:
        """The split that got none of the rows seen, though it should have; None if both did."""
        if not self._threshold or self._smallest < self._threshold <= self._largest:
            return None
        return "val" if self._threshold <= self._smallest else "train"

    def repaired(self, where: str) -> "RowSplit":
        """Return a split that gives each side a row of those seen.

        Args:
            where: What the rows are called in errors.

        Raises:
            DataError: If there is one, or all say the same, so that none can be kept apart.
        """
        if self._n_rows == 1:
            raise DataError(
                f"{where}: one row is all there is, so none can be kept for validation; bring"
                f" more (text is one row up to {DOCUMENT_BYTES >> 10} KiB, conversations part at an"
                f" empty line), or {_NO_VALIDATION}"
            )
        if self._smallest >= self._largest:
            raise DataError(
                f"{where}: all rows say the same, so none can be kept for validation; expected at"
                f" least two different rows; add some, or {_NO_VALIDATION}"
            )
        split = RowSplit(0.0)
        split._threshold = self._smallest + 1 if self.empty == "val" else self._largest
        return split


def row_keys(rows: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return (R,) what of each row's digest decides where it goes, as good as chance."""
    digests = np.ascontiguousarray(rows["digest"])
    return digests.view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)


def select_rows(encoded: Encoded, chosen: NDArray[np.bool_]) -> Encoded:
    """Return the ``chosen`` rows, (R,) of bool, with offsets counted anew."""
    row_lengths = encoded.rows["stop"] - encoded.rows["start"]
    rows = encoded.rows[chosen]
    _lay_out(rows, row_lengths[chosen])
    with_span = chosen[encoded.spans["conversation"]]
    spans = encoded.spans[with_span]
    _lay_out(spans, spans["stop"] - spans["start"])
    spans["conversation"] = (np.cumsum(chosen) - 1)[spans["conversation"]]
    tokens = encoded.tokens[np.repeat(chosen, row_lengths.astype(np.int64))]
    return Encoded(tokens, spans, rows, encoded.weights)


def _lay_out(table: NDArray[np.void], lengths: NDArray[np.uint64]) -> None:
    table["stop"] = np.cumsum(lengths)
    table["start"] = table["stop"] - lengths
