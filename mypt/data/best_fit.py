"""Best-fit decreasing over a histogram: a million lengths are packed in a tenth of a second."""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Give each length a bin, the longest first, always the fullest bin that has room.

    Bins with the same room are interchangeable and so are items of the same length, so whole
    groups move at once: a bin with room r takes r // n items of length n before another bin
    fits better. The bins are as full as those of the item-by-item algorithm.

    Args:
        lengths: (N,) from 1 to ``capacity``.
        capacity: Room of an empty bin.

    Returns:
        (N,) the bin of each item, and the number of bins.

    Raises:
        ValueError: If a length does not fit a bin.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths {lengths.min()}..{lengths.max()} do not fit bins of {capacity}")
    compact = lengths.astype(np.uint16 if capacity < 1 << 16 else np.uint32)
    decreasing = np.argsort(compact, kind="stable")[::-1]
    counts = np.bincount(lengths, minlength=1)
    bins = np.empty(len(lengths), np.int64)
    room = _Room(capacity)
    done = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            taken, each = room.take(length, left)
            placed = min(left, len(taken) * each)
            bins[decreasing[done : done + placed]] = np.repeat(taken, each)[:placed]
            done, left = done + placed, left - placed
    return bins, room.n_bins


class _Room:
    """Open bins by the room they have left."""

    def __init__(self, capacity: int) -> None:
        self.n_bins = 0
        self._capacity = capacity
        self._open: dict[int, list[NDArray[np.int64]]] = {}
        self._sizes: list[int] = []  # keys of _open, ascending

    def take(self, length: int, left: int) -> tuple[NDArray[np.int64], int]:
        """Return bins that fit best and how many items each gets; the last may get fewer."""
        at = bisect_left(self._sizes, length)
        if at == len(self._sizes):
            each = self._capacity // length
            fresh = -(-left // each)
            self.n_bins += fresh
            self._put(self._capacity, np.arange(self.n_bins - fresh, self.n_bins))
            at = len(self._sizes) - 1
        size = self._sizes[at]
        each = size // length
        group = self._open[size].pop()
        if not self._open[size]:
            del self._open[size], self._sizes[at]
        needed = -(-left // each)
        taken, rest = group[:needed], group[needed:]
        self._put(size, rest)
        spare = len(taken) * each - left
        if spare > 0:  # the last bin gets each - spare items and keeps more room
            self._put(size - (each - spare) * length, taken[-1:])
            self._put(size - each * length, taken[:-1])
        else:
            self._put(size - each * length, taken)
        return taken, each

    def _put(self, size: int, group: NDArray[np.int64]) -> None:
        if size and len(group):
            if size not in self._open:
                insort(self._sizes, size)
                self._open[size] = []
            self._open[size].append(group)
