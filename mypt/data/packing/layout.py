"""Bin packing: whole conversations, or pieces of them, laid into rows of one block by best fit.

Best-fit decreasing runs over a histogram of lengths: a million are packed in a tenth of a second.

The five tokens of :mod:`mypt.data.preparation.encoding` are a piece that fills 4 places: of a
row of 6 two are padding, a row of 8 holds two such pieces, and a third opens a row of its own.

>>> plan = plan_rows(dataset, "train", block_size=6)
>>> plan.pieces.tolist(), plan.n_rows, plan.n_places, round(plan.fill, 2)
([(0, 0, 5)], 1, 4, 0.67)
>>> bins, n_bins = best_fit(np.array([4, 4, 4]), capacity=8)
>>> sorted(bins.tolist()), n_bins
([0, 0, 1], 2)
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mypt.config import TrainConfig
from mypt.data.dataset import Dataset, ShardView, open_dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.packing.accounts import LengthAccount, account, check_budget, merge
from mypt.data.packing.pieces import (
    PIECE,
    TOO_LONG,
    Count,
    LengthPolicy,
    cut_rows,
    in_twos,
    learnable,
)
from mypt.errors import DataError

PIECE_DTYPE: Final = np.dtype([("shard", "<i8"), ("start", "<i8"), ("stop", "<i8")])
"""Half-open [start, stop) in tokens of one shard of the split; fills stop - start - 1 places."""


Range = tuple[int, int, int, tuple[int, int]]
"""Shard, start and stop of a piece; start and stop of the system message that it repeats."""


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


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """Which pieces share a row; the same for every epoch."""

    block_size: int
    """Places of a row."""
    pieces: NDArray[np.void]
    """(P,) of PIECE_DTYPE, row after row."""
    systems: NDArray[np.int64]
    """(P, 2) start and stop of the system message that each piece reads before it, unsupervised;
    the same twice where it reads none."""
    row_offsets: NDArray[np.int64]
    """(R + 1,): row r holds ``pieces[row_offsets[r]:row_offsets[r + 1]]``."""
    accounts: tuple[LengthAccount, ...]
    """One a source that has rows in the split."""

    @property
    def n_rows(self) -> int:
        """Packed rows, R."""
        return len(self.row_offsets) - 1

    def ranges(self, chosen: NDArray[np.int64] | slice) -> list[Range]:
        """Return shard, start and stop of some pieces, and what each reads before it."""
        pieces, systems = self.pieces[chosen].tolist(), self.systems[chosen].tolist()
        return [(*piece, tuple(system)) for piece, system in zip(pieces, systems, strict=True)]

    @property
    def n_places(self) -> int:
        """Places that hold an input token; the others are padding."""
        return int(places_of(self.pieces, self.systems).sum())

    @property
    def fill(self) -> float:
        """Share of places that hold an input token."""
        return self.n_places / (self.n_rows * self.block_size)

    @property
    def total(self) -> LengthAccount:
        """The account of all sources."""
        return merge(self.accounts, "all")


def plan_rows(
    dataset: Dataset,
    split: Split,
    block_size: int,
    length_policy: LengthPolicy = "split",
    *,
    use_loss_mask: bool = True,
    max_lost: float | None = None,
) -> PackingPlan:
    """Cut what does not fit, drop what teaches nothing, and pack the rest.

    A source whose weight is k times the smallest weight is seen k times an epoch. Both sides of a
    preference pair stand side by side in one row, or the pair is left out.

    Args:
        dataset: With a row index, and with masks if ``use_loss_mask``.
        split: ``train`` or ``val``.
        block_size: Places of a row; a row holds pieces of n tokens in n - 1 places each.
        length_policy: What becomes of rows of more than block_size + 1 tokens.
        use_loss_mask: Whether the mask says what is learned; else every token is.
        max_lost: Largest share of supervised tokens that may be lost to length; None only
            counts.

    Raises:
        DataError: If there is no row index, nothing to learn, a row too long for the policy
            ``error``, a weight that is no multiple of the smallest, or too much lost.
    """
    _check_policy(dataset, length_policy)
    accounts: dict[int, list[LengthAccount]] = {}
    pieces, systems = [np.empty(0, PIECE_DTYPE)], [np.empty((0, 2), np.int64)]
    copies = _copies(dataset, shards := dataset.shards(split))
    for number, shard in enumerate(shards):
        rows, spans = _index(dataset, shard)
        stretches = cut_rows(rows, spans, block_size, length_policy, pairs=dataset.paired)
        if length_policy == "error":
            _refuse_long(dataset, shard, stretches, block_size)
        count = _counter(shard.mask if use_loss_mask else None)
        targets = learnable(stretches, count)
        if dataset.paired:
            targets *= in_twos(targets, np.minimum) > 0
        source = shard.record.source
        name = dataset.manifest.sources[source].name
        found = account(name, len(rows), spans, stretches, targets, count)
        accounts.setdefault(source, []).append(found)
        chosen = stretches[(stretches["fate"] == PIECE) & (targets > 0)]
        chosen = np.repeat(chosen.reshape(-1, dataset.together), copies[source], axis=0).flatten()
        begins = rows["start"].astype(np.int64)[chosen["row"]]
        systems.append(np.stack([begins, begins + chosen["system"]], axis=1))
        pieces.append(_pieces(number, chosen))
    merged = tuple(merge(entries, entries[0].source) for entries in accounts.values())
    if max_lost is not None:
        where = f"{dataset.path}, {split}: length_policy {length_policy!r} at block_size"
        check_budget(merge(merged, "all"), max_lost, f"{where} {block_size}")
    if not any(map(len, pieces)):
        raise DataError(
            f"{dataset.path}, {split}: no conversation holds a supervised token that fits"
            f" block_size {block_size}; look at it with 'mypt validate'"
        )
    both = np.concatenate(pieces), np.concatenate(systems)
    return _pack(*both, block_size, merged, dataset.together)


def _check_policy(dataset: Dataset, policy: LengthPolicy) -> None:
    if dataset.paired and policy not in ("drop", "error"):
        raise DataError(
            f"{dataset.path}: length_policy {policy!r} would cut preference pairs; expected drop or"
            " error"
        )


def default_policy(folder: Path, config: TrainConfig, block_size: int) -> LengthPolicy:
    """Return what becomes of long conversations in a training that does not say it.

    It is ``keep_system`` where a piece would lose its system message. Elsewhere ``split`` does the
    same, and is what trainings of before have written down. A preference pair is never cut.

    Args:
        folder: The dataset's.
        config: How it is trained on; only packed rows are cut.
        block_size: Places of a row.

    Raises:
        DataError: If there is no row index.
    """
    if config.batching != "packed":
        return "split"
    dataset = open_dataset(folder, verify=False)
    if dataset.paired:
        return "drop"
    for shard in (shard for split in SPLITS for shard in dataset.shards(split)):
        rows, spans = _index(dataset, shard)
        if (cut_rows(rows, spans, block_size, "keep_system")["system"] > 0).any():
            return "keep_system"
    return "split"


def places_of(pieces: NDArray[np.void], systems: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many places each piece fills, the system message before it among them."""
    places: NDArray[np.int64] = pieces["stop"] - pieces["start"] - 1 + np.diff(systems)[:, 0]
    return places


