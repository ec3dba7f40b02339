"""By what mean a training learns: each token the same, each conversation, or each source.

A row of the dataset has a number by which the weights of its tokens are multiplied. It follows
from the files alone, before any batch is drawn, so that packing, accumulation and ranks cannot
change it.
"""

import numpy as np
from numpy.typing import NDArray

from mypt.config import UNWEIGHED, Normalisation
from mypt.data.dataset import Dataset
from mypt.data.manifest import Split
from mypt.data.shards import ShardView
from mypt.errors import ConfigError


def piece_scales(
    dataset: Dataset,
    split: Split,
    pieces: NDArray[np.void],
    normalisation: Normalisation,
    use_loss_mask: bool,
) -> NDArray[np.float32] | None:
    """Return by what the weights of each piece's tokens are multiplied, (P,); None by nothing.

    ``conversation`` divides by the weight of the whole row, so that each row that is learned weighs
    1; ``source`` by that of the whole source, and shares of sources multiply this.

    Args:
        dataset: With an index of rows.
        split: Whose rows.
        pieces: (P,) of PIECE_DTYPE.
        normalisation: What weighs the same.
        use_loss_mask: Whether the masks say what is learned; else every token weighs 1.

    Raises:
        ConfigError: If a share is that of no source.
    """
    if normalisation == "token":
        return None
    shards, names = dataset.shards(split), [s.name for s in dataset.manifest.sources]
    table = dataset.weights if dataset.weights is not None else np.array(UNWEIGHED, np.float32)
    rows = [_row_weights(shard, table, use_loss_mask) for shard in shards]
    if normalisation != "conversation":
        shares = {} if normalisation == "source" else normalisation
        if unknown := sorted(shares.keys() - set(names)):
            raise ConfigError(
                f"normalisation: {dataset.path} has no source {unknown[0]!r}; found"
                f" {', '.join(names)}"
            )
        wholes = dict.fromkeys(range(len(names)), 0.0)
        for shard, weights in zip(shards, rows, strict=True):
            wholes[shard.record.source] += weights.sum()
        for shard, weights in zip(shards, rows, strict=True):
            source = shard.record.source
            weights[:] = wholes[source] / shares.get(names[source], 1.0)
    scales = np.empty(len(pieces), np.float64)
    for number, (shard, weights) in enumerate(zip(shards, rows, strict=True)):
        here = pieces["shard"] == number
        assert shard.rows is not None, "packing has looked"
        starts = pieces["start"][here].astype(np.uint64)
        scales[here] = weights[np.searchsorted(shard.rows["start"], starts, side="right") - 1]
    return (1 / scales).astype(np.float32)


def _row_weights(
    shard: ShardView, table: NDArray[np.float32], use_loss_mask: bool
) -> NDArray[np.float64]:
    """Return (R,) the weight of all targets of each row: of every token but its first."""
    rows, mask = shard.rows, shard.mask
    assert rows is not None, "packing has looked"
    start, stop = rows["start"].astype(np.int64), rows["stop"].astype(np.int64)
    if mask is None or not use_loss_mask:
        return (stop - np.minimum(start + 1, stop)).astype(np.float64)
    until = np.concatenate([[0.0], np.cumsum(table[mask], dtype=np.float64)])
    weights: NDArray[np.float64] = until[stop] - until[np.minimum(start + 1, stop)]
    return weights
