"""What masks select: supervised tokens by split, role and source."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mypt.data.manifest import Density, MaskStats, SourceRecord
from mypt.data.shards import ShardView
from mypt.data.spans import ROLES
from mypt.errors import MaskError


def mask_stats(shards: Iterable[ShardView], sources: Sequence[SourceRecord]) -> MaskStats:
    """Count what the masks of ``shards`` select, one shard at a time.

    Args:
        shards: Shards of any splits; their spans, where there are any, tile their tokens.
        sources: The dataset's sources.

    Raises:
        MaskError: If a shard has no mask.
    """
    splits, roles, names = _Groups(), _Groups(), _Groups()
    n_rows = n_unsupervised = 0
    for shard in shards:
        if shard.mask is None:
            raise MaskError(f"{shard.record.tokens.name} has no mask; make one with 'mypt mask'")
        whole = Density(tokens=len(shard.mask), supervised=int(shard.mask.sum(dtype=np.int64)))
        splits.add(shard.record.split, whole)
        names.add(sources[shard.record.source].name, whole)
        for role, density in _by_role(shard.mask, shard.spans):
            roles.add(role, density)
        if shard.rows is not None:
            n_rows += len(shard.rows)
            n_unsupervised += int((supervised_in(shard.mask, shard.rows) == 0).sum())
    return MaskStats(
        total=splits.total(),
        by_split=splits.densities,
        by_role=roles.densities,
        by_source=names.densities,
        rows=n_rows,
        rows_unsupervised=n_unsupervised,
    )


def supervised_in(mask: NDArray[np.uint8], parts: NDArray[np.void]) -> NDArray[np.int64]:
    """Return how many tokens of each part are supervised, (P,).

    Args:
        mask: (N,) of 0 and 1.
        parts: (P,) spans or rows that tile the N tokens; a part may be empty.
    """
    counts = np.zeros(len(parts), dtype=np.int64)
    filled = parts["stop"] > parts["start"]  # reduceat would give an empty part its neighbour
    starts = parts["start"][filled].astype(np.int64)
    if starts.size:
        counts[filled] = np.add.reduceat(mask, starts, dtype=np.int64)
    return counts


def _by_role(
    mask: NDArray[np.uint8], spans: NDArray[np.void] | None
) -> Iterable[tuple[str, Density]]:
    if spans is None:
        return
    tokens = (spans["stop"] - spans["start"]).astype(np.int64)
    supervised = supervised_in(mask, spans)
    for number in np.unique(spans["role"]):
        of_role = spans["role"] == number
        yield (
            ROLES[number],
            Density(tokens=int(tokens[of_role].sum()), supervised=int(supervised[of_role].sum())),
        )


class _Groups:
    """Densities by name, added up."""

    def __init__(self) -> None:
        self.densities: dict[str, Density] = {}

    def add(self, name: str, more: Density) -> None:
        old = self.densities.get(name, Density())
        self.densities[name] = Density(
            tokens=old.tokens + more.tokens, supervised=old.supervised + more.supervised
        )

    def total(self) -> Density:
        found = self.densities.values()
        return Density(
            tokens=sum(density.tokens for density in found),
            supervised=sum(density.supervised for density in found),
        )