def _pack(
    pieces: NDArray[np.void],
    systems: NDArray[np.int64],
    block_size: int,
    accounts: tuple[LengthAccount, ...],
    together: int,
) -> PackingPlan:
    bins, n_bins = best_fit(places_of(pieces, systems).reshape(-1, together).sum(1), block_size)
    bins = np.repeat(bins, together)
    # Distinct keys sort the same on every machine, whatever its sorting algorithm.
    order = np.sort(bins * len(bins) + np.arange(len(bins))) % len(bins)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=n_bins))])
    return PackingPlan(block_size, pieces[order], systems[order], offsets, accounts)


def _pieces(number: int, chosen: NDArray[np.void]) -> NDArray[np.void]:
    made = np.empty(len(chosen), PIECE_DTYPE)
    made["shard"] = number
    made["start"] = chosen["start"] - chosen["context"]
    made["stop"] = chosen["stop"]
    return made


def _counter(mask: NDArray[np.uint8] | None) -> Count:
    if mask is None:
        return lambda start, stop: stop - start
    # Searching the places of the ones is several times quicker than summing every byte.
    ones = np.flatnonzero(np.asarray(mask) != 0)
    return lambda start, stop: np.searchsorted(ones, stop) - np.searchsorted(ones, start)


def _copies(dataset: Dataset, shards: tuple[ShardView, ...]) -> dict[int, int]:
    weights = {s.record.source: dataset.manifest.sources[s.record.source].weight for s in shards}
    smallest = min(weights.values(), default=1.0)
    copies = {source: round(weight / smallest) for source, weight in weights.items()}
    for source, weight in weights.items():
        if abs(weight / smallest - copies[source]) > 1e-9:
            raise DataError(
                f"{dataset.path}: source {dataset.manifest.sources[source].name!r} has weight"
                f" {weight:g}, no multiple of the smallest, {smallest:g}; packing shows a"
                " conversation a whole number of times an epoch: change the weights, or set"
                " batching: windows"
            )
    return copies


def _index(dataset: Dataset, shard: ShardView) -> tuple[NDArray[np.void], NDArray[np.void]]:
    if shard.rows is None or shard.spans is None:
        raise DataError(
            f"{dataset.path / shard.record.tokens.name} was made by hand and has no index of"
            " conversations, which packing needs; set batching: windows"
        )
    return shard.rows, shard.spans


def _refuse_long(
    dataset: Dataset, shard: ShardView, stretches: NDArray[np.void], block_size: int
) -> None:
    long = stretches[stretches["fate"] == TOO_LONG]
    if len(long):
        assert shard.rows is not None, "the index was asked for"
        row, n_tokens = shard.rows[long["row"][0]], long["stop"][0] - long["start"][0]
        file = dataset.manifest.sources[shard.record.source].files[int(row["file"])]
        other = "drop" if dataset.paired else "split, keep_system, drop or keep_last_turns"
        raise DataError(
            f"{file.path}:{row['line']}: {n_tokens} tokens{' and its other side' * dataset.paired},"
            f" block_size {block_size} holds {block_size + 1} (and {len(long) - 1} more in"
            f" {shard.record.tokens.name}); raise block_size, or choose length_policy {other}"
        )
