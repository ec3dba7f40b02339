"""How often a training read and learned each row of a shard, counted again from its draws."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mypt.data.shards import ShardView
from mypt.training.batches.packed import PackedRows
from mypt.training.batches.windows import Windows

_TOKENS_AT_ONCE = 1 << 20  # bounds the memory; a longer row is counted at once all the same

Ints = NDArray[np.int64]


class RowCounts(NamedTuple):
    """What a training did with the R rows of one shard; each (R,) int64."""

    times: Ints
    """Windows, or pieces of packed rows, in which at least one token of the row was learned."""
    learned: Ints
    """Tokens of the row that were learned, each counted as often as it was."""
    read: Ints
    """Tokens of the row that stood in a batch, learned or not, counted likewise."""
    supervised: Ints
    """Tokens of the row that the mask supervises, each counted once."""


def no_counts(shard: ShardView, use_loss_mask: bool) -> RowCounts:
    """Return the counts of a shard with rows before any training."""
    rows = _rows(shard)
    times, learned, read, supervised = np.zeros((4, len(rows)), np.int64)
    for first, stop in _blocks(rows):
        edges = _Edges(rows[first:stop])
        supervised[first:stop] = edges.sums(_supervised(shard, edges, use_loss_mask))
    return RowCounts(times, learned, read, supervised)


def count_windows(
    windows: Windows, n_batches: int, block_size: int, counts: dict[int, RowCounts], masked: bool
) -> None:
    """Add what the first ``n_batches`` batches of random windows did.

    Args:
        windows: The split as it was drawn from.
        n_batches: Micro-batches.
        block_size: Inputs a window; its targets are as many tokens, one further on.
        counts: By shard index; changed in place.
        masked: Whether the masks say what is learned; else every target is.
    """
    for shard, starts in windows.drawn(n_batches):
        found, rows = counts[shard.record.index], _rows(shard)
        starts.sort()
        for first, stop in _blocks(rows):
            edges = _Edges(rows[first:stop])
            begun = _begun(starts, edges.start - block_size, edges.stop)
            if begun[-1]:
                supervised = _supervised(shard, edges, masked)
                for total, part in zip(found, _in_windows(edges, begun, supervised), strict=False):
                    total[first:stop] += part


def count_packed(
    packed: PackedRows,
    shards: tuple[ShardView, ...],
    n_batches: int,
    counts: dict[int, RowCounts],
    masked: bool,
) -> None:
    """Add what the first ``n_batches`` batches of packed rows did; see :func:`count_windows`."""
    plan = packed.plan
    passes = np.repeat(packed.passes(n_batches), np.diff(plan.row_offsets))
    for number, shard in enumerate(shards):
        chosen = plan.pieces["shard"] == number
        pieces, often = plan.pieces[chosen], passes[chosen]
        found, rows = counts[shard.record.index], _rows(shard)
        owner = np.searchsorted(rows["start"], pieces["start"].astype(np.uint64), "right") - 1
        repeated = np.diff(plan.systems[chosen])[:, 0]
        start, stop = pieces["start"], pieces["stop"]
        first = start + (repeated == 0)  # the first token that is a target
        learned = stop - first
        if masked and shard.mask is not None:
            ones = np.flatnonzero(np.asarray(shard.mask))
            learned = np.searchsorted(ones, stop) - np.searchsorted(ones, first)
        np.add.at(found.times, owner, often * (learned > 0))
        np.add.at(found.learned, owner, often * learned)
        np.add.at(found.read, owner, often * (stop - start + repeated))


class _Edges:
    """Where some rows of a shard lie, one behind the other."""

    def __init__(self, rows: NDArray[np.void]) -> None:
        self.start, self.stop = int(rows["start"][0]), int(rows["stop"][-1])
        self._first = rows["start"].astype(np.int64) - self.start
        self._stop = rows["stop"].astype(np.int64) - self.start

    def sums(self, values: NDArray[np.integer | np.bool_]) -> Ints:
        """Return the sum over the tokens of each row."""
        until = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        sums: Ints = until[self._stop] - until[self._first]
        return sums

    def owners(self, tokens: Ints) -> Ints:
        """Return which row each token belongs to."""
        return np.searchsorted(self._first, tokens, "right") - 1


def _in_windows(edges: _Edges, begun: Ints, supervised: NDArray[np.bool_]) -> tuple[Ints, ...]:
    """Return times, learned and read of each row.

    A window that begins at s reads the tokens s to s + T and learns those from s + 1 on. So
    token t is learned in the windows that begin from t - T to t - 1, and the windows that learn
    anything of a row are those that begin in the union of these ranges over its supervised
    tokens: each token adds the windows that the one before it has not brought already.

    Args:
        edges: The rows; n tokens.
        begun: (n + T + 2,), how many windows begin before token ``edges.start - T + i``.
        supervised: (n,).
    """
    n = len(supervised)
    t = len(begun) - n - 2
    ones = np.flatnonzero(supervised)
    since = ones.copy()
    same_row = np.diff(edges.owners(ones)) == 0
    since[1:] = np.where(same_row, np.maximum(ones[1:], ones[:-1] + t), ones[1:])
    times = np.zeros(n, np.int64)
    times[ones] = begun[ones + t] - begun[since]
    learned = np.where(supervised, begun[t : t + n] - begun[:n], 0)
    read = begun[t + 1 : t + 1 + n] - begun[:n]
    return edges.sums(times), edges.sums(learned), edges.sums(read)


def _begun(starts: Ints, first: int, last: int) -> Ints:
    """Return how many of the ascending ``starts`` lie in [first, x) for x in first..last + 1."""
    inside = starts[np.searchsorted(starts, first) : np.searchsorted(starts, last, "right")]
    counts = np.bincount(inside - first, minlength=last - first + 1)
    return np.concatenate([[0], np.cumsum(counts)])


def _blocks(rows: NDArray[np.void]) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole rows, each of about as many tokens as fit in memory well."""
    wanted = np.arange(0, int(rows["start"].max(initial=0)) + 1, _TOKENS_AT_ONCE, dtype=np.uint64)
    edges = np.unique(np.searchsorted(rows["start"], wanted)).tolist()
    yield from zip(edges, [*edges[1:], len(rows)], strict=True) if len(rows) else ()


def _supervised(shard: ShardView, edges: _Edges, masked: bool) -> NDArray[np.bool_]:
    if not masked or shard.mask is None:
        return np.ones(edges.stop - edges.start, np.bool_)
    supervised: NDArray[np.bool_] = np.asarray(shard.mask[edges.start : edges.stop]) != 0
    return supervised


def _rows(shard: ShardView) -> NDArray[np.void]:
    assert shard.rows is not None, "the caller has looked"
    return shard.rows
