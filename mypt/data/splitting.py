"""Which rows are kept for validation: a function of what they say, so that twins never cross."""

import math

import numpy as np
from numpy.typing import NDArray

from mypt.data.encoding import Encoded
from mypt.data.manifest import Split
from mypt.errors import DataError


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
        digests = np.ascontiguousarray(rows["digest"])
        keys = digests.view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
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
                f"{where}: one row is all there is, so none can be kept for validation; part"
                " conversations and texts by an empty line, or set val_fraction to 0"
            )
        if self._smallest >= self._largest:
            raise DataError(
                f"{where}: all rows say the same, so none can be kept for validation; expected at"
                " least two different rows; add some, or set val_fraction to 0"
            )
        split = RowSplit(0.0)
        split._threshold = self._smallest + 1 if self.empty == "val" else self._largest
        return split


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
    return Encoded(tokens, spans, rows)


def _lay_out(table: NDArray[np.void], lengths: NDArray[np.uint64]) -> None:
    table["stop"] = np.cumsum(lengths)
    table["start"] = table["stop"] - lengths
