"""Random windows over a token stream, as in the guide that mypt began from.

The five tokens of :mod:`mypt.data.preparation.encoding` hold two windows of 3 inputs and the
target behind them; of this seed, batch 0 is the second.

>>> rows = Windows(dataset, "train", batch_size=1, block_size=3, use_loss_mask=True, seed=2)
>>> [[(place.start, place.stop) for place in row] for row in rows.places(0)]
[[(1, 5)]]
>>> input_ids, targets, loss_mask, *_ = rows.batch(0)
>>> input_ids.tolist(), targets.tolist(), loss_mask.tolist()
([[43, 49, 50]], [[49, 50, 256]], [[0, 1, 1]])
"""

from collections.abc import Iterator
from typing import Generic, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mypt.data.dataset import Dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.shards import ShardView, TokenRange
from mypt.errors import DataError
from mypt.training.batches.shift import Arrays, Scalar, shift

_DRAWN_AT_ONCE = 256  # batches; seeding a generator takes longer than drawing a batch
_RECOUNTED_AT_ONCE = 1 << 21  # windows; bounds the memory, whatever the number of steps


class Windows:
    """Windows of ``block_size`` inputs and their targets; none crosses a shard.

    Every window of a source is as likely as any other, and a source's weight multiplies the
    likelihood of its windows. A split of short shards only gives windows as long as its
    longest shard allows; ``notes`` says so.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        *,
        batch_size: int,
        block_size: int,
        use_loss_mask: bool,
        seed: int,
    ) -> None:
        """Index the windows of one split.

        Raises:
            DataError: If no shard holds a token and its target.
        """
        shards = dataset.shards(split)
        longest = max((len(shard.tokens) for shard in shards), default=0)
        if longest < 2:
            raise DataError(
                f"{dataset.path}, {split}: the longest shard has {longest} tokens, a window needs"
                " 2; bring more data"
            )
        window = min(block_size, longest - 1)
        long = [shard for shard in shards if len(shard.tokens) > window]
        self.n_tokens = sum(len(shard.tokens) for shard in long)
        self.n_skipped = sum(len(shard.tokens) for shard in shards) - self.n_tokens
        self.notes = _notes(split, block_size, window, self.n_skipped)
        self._shards, self._length = long, window + 1
        self._tokens = _Together([shard.tokens for shard in long], window + 1)
        masks = [shard.mask for shard in long if use_loss_mask and shard.mask is not None]
        self._masks = _Together(masks, window + 1) if masks else None
        self._counts = np.array([len(shard.tokens) - window for shard in long])
        self._table = dataset.weights
        sources = dataset.manifest.sources
        self._weights = np.array([sources[shard.record.source].weight for shard in long])
        self._edges = np.cumsum(self._counts * self._weights)
        self._entropy = (seed, SPLITS.index(split))
        self._batch_size = batch_size
        self._lot = _Lot(-1, *[np.empty(0, np.int64)] * 4)

    def batch(self, number: int) -> Arrays:
        """Return batch ``number``, a function of dataset, seed and number alone."""
        lot, within = self._drawn_with(number)
        tokens = self._tokens.windows[lot.token_places[within]].astype(np.int64)
        mask = self._masks.windows[lot.mask_places[within]] if self._masks else None
        weighed = mask if mask is None or self._table is None else self._table[mask]
        return Arrays(*shift(tokens, weighed))

    def places(self, number: int) -> list[list[TokenRange]]:
        """Return the stretches of tokens that each row of batch ``number`` is made of."""
        shards, starts = self._draw(number)
        return [
            [TokenRange(self._shards[shard], start, start + self._length)]
            for shard, start in zip(shards.tolist(), starts.tolist(), strict=True)
        ]

    def drawn(self, n_batches: int) -> Iterator[tuple[ShardView, NDArray[np.int64]]]:
        """Yield where the windows of the first ``n_batches`` batches begin, lot by lot.

        Yields:
            A shard, and the first token of each window of the lot that lies in it.
        """
        lot = max(1, _RECOUNTED_AT_ONCE // self._batch_size)
        for first in range(0, n_batches, lot):
            draws = [self._draw(number) for number in range(first, min(first + lot, n_batches))]
            shards, starts = (np.concatenate(part) for part in zip(*draws, strict=True))
            for index in np.unique(shards).tolist():
                yield self._shards[index], starts[shards == index]

    def _draw(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shard and start of each row."""
        lot, within = self._drawn_with(number)
        return lot.shards[within], lot.starts[within]

    def _drawn_with(self, number: int) -> tuple["_Lot", int]:
        """Return the draws of many batches at a time, and which of them is asked for."""
        index, within = divmod(number, _DRAWN_AT_ONCE)
        if self._lot.number != index:
            bits = np.random.Philox(np.random.SeedSequence([*self._entropy, index]))
            # Raw bits are the same in every version of numpy; its distributions need not be.
            raw = bits.random_raw(_DRAWN_AT_ONCE * self._batch_size) >> np.uint64(11)
            place = raw.reshape(_DRAWN_AT_ONCE, -1) * 2.0**-53 * self._edges[-1]
            # Ascending within a batch, so that its rows lie shard by shard.
            place.sort(axis=1)
            shards = np.searchsorted(self._edges[:-1], place, side="right")
            before = np.append(0.0, self._edges)[shards]
            starts = ((place - before) / self._weights[shards]).astype(np.int64)
            starts = np.minimum(starts, self._counts[shards] - 1)
            places = [
                starts if part is None else part.begins[shards] + starts
                for part in (self._tokens, self._masks)
            ]
            self._lot = _Lot(index, shards, starts, *places)
        return self._lot, within


class _Lot(NamedTuple):
    """Where the rows of many batches begin; all (batches, rows)."""

    number: int
    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    """In the shard."""
    token_places: NDArray[np.int64]
    """Among all windows of tokens."""
    mask_places: NDArray[np.int64]
    """Among all windows of masks, where there are masks."""


class _Together(Generic[Scalar]):
    """Windows of arrays mapped anywhere in memory, for one indexing of one view.

    The view reaches from the lowest array to the highest. What lies between them is never read,
    since every window lies inside its array. Copying row by row takes twice as long.
    """

    def __init__(self, arrays: list[NDArray[Scalar]], length: int) -> None:
        # A memory map's own indexing costs several times a plain array's; the pages are the same.
        self._arrays = [np.asarray(array) for array in arrays]  # kept, as the view keeps but one
        places, size = [array.ctypes.data for array in arrays], arrays[0].itemsize
        lowest = min(places)
        self.begins = np.array([(place - lowest) // size for place in places])
        ends = [begin + len(array) for begin, array in zip(self.begins, arrays, strict=True)]
        self.windows = as_strided(
            self._arrays[places.index(lowest)],
            (max(ends) - length + 1, length),
            (size, size),
            writeable=False,
        )


def _notes(split: Split, block_size: int, window: int, skipped: int) -> tuple[str, ...]:
    """Say in what the windows of a split fall short of what was asked for, a line each."""
    short = f"{split}: windows of {window} tokens, no shard holds block_size {block_size} + 1"
    left = f"{split}: {skipped} tokens of shards shorter than a window are never drawn"
    return (short,) * (window < block_size) + (left,) * (skipped > 0)
