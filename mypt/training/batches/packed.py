"""Sequence packing: packed rows in an order that is new each epoch, every row once.

The five tokens of :mod:`mypt.data.preparation.encoding` in a row of 6 places: two are padding.

>>> from mypt.data.packing.layout import plan_rows
>>> plan, how = plan_rows(dataset, "train", 6), {"use_loss_mask": True, "seed": 0}
>>> batch = PackedRows(dataset, "train", plan, batch_size=1, grad_accumulation=1, **how).batch(0)
>>> batch.input_ids[0].tolist(), batch.targets[0].tolist()
([49, 43, 49, 50, 256, 256], [43, 49, 50, 256, 256, 256])
>>> batch.loss_mask[0].tolist(), batch.segments[0].tolist()
([0, 0, 1, 1, 0, 0], [0, 0, 0, 0, -1, -1])
"""

import numpy as np
from numpy.typing import NDArray

from mypt.config import Normalisation
from mypt.data.dataset import Dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.packing.layout import PackingPlan, Range, places_of
from mypt.data.shards import TokenRange
from mypt.training.batches.normalisation import piece_scales
from mypt.training.batches.shift import Arrays, Scalar, shift


class PackedRows:
    """Batches of the rows that a packing plan made.

    An epoch is a whole number of optimizer steps, and its rows are spread over its
    micro-batches as evenly as can be: none is repeated, none is left out, and no step is much
    smaller than another. So ``batch_size`` is the most rows a micro-batch has; where one has a
    row less than its neighbours, a row of padding keeps the shape.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        plan: PackingPlan,
        *,
        batch_size: int,
        grad_accumulation: int,
        use_loss_mask: bool,
        seed: int,
        normalisation: Normalisation = "token",
    ) -> None:
        """Lay out the epochs of one split."""
        self.plan = plan
        self.steps_per_epoch = -(-plan.n_rows // (batch_size * grad_accumulation))
        self.batches_per_epoch = self.steps_per_epoch * grad_accumulation
        self.rows_per_batch = -(-plan.n_rows // self.batches_per_epoch)
        self._shards = shards = dataset.shards(split)
        # A memory map's own indexing costs several times a plain array's.
        self._tokens = [np.asarray(shard.tokens) for shard in shards]
        self._masks = [np.asarray(shard.mask) for shard in shards] if use_loss_mask else []
        self._table = dataset.weights if use_loss_mask else None
        self._scales = piece_scales(dataset, split, plan.pieces, normalisation, use_loss_mask)
        self._padding = dataset.tokenizer.end_of_text
        self._entropy = (seed, SPLITS.index(split))
        self._order = (-1, np.empty(0, np.int64))

    def batch(self, number: int) -> Arrays:
        """Return batch ``number``, a function of dataset, seed and number alone."""
        return self._fill(self._batch_rows(number))

    def places(self, number: int) -> list[list[TokenRange]]:
        """Return the pieces that each row of batch ``number`` is made of, none for padding."""
        rows = [
            [TokenRange(self._shards[i], a, b, c) for i, a, b, c in self.plan.ranges(slice(*ends))]
            for ends in (self.plan.row_offsets[r : r + 2] for r in self._batch_rows(number))
        ]
        return rows + [[]] * (self.rows_per_batch - len(rows))

    def passes(self, n_batches: int) -> NDArray[np.int64]:
        """Return (R,) how often the first ``n_batches`` batches hold each row of the plan."""
        epochs, slot = divmod(n_batches, self.batches_per_epoch)
        found = np.full(self.plan.n_rows, epochs, np.int64)
        found[self._epoch_order(epochs)[: self.plan.n_rows * slot // self.batches_per_epoch]] += 1
        return found

    def _batch_rows(self, number: int) -> NDArray[np.int64]:
        epoch, slot = divmod(number, self.batches_per_epoch)
        order, n_rows = self._epoch_order(epoch), self.plan.n_rows
        first = n_rows * slot // self.batches_per_epoch
        stop = n_rows * (slot + 1) // self.batches_per_epoch
        return order[first:stop]

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            bits = np.random.Philox(np.random.SeedSequence([*self._entropy, epoch]))
            # Raw bits are the same in every version of numpy; its shuffling need not be.
            order = np.argsort(bits.random_raw(self.plan.n_rows), kind="stable")
            self._order = (epoch, order)
        return self._order[1]

    def _fill(self, rows: NDArray[np.int64]) -> Arrays:
        """Lay the pieces of ``rows`` one behind the other.

        A piece of n tokens fills n - 1 places: its last token is only ever a target, its first
        one only an input. A system message that is read again is never supervised.
        """
        shape = (self.rows_per_batch, self.plan.block_size)
        offsets = self.plan.row_offsets
        n_pieces = offsets[rows + 1] - offsets[rows]
        number = _count_up(n_pieces)
        chosen = np.repeat(offsets[rows], n_pieces) + number
        ranges = self.plan.ranges(chosen)
        n_repeated = np.diff(self.plan.systems[chosen])[:, 0]
        n_tokens = places_of(self.plan.pieces[chosen], self.plan.systems[chosen]) + 1
        within = _count_up(n_tokens)
        tokens = _join(self._tokens, ranges)
        mask = _join(self._masks, ranges) if self._masks else np.ones_like(tokens, np.uint8)
        mask[within < np.repeat(n_repeated, n_tokens)] = 0
        if self._table is not None:
            mask = self._table[mask]
        if self._scales is not None:
            mask = mask * np.repeat(self._scales[chosen], n_tokens)
        inputs, targets, loss_mask = shift(tokens, mask)
        assert loss_mask is not None
        inside = within[1:] > 0  # the other pairs reach from one piece into the next
        filled = np.cumsum(n_tokens - 1) - (n_tokens - 1)
        in_row = filled - np.repeat(filled[number == 0], n_pieces)
        start = np.repeat(np.arange(len(rows)) * shape[1], n_pieces) + in_row
        position = within[:-1][inside]
        there = np.repeat(start, n_tokens - 1) + position

        def lay(values: NDArray[Scalar], empty: NDArray[Scalar]) -> NDArray[Scalar]:
            empty[there] = values
            return empty.reshape(shape)

        size = shape[0] * shape[1]
        return Arrays(
            input_ids=lay(inputs[inside].astype(np.int64), np.full(size, self._padding)),
            targets=lay(targets[inside].astype(np.int64), np.full(size, self._padding)),
            loss_mask=lay(loss_mask[inside], np.zeros(size, mask.dtype)),
            positions=lay(position, np.zeros(size, np.int64)),
            segments=lay(np.repeat(number, n_tokens - 1), np.full(size, -1)),
        )


def _count_up(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, ... for each size, one behind the other."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _join(values: list[NDArray[Scalar]], ranges: list[Range]) -> NDArray[Scalar]:
    """Return the values of pieces, each behind those of the system message that it repeats."""
    parts = [values[0][:0]]
    for shard, start, stop, (begin, end) in ranges:
        parts += (values[shard][begin:end], values[shard][start:stop])
    return np.concatenate(parts)
