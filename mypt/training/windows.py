"""Random windows over a token stream, the seed's way of drawing batches."""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mypt.data.dataset import Dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.shards import ShardView
from mypt.errors import DataError
from mypt.training.arrays import Arrays, Scalar, Wide, shift
from mypt.training.places import Place

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
        self._tokens = [_windows(shard.tokens, window) for shard in long]
        self._masks = [
            _windows(shard.mask, window)
            for shard in long
            if use_loss_mask and shard.mask is not None
        ]
        sources = dataset.manifest.sources
        self._weights = np.array([sources[shard.record.source].weight for shard in long])
        self._edges = np.cumsum([len(tokens) for tokens in self._tokens] * self._weights)
        self._entropy = (seed, SPLITS.index(split))
        self._batch_size = batch_size
        self._drawn = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def batch(self, number: int) -> Arrays:
        """Return batch ``number``, a function of dataset, seed and number alone."""
        shards, starts = self._draw(number)
        tokens = _gather(self._tokens, shards, starts, np.int64)
        mask = _gather(self._masks, shards, starts, np.uint8) if self._masks else None
        return Arrays(*shift(tokens, mask))

    def places(self, number: int) -> list[list[Place]]:
        """Return the stretches of tokens that each row of batch ``number`` is made of."""
        shards, starts = self._draw(number)
        return [
            [Place(self._shards[shard], start, start + self._length)]
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
        """Return shard and start of each row, drawn for many batches at a time."""
        block, within = divmod(number, _DRAWN_AT_ONCE)
        if self._drawn[0] != block:
            bits = np.random.Philox(np.random.SeedSequence([*self._entropy, block]))
            # Raw bits are the same in every version of numpy; its distributions need not be.
            raw = bits.random_raw(_DRAWN_AT_ONCE * self._batch_size) >> np.uint64(11)
            place = raw.reshape(_DRAWN_AT_ONCE, -1) * 2.0**-53 * self._edges[-1]
            # Ascending within a batch, so that its rows lie shard by shard.
            place.sort(axis=1)
            shards = np.searchsorted(self._edges[:-1], place, side="right")
            before = np.append(0.0, self._edges)[shards]
            starts = ((place - before) / self._weights[shards]).astype(np.int64)
            last = np.array([len(tokens) for tokens in self._tokens])[shards] - 1
            self._drawn = (block, shards, np.minimum(starts, last))
        return self._drawn[1][within], self._drawn[2][within]


def _gather(
    values: list[NDArray[Scalar]],
    shards: NDArray[np.int64],
    places: NDArray[np.int64],
    dtype: type[Wide],
) -> NDArray[Wide]:
    """Return ``values[shard][place]`` for each pair, a row each."""
    if len(values) == 1:
        return values[0][places].astype(dtype, copy=False)
    rows = np.empty((len(places), values[0].shape[1]), dtype)
    parts = [values[i][j] for i, j in zip(shards.tolist(), places.tolist(), strict=True)]
    return np.concatenate(parts, out=rows.ravel(), casting="same_kind").reshape(rows.shape)


def _notes(split: Split, block_size: int, window: int, skipped: int) -> tuple[str, ...]:
    """Say in what the windows of a split fall short of what was asked for, a line each."""
    short = f"{split}: windows of {window} tokens, no shard holds block_size {block_size} + 1"
    left = f"{split}: {skipped} tokens of shards shorter than a window are never drawn"
    return (short,) * (window < block_size) + (left,) * (skipped > 0)


def _windows(values: NDArray[Scalar], block_size: int) -> NDArray[Scalar]:
    # A memory map's own indexing costs several times a plain array's; the pages are the same.
    return sliding_window_view(np.asarray(values), block_size + 1)
