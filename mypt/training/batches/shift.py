"""Rows of a batch as numpy arrays, and the one shift: targets, and the mask that follows them.

Each row knows where it comes from: tokens of a shard, and the raw line behind them.
"""

from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mypt.data.dataset import Dataset
from mypt.data.shards import ShardView

Scalar = TypeVar("Scalar", bound=np.generic)


class Arrays(NamedTuple):
    """A batch before it becomes tensors; B rows, T places."""

    input_ids: NDArray[np.int64]
    """(B, T) token ids."""
    targets: NDArray[np.int64]
    """(B, T); the token that follows each input."""
    loss_mask: NDArray[np.uint8 | np.float32] | None
    """(B, T) of 0 and 1, or how much each token weighs, aligned with ``targets``; None supervises
    all."""
    positions: NDArray[np.int64] | None = None
    """(B, T), counted from 0 in each piece; None counts along the row."""
    segments: NDArray[np.int64] | None = None
    """(B, T), the number of the piece in its row, -1 for padding; None is one piece a row."""


class Shifted(NamedTuple, Generic[Scalar]):
    """Inputs, the tokens that follow them, and the mask of the latter; all (..., n)."""

    inputs: NDArray[Scalar]
    targets: NDArray[Scalar]
    loss_mask: NDArray[np.uint8 | np.float32] | None


def shift(tokens: NDArray[Scalar], mask: NDArray[np.uint8 | np.float32] | None) -> Shifted[Scalar]:
    """Turn n + 1 tokens, whose mask lies beside them, into n inputs and their targets.

    Law 5: on disk the mask belongs to its token; in a batch it belongs to its target. This
    happens here and nowhere else. The five tokens of :mod:`mypt.data.preparation.encoding`:

    >>> inputs, targets, loss_mask = shift(
    ...     np.array([49, 43, 49, 50, 256]), np.array([0, 0, 0, 1, 1], np.uint8)
    ... )
    >>> inputs.tolist(), targets.tolist(), loss_mask.tolist()
    ([49, 43, 49, 50], [43, 49, 50, 256], [0, 0, 1, 1])

    Args:
        tokens: (..., n + 1).
        mask: (..., n + 1), or None.
    """
    return Shifted(tokens[..., :-1], tokens[..., 1:], None if mask is None else mask[..., 1:])


class TokenRange(NamedTuple):
    """Neighbouring tokens of one shard, [start, stop)."""

    shard: ShardView
    start: int
    """First token."""
    stop: int
    """One past the last token."""
    system: tuple[int, int] = (0, 0)
    """Tokens of the same shard that are read before them and never supervised, [start, stop)."""


def name_row(dataset: Dataset, places: list[TokenRange]) -> str:
    """Return one batch row as people look it up: shard, tokens, and the raw file's lines.

    Args:
        dataset: The dataset that the places lie in.
        places: The stretches that the row is made of; none gives "", a row of padding.
    """
    return " + ".join(
        f"{place.shard.record.tokens.name} tokens {place.start}..{place.stop}"
        f"{_raw_lines(dataset, place)}"
        for place in places
    )


def _raw_lines(dataset: Dataset, place: TokenRange) -> str:
    rows = place.shard.rows
    if rows is None:  # made by hand: nobody recorded where the tokens came from
        return ""
    edges = rows["start"].searchsorted([place.start, place.stop - 1], side="right") - 1
    files = dataset.manifest.sources[place.shard.record.source].files
    (first, start), (last, stop) = (
        (Path(files[int(row["file"])].path).name, int(row["line"])) for row in rows[edges]
    )
    if first != last:
        return f" ({first} line {start} to {last} line {stop})"
    return f" ({first} line {start})" if start == stop else f" ({first} lines {start} to {stop})"
